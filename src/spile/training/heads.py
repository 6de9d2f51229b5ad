"""The heads of a trained run: kept beside its model, and given back with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spile import saved
from spile.backend import backend_of
from spile.errors import TrainingError
from spile.interfaces import Supervised
from spile.models import LoadedModel, as_loaded, example_for, load_model
from spile.supervising import supervise
from spile.supervision.heads import HeadLike, HeadSpec, Kept
from spile.supervision.operations import described, operations_of
from spile.supervision.settings import MainOutput

_DESCRIPTION, _WEIGHTS = "heads.json", "heads.safetensors"
_FORMAT = 1


def save_heads(
    folder: Path, supervised: Supervised, *, example: Any, classes: int, main: MainOutput = None
) -> None:
    """Write the heads into the folder of the run's model, where `load_supervised` finds them."""
    specs = supervised.head_specs()
    shape = getattr(example, "shape", None)
    content = {
        "format": _FORMAT,
        "classes": classes,
        "example": None if shape is None else [int(length) for length in shape],
        "main": None if callable(main) else main,
        "heads": [
            {"name": point.name, "address": point.address, "operations": _plain(specs[point.name])}
            for point in supervised.points
        ],
    }
    supervised.save_heads(folder / _WEIGHTS)
    (folder / _DESCRIPTION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_supervised(
    run: str | Path,
    *,
    model: Any = None,
    head: Mapping[str, HeadLike] | None = None,
    main: MainOutput = None,
    device: str | None = None,
) -> Supervised:
    """The model of a run of `spile.train` with the heads it was trained with, as `spile.supervise` gives it.

    For early exits, above all: ``spile.load_supervised("run").exits((inputs, labels))``, whose inputs are as
    the model takes them and whose labels are numbers, in the order of the run's classes. What heads were
    trained towards and their weights are not kept.

    Args:
        run: the folder that `spile.train` wrote.
        model: the code of a PyTorch network of your own, ``"net.py:make"``, or ``run.loaded`` in the same
            session; it gets the weights of the run. By default the model in the folder, which for such code
            is an exported program: samples cannot leave one, so that it has no early exits.
        head: heads of your own, which are not in the folder, by address; their weights are.
        main: which of the model's outputs holds its logits, where that was told by a function.
        device: of the model that is loaded: ``cuda``, ``mps``; by default the CPU.

    Raises `TrainingError` where no heads were kept, `ModelError` where model or heads are others.
    """
    folder = Path(run)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    content = _read(folder, run)
    if model is None and saved.folder_of(folder) is None:
        raise TrainingError(
            f"{run} holds heads, but no model that can be loaded. Pass the one that was trained: "
            "spile.load_supervised(run, model=model)"
        )
    shape = content["example"]
    loaded = load_model(str(folder), device=device) if model is None else as_loaded(model)
    example = example_for(loaded) if shape is None else tuple(shape)
    if model is not None:
        loaded = _trained(loaded, folder, example, content["classes"])
    heads = {each["name"]: _head(each, head or {}) for each in content["heads"]}
    supervised = supervise(
        loaded,
        example=example,
        num_classes=content["classes"],
        taps={each["name"]: each["address"] for each in content["heads"]},
        head=heads,
        main=content["main"] if main is None else main,
        allow_large=tuple(heads),
    )
    supervised.load_heads(folder / _WEIGHTS)
    return supervised


def _trained(loaded: LoadedModel, folder: Path, example: Any, classes: int) -> LoadedModel:
    """The model with the classifier and the weights of the run; a Keras model is taken as it is."""
    backend = backend_of(loaded.model)
    model = backend.with_classifier(loaded.model, example, classes)
    if (folder / saved.WEIGHTS).is_file():
        backend.load_trained(model, folder / saved.WEIGHTS)
    return replace(loaded, model=model)


def _plain(spec: HeadSpec | None) -> list[dict[str, Any]] | None:
    return described(spec.built) if isinstance(spec, Kept) else None


def _head(kept: Mapping[str, Any], own: Mapping[str, HeadLike]) -> HeadLike:
    name = kept["name"]
    if kept["operations"] is not None:
        return Kept(operations_of(kept["operations"]))
    if name not in own:
        raise TrainingError(
            f"the head at {name!r} is a module of your own: spile.load_supervised(run, "
            f"head={{{name!r}: module}})"
        )
    return own[name]


def _read(folder: Path, run: str | Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except OSError:
        raise TrainingError(
            f"{run} holds no heads: it is no run of spile train, or one without them "
            "(supervise=spile.Supervision(), --supervise auto)"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is broken ({error}): make the run again") from error
    if version != _FORMAT:
        raise TrainingError(f"{path} has format {version!r}, and this spile reads {_FORMAT}")
    return dict(content)
