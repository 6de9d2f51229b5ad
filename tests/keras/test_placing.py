"""Cells lie where gradients say they lie, on every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from spile.errors import AugmentationError
from spile.keras.placing import grid_of
from spile.keras.runtime import runtime
from spile.keras.taps import Tap


def linearised(model: keras.Model) -> keras.Model:
    """Every weight positive and equal; batch norm as it is built changes nothing that matters.

    Pools take the mean: of equal values the largest is the first one, which is not in the middle.
    """
    model = keras.models.clone_model(model, clone_function=averaging)
    for weight in model.weights:
        value = np.ones(weight.shape) if "gamma" in weight.path or "variance" in weight.path else None
        if len(weight.shape) >= 2:
            value = np.full(weight.shape, 1.0 / np.prod(weight.shape[:3]))
        if value is not None:
            weight.assign(value)
    return model


def averaging(layer: keras.Layer) -> keras.Layer:
    if isinstance(layer, layers.MaxPooling2D):
        return layers.AveragePooling2D(layer.pool_size, layer.strides, layer.padding, name=layer.name)
    return type(layer).from_config(layer.get_config())


def centroid(tap: Tap, image: np.ndarray, cell: tuple[int, int], block: int = 1) -> np.ndarray:
    """The mean place of the input's pixels, each as heavy as its gradient of a block of cells."""
    variable = keras.Variable(image, name="image")

    def body(state: Sequence[Any] | None) -> list[Any]:
        given = variable.value if state is None else state[0]
        (value,) = tap(given).values()
        first = keras.config.image_data_format() == "channels_first"
        rows, columns = (slice(start, start + block) for start in cell)
        return [ops.sum(value[0, :, rows, columns] if first else value[0, rows, columns])]

    ((gradient,),) = runtime().gradients(body, [variable])
    weight = np.abs(gradient[0]).sum(-1).astype(np.float64)
    rows, columns = np.arange(weight.shape[0]), np.arange(weight.shape[1])
    return np.array([weight.sum(1) @ rows, weight.sum(0) @ columns]) / weight.sum()


def small(padding: str) -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = layers.ZeroPadding2D(((1, 2), (0, 3)))(inputs)
    x = layers.Conv2D(4, 5, strides=2, padding=padding, name="stem")(x)
    x = layers.MaxPooling2D(3, 2, padding=padding)(x)
    y = layers.SeparableConv2D(4, 3, padding="same")(x)
    x = layers.Add()([x, y])
    x = layers.Cropping2D(((1, 0), (0, 1)))(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding=padding)(x)
    x = layers.AveragePooling2D(2, 1, padding=padding, name="deep")(x)
    x = layers.Conv2DTranspose(4, 4, strides=2, padding="same")(x)
    x = layers.UpSampling2D(2, interpolation="bilinear", name="up")(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("at", "padding", "size"),
    [("deep", "same", (96, 97)), ("deep", "same", (102, 96)), ("up", "valid", (96, 97))],
)
def test_the_computed_centre_is_the_gradient_s_centroid(at: str, padding: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((1, *size, 3), np.float32)
    tap = Tap(linearised(small(padding)), at, pool=None, example=image)
    grid = grid_of(tap, image)
    cell = grid.shape[0] // 2, grid.shape[1] // 2
    block = 4 if at == "up" else 1  # a transposed convolution reads from left and right in turns
    found = centroid(tap, image, cell, block)
    centres = grid.rows.centres[cell[0] :][:block], grid.columns.centres[cell[1] :][:block]
    assert np.abs(found - [each.mean() for each in centres]).max() < 1


def mobilenet(side: int) -> keras.Model:
    return keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(side, side, 3))


@pytest.mark.zoo
@pytest.mark.parametrize("side", [224, 225, 230])
@pytest.mark.parametrize(
    ("make", "at", "more"),
    [
        (
            lambda n: keras.applications.VGG16(weights=None, include_top=False, input_shape=(n, n, 3)),
            "block4_conv3",
            0,
        ),
        (
            lambda n: keras.applications.ResNet50(weights=None, include_top=False, input_shape=(n, n, 3)),
            "conv3_block4_out",
            0,
        ),
        (mobilenet, "block_12_add", 128),
    ],
    ids=["vgg16", "resnet50", "mobilenetv2"],
)
def test_at_the_sizes_of_photographs(
    make: Callable[[int], keras.Model], at: str, more: int, side: int
) -> None:
    image = np.full((1, side + more, side + more, 3), 0.5, np.float32)
    tap = Tap(linearised(make(side + more)), at, pool=None, example=image)
    grid = grid_of(tap, image)
    cell = grid.shape[0] // 2, grid.shape[1] // 2
    computed = np.array([grid.rows.centres[cell[0]], grid.columns.centres[cell[1]]])
    assert np.abs(centroid(tap, image, cell) - computed).max() < 1


@keras.saving.register_keras_serializable("spile-tests")
class Subclassed(keras.Model):
    """Adds and casts between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.Conv2D(4, 3, strides=2, padding="valid")
        self.second = layers.Conv2D(4, 3, strides=2, padding="same")

    def call(self, x: Any) -> Any:
        x = ops.relu(self.first(x)) + 1.0
        return self.second(x)


def test_between_layers_a_map_keeps_its_cells() -> None:
    image = np.zeros((1, 33, 33, 3), np.float32)
    model = Subclassed()
    model(image)
    grid = grid_of(Tap(model, "second", pool=None, example=image), image)
    # 16 cells at 1, 3, 5, ...; SAME puts nothing in front of an even size, so the centre moves by one cell
    assert (grid.rows.stride, grid.rows.first) == (4, 1 + 2)


def test_patches_of_a_transformer() -> None:
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 8, strides=8)(inputs)
    x = layers.Reshape((16, 8))(x)
    x = layers.Dense(8, name="tokens")(x)
    image = np.zeros((1, 32, 32, 3), np.float32)
    grid = grid_of(Tap(keras.Model(inputs, x), "tokens", pool=None, example=image), image)
    assert (grid.shape, grid.rows.stride, grid.rows.first) == ((4, 4), 8, 3.5)


def test_a_vector_is_no_map() -> None:
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, layers.Dense(3, name="out")(layers.GlobalAveragePooling2D()(inputs)))
    image = np.zeros((1, 16, 16, 3), np.float32)
    with pytest.raises(AugmentationError, match="a guide reads a map or the tokens"):
        grid_of(Tap(model, "out", pool=None, example=image), image)
