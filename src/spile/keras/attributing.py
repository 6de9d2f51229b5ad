"""Gradients of a class score by an activation, on every backend of Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from spile.errors import AugmentationError
from spile.keras.names import names_of
from spile.keras.observing import stateless
from spile.keras.runtime import runtime
from spile.keras.taps import Tap
from spile.keras.watching import watching_calls


def score_gradients(tap: Tap, images: Any, labels: Any) -> tuple[Any, Any]:
    """The activation at the tap's point and the gradient of each image's class score by it.

    A variable of zeros is added to the activation, and the gradient taken by that: the backends have
    gradients by variables in common.
    """
    (point,) = tap.points
    if point.side != "out" or point.item is not None or not point.only_call:
        raise AugmentationError(
            f"gradcam reads the output of a layer that runs once, not {point.name}: name one such layer"
        )
    output, activations = tap.with_output(images)
    (value,) = activations.values()
    if not hasattr(output, "shape") or len(output.shape) != 2:
        raise AugmentationError("gradcam needs a model whose output is scores (n, classes)")
    chosen = _classes(labels, ops.convert_to_numpy(output))
    nudge = keras.Variable(np.zeros(value.shape, np.float32), name="nudge")
    layer = next(layer for layer, found in names_of(tap.model).items() if point.path in found)

    def body(state: Sequence[Any] | None) -> list[Any]:
        added = nudge.value if state is None else state[0]

        def watch(_: keras.Layer, run: Callable[[], Any], __: Any, ___: Any) -> Any:
            out = run()
            return out + ops.cast(added, out.dtype)

        with stateless(tap.model, None), watching_calls([layer], watch):
            scores = tap.model(images, training=False)
        hot = ops.one_hot(chosen, int(scores.shape[1]), dtype="float32")
        return [ops.sum(ops.cast(scores, "float32") * hot)]

    ((gradient,),) = runtime().gradients(body, [nudge])
    assert gradient is not None
    return value, ops.convert_to_tensor(gradient)


def _classes(labels: Any, scores: Any) -> Any:
    if labels is None:
        return np.asarray(scores).argmax(1).astype(np.int32)
    chosen = np.asarray(labels)
    if chosen.ndim != 1 or chosen.min() < 0 or chosen.max() >= scores.shape[1]:
        raise AugmentationError(
            f"gradcam explains classes 0..{scores.shape[1] - 1} of the guide, and the labels lie in "
            f"{chosen.min()}..{chosen.max()}: pass labels of the guide's own classes, or none"
        )
    return chosen.astype(np.int32)
