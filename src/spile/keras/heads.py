"""Heads as Keras layers: the operations of `spile.supervision.heads`, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from spile import pool as pools
from spile.errors import SupervisionError
from spile.keras.pooling import pooled
from spile.supervision import operations as plan
from spile.supervision.operations import Operation

PACKAGE = "spile"


@keras.saving.register_keras_serializable(PACKAGE)
class Head(keras.Layer):
    """One auxiliary head: features as its layer gives them, samples on any axis, to (samples, outputs).

    What follows a pool computes in float32, also where the layers before it are in half precision.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        layout: str,
        prefix_tokens: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.operations = tuple(operations)
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        ends = [i for i, operation in enumerate(operations) if isinstance(operation, plan.Pooling)]
        self._pooled_at = ends[0] if ends else len(operations)
        self.steps = [
            _layer(operation, self.dtype_policy if index < self._pooled_at else "float32")
            for index, operation in enumerate(operations)
        ]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights; their shapes are all in the operations."""
        for index, (operation, step) in enumerate(zip(self.operations, self.steps, strict=True)):
            rank = len(input_shape) if index < self._pooled_at else 2
            if isinstance(operation, plan.GroupNorm | plan.LayerNorm):
                step.build((*(None,) * (rank - 1), operation.channels))
            elif isinstance(operation, plan.Conv | plan.Dense):
                step.build((*(None,) * (rank - 1), operation.inputs))

    def call(self, features: Any, padding_mask: Any = None) -> Any:
        """Scores. `padding_mask` (samples, tokens) is true where a token is real."""
        return self.with_features(features, padding_mask)[0]

    def with_features(self, features: Any, padding_mask: Any = None) -> tuple[Any, Any]:
        """Scores, and what the last layer reads: the head's own features."""
        x, order = canonical(features, self.layout)
        read = x
        for operation, step in zip(self.operations, self.steps, strict=True):
            read = x
            if isinstance(operation, plan.Pooling):
                x = pooled(
                    x,
                    pools.parse(operation.name),
                    order,
                    prefix_tokens=self.prefix_tokens,
                    mask=padding_mask,
                )
            else:
                x = step(x)
        return x, read

    def compute_output_shape(self, input_shape: Sequence[int | None], *_: Any) -> tuple[int | None, ...]:
        """Scores a sample, or a cell."""
        last = self.operations[-1]
        size = () if isinstance(last, plan.Dense) else tuple(input_shape[1:3])
        return (input_shape[self.layout.index("B")], *size, last.outputs)  # type: ignore[union-attr]

    def get_config(self) -> dict[str, Any]:
        """Operations by name."""
        own = {
            "operations": plan.described(self.operations),
            "layout": self.layout,
            "prefix_tokens": self.prefix_tokens,
        }
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Head:
        """The head that `get_config` described."""
        return cls(plan.operations_of(config.pop("operations")), **config)


@keras.saving.register_keras_serializable(PACKAGE)
class _Convolution(keras.Layer):
    """Padded by half its kernel on either side, as in PyTorch: Keras' own ``same`` pads by the input's
    parity."""

    def __init__(self, operation: plan.Conv, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        options: dict[str, Any] = {
            "strides": operation.stride,
            "use_bias": operation.bias,
            "data_format": "channels_last",
            "dtype": self.dtype_policy,
        }
        self.pad = keras.layers.ZeroPadding2D(operation.kernel // 2, data_format="channels_last")
        if operation.groups == operation.inputs == operation.outputs and operation.groups > 1:
            # Not a grouped convolution, which TensorFlow cannot train on the CPU.
            self.conv = keras.layers.DepthwiseConv2D(
                operation.kernel, depthwise_initializer="he_uniform", **options
            )
        else:
            self.conv = keras.layers.Conv2D(
                operation.outputs,
                operation.kernel,
                groups=operation.groups,
                kernel_initializer="he_uniform",
                **options,
            )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """The weights."""
        self.conv.build(input_shape)

    def call(self, x: Any) -> Any:
        """Pad and convolve."""
        return self.conv(self.pad(x) if self.conv.kernel_size[0] > 1 else x)


def _layer(operation: Operation, dtype: Any) -> keras.Layer:
    layers = keras.layers
    match operation:
        case plan.Conv():
            return _Convolution(operation, dtype=dtype)
        case plan.GroupNorm():
            return layers.GroupNormalization(operation.groups, epsilon=plan.EPSILON, dtype=dtype)
        case plan.LayerNorm():
            return layers.LayerNormalization(epsilon=plan.EPSILON, dtype=dtype)
        case plan.Activation():
            return layers.Activation(operation.name, dtype=dtype)
        case plan.Pooling():
            return layers.Identity(dtype=dtype)
        case plan.Dense():
            return layers.Dense(operation.outputs, dtype=dtype)
    raise SupervisionError(f"{operation!r} is no operation of a head")


def canonical(x: Any, layout: str) -> tuple[Any, str]:
    """Features with samples first and channels last, and the order of their axes then."""
    order = {"BCXY": "BYXC", "BCT": "BTC", "BC": "BC"}["".join(sorted(layout))]
    axes = [layout.index(axis) for axis in order]
    return (x if axes == sorted(axes) else keras.ops.transpose(x, axes)), order
