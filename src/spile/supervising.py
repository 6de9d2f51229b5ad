"""`supervise`: auxiliary heads on intermediate layers, outside the model, gone without a trace when
stripped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from spile.backend import backend_of
from spile.errors import SupervisionError
from spile.interfaces import Supervised
from spile.models import LoadedModel, as_loaded, example_for
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressesLike
from spile.supervision.heads import HeadLike
from spile.supervision.placement import automatic
from spile.supervision.settings import MainOutput, Settings
from spile.supervision.targets import Target, Targets, Task, Teacher
from spile.supervision.weights import CosineDecay, Weighting, weighting_of


def supervise(
    model: Any,
    *,
    example: Any = None,
    num_classes: int,
    taps: AddressesLike = "auto",
    head: HeadLike | Mapping[str, HeadLike] = "bottleneck",
    targets: Targets | None = None,
    weight: Weighting | float = CosineDecay(0.4, end=0.7),  # noqa: B008 - frozen
    task: Task = "classification",
    main: MainOutput = None,
    gradient: float | str = "full",
    allow_large: Sequence[str] = (),
) -> Supervised:
    """Put auxiliary heads on layers of a model, to be trained with it.

    The model is not edited: its keys stay, the heads live beside it, `strip` gives it back. Of a PyTorch
    model the result is a ``torch.nn.Module``, of a Keras model a ``keras.Model`` that is compiled and fitted
    as usual.

    Args:
        model: ``torch.nn.Module`` or ``keras.Model``, a reference, or what `spile.load_model` gave.
        example: a batch or its shape, for the dry run; not needed for a reference that tells its input size.
        num_classes: outputs of every head: classes, labels of a multi-label task, or numbers to regress on.
        taps: addresses, or ``"auto"``: the ends of two or three stages at about 35, 60 and 80 % of the MACs.
        head: ``"bottleneck"``, ``"linear"``, ``"mlp"``, ``"token"``, ``"dense"`` (segmentation), a spec of
            `spile.supervision.heads`, your own module, a function from the number of channels to one, or one
            of them for each address.
        targets: what the heads are trained towards, see `spile.supervision.targets`; by default the labels.
        weight: how much the auxiliary losses count, see `spile.supervision.weights`; a number is a constant
            total.
        task: ``"classification"``, ``"multilabel"``, ``"regression"`` or ``"segmentation"``.
        main: where the logits are in the model's output, if that is not one tensor.
        gradient: of the auxiliary losses into the base: ``"full"``, ``"stop"``, or a factor.
        allow_large: addresses whose heads may have over a tenth of the model's parameters and over a million.

    Raises `SupervisionError`, `AddressError`.
    """
    loaded = as_loaded(model)
    given = example_for(loaded) if example is None else example
    backend = backend_of(loaded.model)
    if num_classes < 1:
        raise SupervisionError(
            f"num_classes={num_classes!r}: write how many outputs each head has, 1 or more"
        )
    settings = Settings(
        example=given,
        outputs=num_classes,
        addresses=automatic(backend.observe(loaded.model, given)) if taps == "auto" else taps,
        heads=head,
        targets=_with_teachers(targets, loaded),
        weighting=weighting_of(weight),
        task=task,
        main=main,
        gradient=_factor(gradient),
        allow_large=tuple(allow_large),
    )
    return backend.supervise(loaded.model, settings)


def _factor(gradient: float | str) -> float:
    named = {"full": 1.0, "stop": 0.0}
    if isinstance(gradient, str) and gradient in named:
        return named[gradient]
    if isinstance(gradient, bool) or not isinstance(gradient, int | float) or gradient < 0:
        raise SupervisionError(f"gradient={gradient!r}: write 'full', 'stop', or a factor such as 0.1")
    return float(gradient)


def _with_teachers(targets: Any, student: LoadedModel) -> Any:
    """The targets, with teachers that are named, or loaded with their preprocessing, as plain models.

    A name is loaded once, and one teacher of several heads stays one.
    """
    by_name: dict[str, LoadedModel] = {}
    made: dict[int, Teacher] = {}

    def taught(teacher: Teacher) -> Teacher:
        if id(teacher) not in made:
            name = teacher.model if isinstance(teacher.model, str) else ""
            loaded = by_name[name] if name in by_name else as_loaded(teacher.model)
            if name:
                by_name[name] = loaded
            _check_same_inputs(loaded, student)
            same = loaded.model is teacher.model
            made[id(teacher)] = teacher if same else replace(teacher, model=loaded.model)
        return made[id(teacher)]

    def each(value: Any) -> Any:
        if isinstance(value, Teacher):
            return taught(value)
        if isinstance(value, Target | str) or not isinstance(value, Iterable):
            return value
        if isinstance(value, Mapping):
            return {name: each(one) for name, one in value.items()}
        return [each(one) for one in value]

    return each(targets)


def _check_same_inputs(teacher: LoadedModel, student: LoadedModel) -> None:
    """One batch goes to both: raise `SupervisionError` where the teacher would see wrong colours."""
    ours, theirs = student.preprocessing, teacher.preprocessing
    if not (isinstance(ours, ImagePreprocessing) and isinstance(theirs, ImagePreprocessing)):
        return
    names = ("channels", "channel_order", "scale", "mean", "std")
    differing = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    if differing:
        said = "; ".join(f"{name} {getattr(theirs, name)}, not {getattr(ours, name)}" for name in differing)
        raise SupervisionError(
            f"the teacher {teacher.reference} wants images prepared otherwise than the model ({said}), and "
            "one batch goes to both: train with the teacher's, preprocessing=teacher.preprocessing of "
            "spile.train, or give a module that converts the images first"
        )
