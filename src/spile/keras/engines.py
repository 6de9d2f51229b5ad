"""How a tap is run during extraction: compiled by Keras' backend, or as it is."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from spile.backend import EngineName, Precision
from spile.errors import ModelError
from spile.keras.images import is_images, normalised
from spile.keras.names import names_of
from spile.keras.runtime import Compiled, runtime
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
        arrays = transform(checked(inputs, self._preprocessing), _as_array)
        rows = _rows(arrays)
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

    def body(state: Sequence[Any] | None, inputs: Any) -> dict[str, Any]:
        if preprocessing is not None and is_images(inputs):
            inputs = normalised(inputs, preprocessing)
        with _tracing:
            return tap.run(called_with(tap.model, (inputs,), {}), state)

    def compiled() -> Compiled:
        return runtime().compiled(body, tap.model.variables)

    own = all(type(layer).__module__.startswith("keras.") for layer in names_of(tap.model))
    if tap.mode != "eval" or not own:
        return compiled()
    key = preprocessing, architecture_hash(tap.model)
    if key not in tap.programs:
        tap.programs[key] = compiled()
    program: Compiled = tap.programs[key]
    return program


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


class AutoEngine:
    """Compiled where the pass can be traced and the run is long enough; else eager.

    Which of the two is known after the first batch, from which the tap may have yet to learn its points.
    """

    versions: Mapping[str, str] = {}

    def __init__(
        self,
        tap: Tap,
        *,
        preprocessing: ImagePreprocessing | None,
        asked: EngineName,
        samples: int | None = None,
    ) -> None:
        self._tap = tap
        self._preprocessing = preprocessing
        self._asked = asked
        self._samples = samples
        self._chosen: EagerEngine | CompiledEngine | None = None
        self.notes: dict[str, Any] = {"asked": asked}

    @property
    def name(self) -> str:
        """``compile`` or ``eager``; before the first batch what was asked for."""
        return self._asked if self._chosen is None else self._chosen.name

    @property
    def at_once(self) -> int:
        """That of the engine that was chosen; the first batch, which chooses it, runs alone."""
        return 1 if self._chosen is None else self._chosen.at_once

    def __call__(self, inputs: Any) -> _Arrays:
        """Run one batch. Raises `ModelError` where it was asked to be compiled, and cannot."""
        if self._chosen is None:
            ready = model_inputs(inputs, preprocessing=self._preprocessing)
            self._tap.learn(called_with(self._tap.model, (ready,), {}))
            unfit = self._unfit(_rows(inputs))
            if unfit and self._asked == "compile":
                raise ModelError(
                    f"engine 'compile' cannot run this tap: {unfit}. Leave engine at 'auto', or write 'eager'"
                )
            self.notes["why"] = unfit or "the backend's own compiler runs the same pass"
            kind = EagerEngine if unfit else CompiledEngine
            self._chosen = kind(self._tap, preprocessing=self._preprocessing)
        return self._chosen(inputs)

    def _unfit(self, rows: int) -> str:
        if not self._tap.traceable:
            return "the pass cannot be traced"
        short = self._samples is not None and self._samples < rows * runtime().least_batches
        if short and self._asked == "auto" and not self._tap.programs:
            return f"the run is too short: {self._samples} samples in batches of {rows}"
        return ""


def engine_for(
    tap: Tap,
    *,
    name: EngineName,
    preprocessing: ImagePreprocessing | None,
    precision: Precision,
    samples: int | None = None,
) -> AutoEngine | EagerEngine:
    """The engine of this name; see `spile.extract`."""
    if precision != "float32":
        raise ModelError(
            f"precision {precision!r} is not for Keras models, whose layers have their own: build the model "
            "under keras.config.set_dtype_policy('mixed_bfloat16') and leave precision at 'float32'"
        )
    if name == "openvino":
        raise ModelError(
            "engine 'openvino' runs PyTorch models; for Keras write 'auto', 'compile' or 'eager'"
        )
    if name == "eager":
        return EagerEngine(tap, preprocessing=preprocessing)
    return AutoEngine(tap, preprocessing=preprocessing, asked=name, samples=samples)


def _rows(arrays: Any) -> int:
    return next(len(leaf) for leaf in keras.tree.flatten(arrays) if is_array(leaf))


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    array = keras.ops.convert_to_numpy(value) if is_tensor(value) else np.asarray(value)
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


def _array(value: Any) -> np.ndarray[Any, Any]:
    if keras.backend.standardize_dtype(value.dtype) in ("float16", "bfloat16"):
        value = keras.ops.cast(value, "float32")
    array: np.ndarray[Any, Any] = keras.ops.convert_to_numpy(value)
    return array
