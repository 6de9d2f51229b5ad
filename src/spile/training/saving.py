"""A trained model as `spile.load`, `spile predict` and ``-m RUN`` take it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from spile import saved
from spile.backend import backend_of
from spile.data import Source
from spile.errors import SpileError, TrainingError
from spile.interfaces import Trained
from spile.models import LoadedModel, rebuildable
from spile.probing.logits import Logits
from spile.probing.preparing import example_of, few_samples, images_of
from spile.probing.saving import verified
from spile.supervision.settings import MainOutput
from spile.taps import tap as make_tap

_FOLDER = "model"


def save(
    folder: Path, loaded: LoadedModel, *, classes: tuple[Any, ...], main: MainOutput, source: Source
) -> tuple[Path, str]:
    """Write ``model/`` in the run's folder; gives the file of the weights, and what keeps it from use.

    The weights are written whatever happens. The rest, ``model.json``, is there only where the model that is
    loaded back gives the logits of the one that was trained, on a few samples of the data.
    """
    target = folder / _FOLDER
    target.mkdir(exist_ok=True)
    (target / saved.DESCRIPTION).unlink(missing_ok=True)
    few = few_samples(loaded, source)
    example = example_of(loaded, few)
    trained = backend_of(loaded.model).save_trained(
        loaded, example, target, rebuildable=rebuildable(loaded.reference)
    )
    if trained.problem:
        return trained.weights, trained.problem
    try:
        _describe(target, trained, loaded, classes, main, few, example)
    except SpileError as error:
        (target / saved.DESCRIPTION).unlink(missing_ok=True)
        return trained.weights, str(error)
    return trained.weights, ""


def _describe(
    target: Path,
    trained: Trained,
    loaded: LoadedModel,
    classes: tuple[Any, ...],
    main: MainOutput,
    few: Any,
    example: Any,
) -> None:
    if callable(main):
        raise TrainingError("main= is a function, which is not saved: name a key, attribute or position")
    address = "@out" if main is None else f"@out:{main}"
    with closing(make_tap(loaded, {"logits": address}, pool=None, example=example)) as tap:
        (point,) = tap.points
        if point.shape != (len(classes),):
            raise TrainingError(
                f"the model gives {list(point.shape)}, not one logit for {len(classes)} classes"
            )
        shape = getattr(example, "shape", None)
        saved.write_description(
            target,
            {
                "reference": trained.reference,
                "points": [{"name": "logits", "address": address, "pool": "none"}],
                "preprocessing": loaded.preprocessing.to_json() if loaded.preprocessing else None,
                "classes": np.asarray(classes).tolist(),
                "ridge": None,
                "trained": {"example": None if shape is None else [int(length) for length in shape]},
                "input_size": loaded.input_size,
                "point": "logits",
                "macs": point.macs,
                "params": point.params,
            },
        )
        verified(target, tap, Logits(np.asarray(classes)), few, images_of(loaded))
