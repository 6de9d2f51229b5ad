"""Operations on the activations of one layer of a Keras model while it is trained; see `spile.at_layer`.

For training loops of one's own that run layer by layer. A compiled step would keep the numbers it was traced
with, so that is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from spile.augmentation.features import (
    FeatureDropout,
    FeatureNoise,
    FeatureOperation,
    ManifoldMixup,
    MoEx,
    Plan,
    dropped,
    mixed_labels,
    plan,
)
from spile.augmentation.randomness import Draw
from spile.errors import AugmentationError, CaptureError
from spile.keras.names import names_of
from spile.keras.observing import observe
from spile.keras.trees import is_tensor
from spile.resolution import Point, resolve

_EPSILON = 1e-5


class AtLayer:
    """Changes what one layer gives in the pass after `step`; `close` takes it off again."""

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
        if len(points) != 1 or points[0].side != "out" or points[0].item or not points[0].only_call:
            names = ", ".join(point.name for point in points[:8])
            raise AugmentationError(f"at={at!r} names {names}: name the output of one layer that runs once")
        self.point: Point = points[0]
        self.operation = operation
        self._seed, self._classes = seed, classes
        self._drawn: Plan | None = None
        self._layer = next(layer for layer, names in names_of(model).items() if self.point.path in names)
        self._before = vars(self._layer).get("call")
        call = self._layer.call

        @functools.wraps(call)
        def changed(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            drawn, self._drawn = self._drawn, None
            return output if drawn is None else self._changed(output, drawn)

        object.__setattr__(self._layer, "call", changed)

    def step(self, labels: Any, *, ids: Sequence[Any], epoch: int) -> Any:
        """Draw for the training batch that comes, and say what its labels are: (n, classes) weights."""
        numbers = np.asarray(ops.convert_to_numpy(labels) if is_tensor(labels) else labels)
        if len(ids) != len(numbers):
            raise AugmentationError(f"{len(ids)} ids for {len(numbers)} labels: pass one a sample")
        if self._drawn is not None:
            raise CaptureError(
                f"{self.point.name} did not run since the last step: a compiled training step keeps what it "
                "was traced with, so write the loop without compiling, and call step before each batch"
            )
        if numbers.ndim == 1:
            if self._classes is None:
                raise AugmentationError("write classes= (of spile.at_layer), or pass labels as weights")
            numbers = np.eye(self._classes)[numbers.astype(int)]
        self._drawn = plan(self.operation, ids, Draw(self._seed, epoch))
        return mixed_labels(numbers, self._drawn)

    def close(self) -> None:
        """Leave the model as it was."""
        if "call" in vars(self._layer):
            object.__delattr__(self._layer, "call")
            if self._before is not None:
                object.__setattr__(self._layer, "call", self._before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _changed(self, x: Any, drawn: Plan) -> Any:
        axes = self.point.layout or "BC"
        if axes[0] != "B" or int(x.shape[0]) != len(drawn.partners):
            raise CaptureError(
                f"{self.point.name} holds {list(x.shape)}, and step was told of {len(drawn.partners)} samples"
            )
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
                generators = (np.random.Generator(np.random.Philox(key)) for key in drawn.keys)
                noise = np.stack([each.standard_normal(tuple(x.shape[1:])) for each in generators])
                scale = ops.std(ops.stop_gradient(x), axis=tuple(range(1, len(x.shape))), keepdims=True)
                return x + std * scale * ops.cast(noise, dtype)
            case FeatureDropout() as operation:
                if sorted(axes) != ["B", "C", "X", "Y"]:
                    raise AugmentationError(f"{self.point.name} is no map: FeatureDropout drops cells of one")
                return x * ops.cast(self._kept(operation, x, axes.index("C"), drawn), dtype)
        raise AugmentationError(f"{self.operation!r} is no operation at a layer")

    def _kept(self, operation: FeatureDropout, x: Any, channels: int, drawn: Plan) -> Any:
        shape = [int(n) for axis, n in enumerate(x.shape) if axis != channels]
        strength = np.zeros(shape)
        if operation.at == "active":
            value = ops.sum(ops.square(ops.stop_gradient(x)), axis=channels)
            try:
                strength = np.asarray(ops.convert_to_numpy(value))
            except Exception as error:  # JAX traces a pass that it differentiates
                raise AugmentationError(
                    f"{self.point.name}: which cells are active is not known while JAX traces the pass: "
                    "write FeatureDropout(at='random')"
                ) from error
        return np.expand_dims(dropped(operation, strength, drawn), channels)
