"""Weights of losses inside a compiled step: schedules as tables, the progress of training as variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from spile.supervision.weights import Schedule

_STEPS = 2000
"""Of a table; between them it is straight. Exact at every multiple of 0.05 %."""


class Progress(keras.Layer):
    """The share of training that is done, counted inside the step, so that several steps an execution count
    too.

    It is anchored at the start of every epoch; neither accumulation nor resuming can shift it.
    """

    def __init__(self) -> None:
        super().__init__(name="progress", trainable=False, dtype="float32")
        self.start = self._number("start", "float32")
        self.each = self._number("each", "float32")
        self.batches = self._number("batches", "int32")
        self.built = True

    def _number(self, name: str, dtype: str) -> keras.Variable:
        return self.add_weight(shape=(), name=name, dtype=dtype, initializer="zeros", trainable=False)

    def now(self) -> Any:
        """In 0..1."""
        return ops.clip(self.start + ops.cast(self.batches, "float32") * self.each, 0.0, 1.0)

    def begin(self, start: float, each: float = 0.0) -> None:
        """From `start` on, every batch adds `each`."""
        self.start.assign(start)
        self.each.assign(each)
        self.batches.assign(0)

    def length(self, epochs: int) -> int:
        """Batches of the last epoch, also where a checkpoint was made in the middle of one; 0: not known."""
        each, batches = float(ops.convert_to_numpy(self.each)), int(ops.convert_to_numpy(self.batches))
        return max(batches, round(1 / (epochs * each)) if each else 0)

    def follow(self) -> None:
        """One batch more is done."""
        self.batches.assign(self.batches + 1)


class ProgressCallback(keras.callbacks.Callback):
    """Tells a supervised model at the start of every epoch how far training is. `fit` adds it."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = 0
        self._batches: int | None = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Anchor the progress."""
        epochs = int(self.params.get("epochs") or 1)
        batches = self.params.get("steps") or self._batches
        if not batches and epoch:
            batches = self.model.progress.length(epochs)
        self.model.progress.begin(epoch / epochs, 1 / (epochs * batches) if batches else 0.0)
        self._counted = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count: of a stream it is not known before how many batches an epoch has."""
        self._counted = batch + 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Know how many there are, in a checkpoint too."""
        if self._counted:
            self._batches = self._counted
            # On TensorFlow the step that finds no further batch has counted itself.
            self.model.progress.batches.assign(self._counted)


class Table:
    """A schedule as a table over progress: its arithmetic is Python's, of which no step can be compiled."""

    def __init__(self, schedule: Schedule, heads: int) -> None:
        grid = (schedule.weights(step / _STEPS, heads) for step in range(_STEPS + 1))
        self._rows = np.array(list(grid), "float32").reshape(_STEPS + 1, heads)

    def at(self, progress: Any) -> Any:
        """The weights of the heads when `progress`, a scalar tensor, is done."""
        position = ops.cast(progress, "float32") * _STEPS
        below = ops.clip(ops.floor(position), 0, _STEPS - 1)
        rows, index = ops.convert_to_tensor(self._rows), ops.cast(below, "int32")
        share = position - below
        return ops.take(rows, index, axis=0) * (1 - share) + ops.take(rows, index + 1, axis=0) * share
