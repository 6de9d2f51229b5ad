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


def attentions(tap: Tap, images: Any) -> tuple[list[np.ndarray[Any, Any]], int]:
    """The attention matrices (n, heads, tokens, tokens) of every block, and how many tokens are no patches.

    The fused kernel never forms them, so each layer is asked for them, for this pass alone.
    """
    found = [each for each in names_of(tap.model) if isinstance(each, keras.layers.MultiHeadAttention)]
    if not found:
        raise AugmentationError(
            "rollout reads the attention of keras.layers.MultiHeadAttention, and this guide has none: use "
            "reduce='l2'"
        )
    kept: list[np.ndarray[Any, Any]] = []

    def watch(layer: keras.Layer, _: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked = kwargs.get("return_attention_scores", False)
        output, scores = type(layer).call(layer, *args, **{**kwargs, "return_attention_scores": True})
        kept.append(np.asarray(ops.convert_to_numpy(ops.cast(scores, "float32"))))
        return (output, scores) if asked else output

    with stateless(tap.model, None), watching_calls(found, watch):
        tap.model(images, training=False)
    wrong = next((each.shape for each in kept if each.ndim != 4 or each.shape[2] != each.shape[3]), None)
    if wrong is not None or len({each.shape[2] for each in kept}) != 1:
        shapes = wrong or sorted({each.shape for each in kept})
        raise AugmentationError(
            f"rollout follows one row of tokens through self-attention, and this guide attends by "
            f"{shapes}: use reduce='l2'"
        )
    return kept, tap.prefix_tokens(tap.points[0])
