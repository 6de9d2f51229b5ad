"""A tap and the model fitted on it as one `.keras` file that is made of Keras' own layers only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from spile.backend import Runner
from spile.errors import ModelError
from spile.keras.exporting import first_sentence, read_back
from spile.keras.taps import Tap
from spile.keras.trees import called_with, declared_inputs
from spile.linear import LinearHead
from spile.preprocessing import ImagePreprocessing

FORMATS = {"keras": "model.keras"}


def save_whole(
    tap: Tap,
    head: LinearHead,
    inputs: Any,
    folder: Path,
    formats: tuple[str, ...],
    *,
    images: ImagePreprocessing | None,
    about: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the file; `inputs` is a batch as `spile.data` reads it, `about` is not in this format.

    Raises `ModelError` for a model without a graph (a subclass), or one whose layers Keras cannot save.
    """
    declared = declared_inputs(tap.model)
    if declared is None or not hasattr(declared, "shape"):
        raise ModelError(
            f"{type(tap.model).__name__} has no graph of one input, so its layers cannot be put into a new "
            "model: use the saved folder, spile.load('run'), or build the model with the functional API"
        )
    pixels = isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4
    whole = _whole(tap, head, inputs.shape[1:] if pixels else declared.shape[1:], images if pixels else None)
    path = folder / FORMATS["keras"]
    try:
        whole.save(path)
    except Exception as error:  # the user's own layers: anything may come out
        raise ModelError(f"the model cannot be saved to {path}: {first_sentence(error)}") from error
    return dict.fromkeys(formats, path)


def _whole(
    tap: Tap, head: LinearHead, shape: tuple[int, ...], images: ImagePreprocessing | None
) -> keras.Model:
    declared = declared_inputs(tap.model)
    entry = keras.Input(shape, dtype=declared.dtype if images is None else "uint8", name="images")
    x = entry if images is None else _normalised(entry, images)
    found = tap.run(called_with(tap.model, (x,), {}))
    parts = [keras.layers.Flatten()(value) for value in found.values()]
    if head.unit_rows:
        parts = [keras.layers.UnitNormalization()(part) for part in parts]
    joined = parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
    scaled = keras.layers.Normalization(mean=head.mean, variance=np.square(head.scale))(joined)
    activation = {"softmax": "softmax", "logistic": "sigmoid", "normalised": "sigmoid"}.get(head.link)
    dense = keras.layers.Dense(head.coef.shape[1], activation=activation, name="scores")
    scores = dense(scaled)
    dense.set_weights([head.coef, head.intercept])
    if head.link == "normalised":
        scores = keras.layers.UnitNormalization(name="shares")(keras.ops.sqrt(scores)) ** 2
    return keras.Model(entry, scores)


def _normalised(pixels: Any, images: ImagePreprocessing) -> Any:
    if images.channel_order == "BGR":
        pixels = keras.ops.flip(pixels, axis=-1)
    std = np.asarray(images.std)
    scale, offset = (images.scale / std).tolist(), (-np.asarray(images.mean) / std).tolist()
    return keras.layers.Rescaling(scale, offset)(pixels)


def open_whole(path: Path, name: str) -> Runner:
    """A function from a batch as `spile.data` reads it to scores (n, c), which runs the file."""
    model = read_back(path)

    def run(inputs: Any) -> np.ndarray[Any, Any]:
        return np.asarray(keras.ops.convert_to_numpy(model(inputs, training=False)))

    return run
