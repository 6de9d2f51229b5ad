"""What a head is trained towards. Specs only; the losses are the framework's own, computed in float32.

Labels of a batch are class numbers, -1 where a row has none; soft labels are one row of probabilities a
sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from spile.errors import SupervisionError, nearest

Task = Literal["classification", "multilabel", "regression", "segmentation"]
MAIN = "main"
"""The name of the model's own output beside the addresses of the heads."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The loss of a head is the sum of its targets' losses, each times its `weight`."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        _in_range("weight", self.weight, 0, float("inf"))


@dataclass(frozen=True, kw_only=True)
class Labels(Target):
    """The labels of the batch: cross-entropy, binary cross-entropy, or squared error, by the task.

    Rows labelled -1 count nothing. A map of labels (segmentation) is brought to the head's size by nearest.
    """

    smoothing: float = 0.0
    """Label smoothing, for classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range("smoothing", self.smoothing, 0, 1)


@dataclass(frozen=True, kw_only=True)
class PseudoLabels(Target):
    """Confident predictions as labels of the rows that have none.

    The loss is the cross-entropy over confident rows, divided by all unlabelled ones (FixMatch, Sohn et al.
    2020, equation 4). Without gradient to where the predictions come from. ``loss.stats`` tells the coverage
    (share of unlabelled rows that are confident) and the precision (share of confident *labelled* rows that
    are right).
    """

    source: Literal["main", "ema", "given"] = "main"
    """The final head, an exponential moving average of the whole model, or ``sup.loss(...,
    soft_labels=p)``."""
    threshold: float | Literal["adaptive"] = 0.95
    """Fixed, or by class from running means of the confidence (FreeMatch, Wang et al. 2023, section 4.1)."""
    decay: float = 0.999
    """Of the moving averages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("source", self.source, ("main", "ema", "given"))
        _in_range("decay", self.decay, 0, 1)
        if self.threshold != "adaptive":
            _in_range("threshold", self.threshold, 0, 1, also="'adaptive'")


@dataclass(frozen=True, kw_only=True)
class SelfDistill(Target):
    """The model's deeper predictions: cross-entropy with them at `temperature`, times its square.

    Be Your Own Teacher (Zhang et al. 2019), section 3. The teacher gets no gradient of it.
    """

    source: Literal["main", "ensemble"] = "main"
    """The final head, or the mean of all heads' logits."""
    temperature: float = 3.0
    hint: float = 0.0
    """Weight of the squared distance between the head's own features and the final ones (same paper, loss
    3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("source", self.source, ("main", "ensemble"))
        _positive("temperature", self.temperature)
        _in_range("hint", self.hint, 0, float("inf"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher(Target):
    """Another network: its logits, a layer's features, or where that layer looks.

    ``logits``: as `SelfDistill`, Hinton et al. 2015. ``hint``: squared error between the teacher's features
    at `at` and a 1x1 projection of the head's tapped features, brought to one size (FitNets, Romero et al.
    2015). ``attention``: squared distance between the normalised maps of mean squared activation (Zagoruyko &
    Komodakis 2017, equation 2). The teacher runs in evaluation mode and without gradients.
    """

    model: Any
    """A model of the same framework, a reference such as ``"timm:resnet50"`` or the folder of a run of
    `spile.train`, or what `spile.load_model` gave."""
    at: str | Mapping[str, str] | None = None
    """Address in the teacher, for hints and attention; or one for each head, by the head's address."""
    kind: Literal["logits", "hint", "attention"] = "logits"
    temperature: float = 4.0

    # Not those of `Target`, to which all teachers of one weight are equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("kind", self.kind, ("logits", "hint", "attention"))
        _positive("temperature", self.temperature)
        if (self.at is None) != (self.kind == "logits"):
            raise SupervisionError(
                f"Teacher(kind={self.kind!r}, at={self.at!r}): features need the teacher's layer, "
                "logits none. "
                "Type: Teacher(model=net, kind='hint', at='layer3')"
            )


@dataclass(frozen=True, kw_only=True)
class SmoothedLabels(Target):
    """A moving average of the main output's probabilities, kept for every sample; for noisy labels.

    Temporal ensembling (Laine & Aila 2017), with start-up bias correction: the average of earlier epochs is
    the soft target of a sample. Nothing is learnt from a sample that is seen for the first time. Needs
    ``sup.loss(..., ids=rows)``: row numbers below `samples`.
    """

    samples: int
    decay: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range("decay", self.decay, 0, 1)
        if self.samples < 1:
            raise SupervisionError(f"samples={self.samples!r}: write the number of training rows")


Targets = Target | Iterable[Target] | Mapping[str, Target | Iterable[Target]]
"""For every auxiliary head; or by head, where ``"main"`` is the model's own output and ``"*"`` any other
head."""


def targets_of(targets: Targets | None, heads: Iterable[str]) -> dict[str, tuple[Target, ...]]:
    """The targets of ``"main"`` and of every head. `Labels` where nothing is said."""
    names = [MAIN, *heads]
    given = targets if isinstance(targets, Mapping) else {} if targets is None else {"*": targets}
    unknown = [name for name in given if name not in (*names, "*")]
    if unknown:
        near = nearest(str(unknown[0]), names, n=1)[0]
        raise SupervisionError(
            f"targets name {unknown[0]!r}, which is no head: did you mean {near!r}? Heads: {', '.join(names)}"
        )
    found = {}
    for name in names:
        wanted = given.get(name, Labels() if name == MAIN else given.get("*", Labels()))
        listed = (wanted,) if isinstance(wanted, Target) else tuple(wanted)
        if not listed or not all(isinstance(target, Target) for target in listed):
            raise SupervisionError(
                f"targets of {name!r} are {wanted!r}: write one or several of Labels, PseudoLabels, "
                "SelfDistill, "
                "Teacher, SmoothedLabels (from spile.supervision)"
            )
        found[name] = listed
    if any(isinstance(target, SelfDistill) for target in found[MAIN]):
        raise SupervisionError("the main output cannot be its own teacher: SelfDistill is for the heads")
    return found


def term_names(targets: Iterable[Target]) -> list[str]:
    """What the terms of a head's loss are called: ``labels``, ``teacher_hint``; a second one ``labels_2``."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for target in targets:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(target).__name__).lower()
        if isinstance(target, Teacher):
            name = f"{name}_{target.kind}"
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return names


def checked_task(task: Task, targets: Mapping[str, tuple[Target, ...]]) -> Task:
    """`task` itself. Raises `SupervisionError` for one that is unknown, or that has no such targets."""
    _one_of("task", task, get_args(Task))
    if task != "classification":
        wrong = {type(t).__name__ for listed in targets.values() for t in listed if _needs_classes(t)}
        if wrong:
            raise SupervisionError(
                f"{', '.join(sorted(wrong))} compare class probabilities, which task={task!r} has "
                "not: use Labels, or "
                "Teacher(kind='hint' or 'attention')"
            )
    return task


def _needs_classes(target: Target) -> bool:
    if isinstance(target, Teacher):
        return target.kind == "logits"
    return isinstance(target, PseudoLabels | SelfDistill | SmoothedLabels)


def _one_of(option: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = nearest(str(value), allowed, n=1)[0]
        choices = ", ".join(map(repr, allowed))
        raise SupervisionError(f"unknown {option} {value!r}: did you mean {near!r}? Allowed: {choices}")


def _in_range(option: str, value: object, low: float, high: float, *, also: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        upper = f" to {high:g}" if high < float("inf") else " or more"
        raise SupervisionError(
            f"{option}={value!r}: write a number of {low:g}{upper}{also and f', or {also}'}"
        )


def _positive(option: str, value: float) -> None:
    if not value > 0:
        raise SupervisionError(f"{option}={value!r}: write a number above 0")
