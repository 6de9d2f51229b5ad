"""How a tap is run during extraction: compiled by Keras' backend, or as it is."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from spile.errors import ModelError
from spile.keras.images import is_images, normalised
from spile.keras.names import names_of
from spile.keras.runtime import Body, Compiled, runtime
from spile.keras.taps import Tap
from spile.keras.trees import called_with, is_array, is_tensor, tensor_of, transform
from spile.keras.weights import architecture_hash
from spile.preprocessing import ImagePreprocessing

_Arrays = dict[str, np.ndarray[Any, Any]]


_tracing = threading.Lock()
"""A trace watches the model's layers; batches run at the same time must not trace at the same time."""


class EagerEngine:
    """The reference engine: one batch in, a float32 (or integer) NumPy array for every point out."""

    name = "eager"
    versions: Mapping[str, str] = {}
    notes: Mapping[str, Any] = {}
    at_once = 1

    def __init__(self, tap: Tap, *, preprocessing: ImagePreprocessing | None) -> None:
        self._tap = tap
        self._preprocessing = preprocessing

    def __call__(self, inputs: Any) -> _Arrays:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        with runtime().without_gradients():
            ready = model_inputs(inputs, preprocessing=self._preprocessing)
            found = self._tap.run(called_with(self._tap.model, (ready,), {}))
        return {name: _array(value) for name, value in found.items()}


class CompiledEngine:
    """The pass as one program of the backend's compiler (`tf.function`, `jax.jit`), normalisation included.

    Where a program is made for one batch size, a smaller batch is filled up with its last row, and the rows
    are dropped from the results: a last odd batch does not compile anew.
    """

    name = "compile"
    versions: Mapping[str, str] = {}
    notes: Mapping[str, Any] = {}
    at_once = 2
    """Neither XLA nor TensorFlow keeps all processors busy with one batch."""

    def __init__(self, tap: Tap, *, preprocessing: ImagePreprocessing | None) -> None:
        self._tap = tap
        self._preprocessing = preprocessing
        self._run = _program(tap, preprocessing)
        self._batched = {point.name for point in tap.points if point.layout is not None}
        self._rows = 0

    def __call__(self, inputs: Any) -> _Arrays:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        arrays = as_arrays(checked(inputs, self._preprocessing))
        rows = rows_of(arrays)
        if not runtime().fixed_batch:
            return self._run(arrays)
        self._rows = max(self._rows, rows)
        missing = self._rows - rows
        filled = transform(arrays, lambda a: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]))
        found = self._run(filled if missing else arrays)
        return {name: value[:rows] if name in self._batched else value for name, value in found.items()}


def _program(tap: Tap, preprocessing: ImagePreprocessing | None) -> Compiled:
    """The compiled pass: that of an earlier extraction with this tap where it is sure to be the same one.

    Weights are read when it runs. All else is fixed when it is traced, so the layers must be as they were;
    only Keras' own layers tell all of that in their configuration.
    """

    def compiled() -> Compiled:
        return runtime().compiled(pass_of(tap, preprocessing), tap.model.variables)

    own = all(type(layer).__module__.startswith("keras.") for layer in names_of(tap.model))
    if tap.mode != "eval" or not own:
        return compiled()
    key = preprocessing, architecture_hash(tap.model)
    if key not in tap.programs:
        tap.programs[key] = compiled()
    program: Compiled = tap.programs[key]
    return program


def pass_of(tap: Tap, preprocessing: ImagePreprocessing | None) -> Body:
    """What is compiled: images of 0..255 are normalised inside."""

    def body(state: Sequence[Any] | None, inputs: Any) -> dict[str, Any]:
        if preprocessing is not None and is_images(inputs):
            inputs = normalised(inputs, preprocessing)
        with _tracing:
            return tap.run(called_with(tap.model, (inputs,), {}), state)

    return body


def checked(inputs: Any, preprocessing: ImagePreprocessing | None) -> Any:
    """A batch, if it can be run. Raises `ModelError` for uint8 images whose preprocessing is not known."""
    if is_images(inputs) and preprocessing is None:
        raise ModelError(
            "uint8 images need the model's preprocessing, which a bare model object does not tell: pass "
            "preprocessing=spile.ImagePreprocessing(...), a model reference such as 'keras:ResNet50', or "
            "ready float arrays"
        )
    return inputs


def model_inputs(inputs: Any, *, preprocessing: ImagePreprocessing | None) -> Any:
    """A batch as the model takes it: uint8 pixels (samples, height, width, channels) are normalised."""
    inputs = checked(inputs, preprocessing)
    if is_images(inputs) and preprocessing is not None:
        return normalised(tensor_of(inputs), preprocessing)
    return transform(inputs, tensor_of)


def rows_of(arrays: Any) -> int:
    """Samples in a batch."""
    return next(len(leaf) for leaf in keras.tree.flatten(arrays) if is_array(leaf))


def as_arrays(inputs: Any) -> Any:
    """The batch, nested as it is, with its numbers in NumPy arrays."""
    return transform(inputs, _as_array)


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    array = keras.ops.convert_to_numpy(value) if is_tensor(value) else np.asarray(value)
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


def _array(value: Any) -> np.ndarray[Any, Any]:
    if keras.backend.standardize_dtype(value.dtype) in ("float16", "bfloat16"):
        value = keras.ops.cast(value, "float32")
    array: np.ndarray[Any, Any] = keras.ops.convert_to_numpy(value)
    return array
