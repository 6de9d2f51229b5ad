"""EfficientNet-Lite0 in Keras, with the layers and the weights of timm's ``tf_efficientnet_lite0``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from spile import demo_weights
from spile.errors import ModelError
from spile.keras.applications import imagenet_classes
from spile.keras.files import load_weights
from spile.loading import Built, Options, did_you_mean
from spile.preprocessing import ImagePreprocessing

Conv = Callable[..., keras.Layer]

_STAGES = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6), (3, 112, 5, 1, 6),
           (4, 192, 5, 2, 6), (1, 320, 3, 1, 6))  # fmt: skip
"""Blocks, channels, kernel, stride of the first block, expansion: table 1 of arXiv:1905.11946, without the
squeeze-and-excitation and with the stem and the head not scaled."""


def from_demo(name: str, options: Options) -> Built:
    """A pretrained Keras model whose weights come with a Python package: no network needed."""
    if name != "efficientnet_lite0_keras":
        raise ModelError(
            f"There is no demo model {name!r}. {did_you_mean('demo:', name, demo_weights.NAMES)}"
        )
    own = options.pretrained and options.weights is None
    weights = demo_weights.efficientnet_lite0() if own else []
    model = efficientnet_lite0("zeros" if own else "glorot_uniform")  # on JAX random numbers take seconds
    if own:
        _assign(model, weights)
    elif options.weights is not None:
        load_weights(model, options.weights)
    spec = ImagePreprocessing(
        resize=256, crop=(224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    return Built(
        model=model,
        preprocessing=spec.at(options.input_size) if options.input_size is not None else spec,
        classes=imagenet_classes() if own else None,
        channels_last=_channels_last(),
    )


@keras.saving.register_keras_serializable(package="spile")
class BatchNormAct(keras.layers.BatchNormalization):
    """Batch normalisation and ReLU6 in one layer, as timm's ``BatchNormAct2d``."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise, then limit to 0 to 6."""
        return keras.ops.relu6(super().call(inputs, training=training, mask=mask))


@keras.saving.register_keras_serializable(package="spile")
class DepthwiseSeparableConv(keras.Model):
    """A depthwise and a pointwise convolution."""


@keras.saving.register_keras_serializable(package="spile")
class InvertedResidual(keras.Model):
    """A pointwise convolution to more channels, a depthwise one, a pointwise one to few, and a shortcut."""


def efficientnet_lite0(initializer: str = "glorot_uniform") -> keras.Model:
    """The architecture alone, for images of any size; the output is logits of 1000 classes."""
    conv = partial(_conv, initializer)
    inputs = keras.Input(_shape(3))
    x = conv(32, 3, 2, name="conv_stem")(inputs)
    x = _norm_act("bn1")(x)
    stages: list[keras.Layer] = []
    channels = 32
    for repeats, width, kernel, stride, expansion in _STAGES:
        blocks = []
        for number in range(repeats):
            step = stride if number == 0 else 1
            blocks.append(_block(conv, str(number), channels, width, kernel, step, expansion))
            channels = width
        stages.append(keras.Sequential(blocks, name=str(len(stages))))
    x = keras.Sequential(stages, name="blocks")(x)
    x = conv(1280, 1, name="conv_head")(x)
    x = _norm_act("bn2")(x)
    x = keras.layers.GlobalAveragePooling2D(data_format=_format(), name="global_pool")(x)
    outputs = keras.layers.Dense(1000, kernel_initializer=initializer, name="classifier")(x)
    return keras.Model(inputs, outputs, name="efficientnet_lite0")


def _block(
    conv: Conv, name: str, channels: int, width: int, kernel: int, stride: int, expansion: int
) -> keras.Model:
    inputs = x = keras.Input(_shape(channels))
    depthwise = conv(None, kernel, stride, name="conv_dw")
    if expansion == 1:
        x = _norm_act("bn1")(depthwise(x))
        x = _norm("bn2")(conv(width, 1, name="conv_pw")(x))
        return DepthwiseSeparableConv(inputs=inputs, outputs=x, name=name)
    x = _norm_act("bn1")(conv(channels * expansion, 1, name="conv_pw")(x))
    x = _norm_act("bn2")(depthwise(x))
    x = _norm("bn3")(conv(width, 1, name="conv_pwl")(x))
    if stride == 1 and channels == width:
        x = keras.layers.Add(name="add")([inputs, x])
    return InvertedResidual(inputs=inputs, outputs=x, name=name)


def _conv(initializer: str, filters: int | None, kernel: int, stride: int = 1, *, name: str) -> keras.Layer:
    """A convolution; one for each channel, without filters."""
    options: dict[str, Any] = {"padding": "same", "use_bias": False, "data_format": _format(), "name": name}
    if filters is None:
        return keras.layers.DepthwiseConv2D(kernel, stride, depthwise_initializer=initializer, **options)
    return keras.layers.Conv2D(filters, kernel, stride, kernel_initializer=initializer, **options)


def _norm(name: str) -> keras.Layer:
    return keras.layers.BatchNormalization(_axis(), epsilon=1e-3, name=name)


def _norm_act(name: str) -> keras.Layer:
    return BatchNormAct(_axis(), epsilon=1e-3, name=name)


def _assign(model: keras.Model, weights: Iterable[NDArray[Any]]) -> None:
    """PyTorch's tensors in the order of the layers, without the batch counters of its normalisations."""
    remaining = iter([array for array in weights if array.ndim])
    for layer in _leaves(model):
        layer.set_weights([_in_keras_order(layer, next(remaining)) for _ in layer.weights])
    if next(remaining, None) is not None:
        raise ModelError("the weights of EfficientNet-Lite0 are more than the model has")


def _in_keras_order(layer: keras.Layer, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 4:
        return array.transpose(
            (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0)
        )
    return np.transpose(array)


def _leaves(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _shape(channels: int) -> tuple[int | None, ...]:
    return (None, None, channels) if _channels_last() else (channels, None, None)


def _axis() -> int:
    return -1 if _channels_last() else 1


def _channels_last() -> bool:
    return _format() == "channels_last"


def _format() -> str:
    return str(keras.config.image_data_format())
