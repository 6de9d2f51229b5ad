"""Operations on the activations of one layer of a Keras model while it is trained; see `spile.at_layer`.

For training loops of one's own that run layer by layer and call ``model(images, training=True)``. A compiled
step would keep the numbers it was traced with, so that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from spile.augmentation.features import (
    ISDA,
    FeatureDropout,
    FeatureNoise,
    FeatureOperation,
    ManifoldMixup,
    MoEx,
    Plan,
    SemanticNoise,
    Steps,
    dropped,
    noise,
    single_point,
)
from spile.errors import AugmentationError, CaptureError
from spile.keras.names import names_of
from spile.keras.observing import observe
from spile.keras.trees import is_tensor
from spile.keras.watching import wrap_call
from spile.resolution import resolve

_EPSILON = 1e-5


class AtLayer:
    """Changes what one layer gives in training passes only; `close` takes it off again."""

    def __init__(
        self,
        model: keras.Model,
        at: Any,
        operation: FeatureOperation,
        *,
        example: Any,
        seed: int,
        classes: int | None,
    ) -> None:
        points, _ = resolve(at, None, observe(model, example))
        self.point = single_point(points, at)
        self.operation = operation
        self.steps = Steps(operation, seed=seed, classes=classes)
        layer = next(layer for layer, names in names_of(model).items() if self.point.path in names)
        self._model = model
        self._training = False
        self._undo = [wrap_call(model, self._begin), wrap_call(layer, self._change)]

    def step(self, labels: Any, *, ids: Sequence[Any], epoch: int, progress: float | None = None) -> Any:
        """Draw for the training batch that comes, and say what its labels are: (n, classes) weights.

        `progress` is the share of training that is done; `ISDA` and `SemanticNoise` grow with it.
        """
        if self.steps.waiting:
            raise CaptureError(
                f"{self.point.name} did not run in training since the last step: a compiled training step "
                "keeps what it was traced with, so write the loop without compiling: step, then "
                "model(images, training=True)"
            )
        numbers = np.asarray(ops.convert_to_numpy(labels) if is_tensor(labels) else labels)
        return self.steps.begin(numbers, ids, epoch, progress)

    def bound(self, logits: Any, weight: Any) -> Any:
        """Of `ISDA`: the logits (n, classes) whose cross-entropy with the labels is the bound of the paper.

        `weight` (features, classes) is that of the linear classifier, ``dense.kernel``; gradients flow into
        it. Call it after the pass, in training.
        """
        w = ops.transpose(ops.convert_to_tensor(weight))
        labels, half = self.steps.bounded(self.point, int(logits.shape[0]), int(w.shape[1]))
        spread = ops.cast(ops.convert_to_tensor(half.astype(np.float32)), w.dtype)
        if len(spread.shape) == 2:
            own = ops.matmul(spread, ops.transpose(ops.square(w)))
            crossed = ops.matmul(spread * w, ops.transpose(w))
        else:
            turned = ops.einsum("kd,ced->cke", w, spread)
            own, crossed = ops.sum(turned * w, axis=2), ops.einsum("cke,ce->ck", turned, w)
        # (classes y, classes j) of (w_j - w_y)ᵀ Σ_y (w_j - w_y) λ/2
        added = own - 2 * crossed + ops.expand_dims(ops.diagonal(own), 1)
        return logits + ops.cast(ops.take(added, labels.astype(np.int32), axis=0), logits.dtype)

    def close(self) -> None:
        """Leave the model as it was."""
        for undo in reversed(self._undo):
            undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A model that is not told whether it trains does so where a batch was told of.
        told = getattr(self._model, "_call_has_training_arg", True)
        before, self._training = self._training, bool(kwargs.get("training") if told else self.steps.waiting)
        try:
            return run()
        finally:
            self._training = before

    def _change(self, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = run()
        if not self._training:
            return output
        axes = self.point.layout or "BC"
        drawn = self.steps.take(self.point, int(output.shape[axes.index("B")]))
        if drawn is None:
            raise CaptureError(
                f"{self.point.name}: call step(labels, ids=ids, epoch=epoch) before every training batch"
            )
        if axes[0] != "B":
            raise CaptureError(f"{self.point.name} has its samples on another axis than the first")
        return self._changed(output, axes, drawn)

    def _changed(self, x: Any, axes: str, drawn: Plan) -> Any:
        wide = [1] * (len(x.shape) - 1)
        dtype = keras.backend.standardize_dtype(x.dtype)
        partners = np.asarray(drawn.partners, np.int32)
        match self.operation:
            case ManifoldMixup():
                own = ops.cast(drawn.own.reshape(-1, *wide), dtype)
                return own * x + (1 - own) * ops.take(x, partners, axis=0)
            case MoEx():
                channels = axes.index("C")
                mean = ops.mean(x, axis=channels, keepdims=True)
                std = ops.sqrt(ops.var(x, axis=channels, keepdims=True) + _EPSILON)
                return (x - mean) / std * ops.take(std, partners, axis=0) + ops.take(mean, partners, axis=0)
            case FeatureNoise(std=std):
                scale = ops.std(ops.stop_gradient(x), axis=tuple(range(1, len(x.shape))), keepdims=True)
                return x + std * scale * ops.cast(noise(drawn, x.shape[1:]), dtype)
            case FeatureDropout() as operation:
                channels = axes.index("C")
                strength = np.zeros([int(n) for axis, n in enumerate(x.shape) if axis != channels])
                if operation.at == "active":
                    strength = self._known(ops.sum(ops.square(ops.stop_gradient(x)), axis=channels))
                kept = np.expand_dims(dropped(operation, strength, drawn, axes, self.point), channels)
                return x * ops.cast(kept, dtype)
            case SemanticNoise() | ISDA():
                channels = axes.index("C")
                others = tuple(axis for axis in range(1, len(x.shape)) if axis != channels)
                value = ops.stop_gradient(x)
                added = self.steps.learn(
                    self._known(ops.mean(value, axis=others) if others else value), drawn
                )
                shape = [
                    -1,
                    *(int(x.shape[axis]) if axis == channels else 1 for axis in range(1, len(x.shape))),
                ]
                return x if added is None else x + ops.cast(added.reshape(shape), dtype)
        raise AugmentationError(f"{self.operation!r} is no operation at a layer")

    def _known(self, value: Any) -> np.ndarray[Any, Any]:
        """A value on the host."""
        try:
            return np.asarray(ops.convert_to_numpy(value))
        except Exception as error:  # JAX traces a pass that it differentiates
            raise AugmentationError(
                f"{self.point.name}: the activations are not known while JAX traces the pass: take an "
                "operation that needs none of them, such as FeatureDropout(at='random')"
            ) from error
