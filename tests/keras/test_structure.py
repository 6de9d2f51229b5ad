"""Blocks, stages and last features of Keras models, against lists written down from the sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import keras
import pytest
from keras import layers

from spile.keras.observing import observe
from spile.resolution import resolve
from spile.structure import last_features, places

SIDE = 96


@pytest.fixture(autouse=True)
def _quick_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Drawing the weights of large models takes minutes, and structure does not need them."""
    for kind in ("VarianceScaling", "RandomNormal", "RandomUniform", "TruncatedNormal"):
        monkeypatch.setattr(
            getattr(keras.initializers, kind),
            "__call__",
            lambda self, shape, dtype=None: keras.ops.zeros(shape, dtype),
        )
    keras.backend.clear_session()  # automatic names count from none again
    yield
    keras.backend.clear_session()


def rows(template: str, *depths: int, first: int = 1, start: int = 1) -> list[str]:
    """``rows("conv{}_block{}", 2, 1)``: conv1_block1, conv1_block2, conv2_block1."""
    return [template.format(first + row, start + i) for row, depth in enumerate(depths) for i in range(depth)]


def last_of(blocks: list[str], *depths: int) -> list[str]:
    """The last block of every stage of so many blocks."""
    assert sum(depths) == len(blocks)
    return [blocks[end - 1] for end in accumulate(depths)]


@dataclass(frozen=True)
class Case:
    name: str
    blocks: list[str]
    depths: tuple[int, ...]
    """How many blocks each stage has."""
    last: str = "predictions@in"
    side: int = SIDE
    quick: bool = False

    @property
    def stages(self) -> list[str]:
        return last_of(self.blocks, *self.depths)


EFFICIENT = [(1, "a"), *[(n, c) for n, depth in enumerate((2, 2, 3, 3, 4, 1), 2) for c in "abcd"[:depth]]]
EFFICIENT_V2 = [(n, c) for n, depth in enumerate((1, 2, 2, 3, 5, 8), 1) for c in "abcdefgh"[:depth]]


def inverted(template: str, first: str, adds: set[int], count: int, norm: str) -> list[str]:
    """The ends of inverted residuals: a merge where there is a residual, else the last normalisation."""
    ends = ["add" if n in adds else norm for n in range(count)]
    names = [first, *(template.format(n) for n in range(1, count))]
    return [f"{name}_{end}" for name, end in zip(names, ends, strict=True)]


V2 = inverted(
    "block_{}", "expanded_conv", {2, 4, 5, 7, 8, 9, 11, 12, 14, 15}, 17, "project_BN"
)  # the first is not numbered
V3_SMALL = inverted("expanded_conv_{}", "expanded_conv", {2, 4, 5, 7, 9, 10}, 11, "project_bn")
V3_LARGE = inverted("expanded_conv_{}", "expanded_conv", {0, 2, 4, 5, 7, 8, 9, 11, 13, 14}, 15, "project_bn")
SCALES = [f"block35_{n}_ac" for n in range(1, 11)], [f"block17_{n}_ac" for n in range(1, 21)]
VGG = rows("block{}_conv{}", 2, 2, 3, 3, 3)

CASES = [
    Case("ResNet50", rows("conv{}_block{}_out", 3, 4, 6, 3, first=2), (3, 4, 6, 3)),
    Case("ResNet50V2", rows("conv{}_block{}_out", 3, 4, 6, 3, first=2), (2, 1, 3, 1, 5, 1, 3)),
    Case("MobileNet", [f"conv_pw_{n}_relu" for n in range(1, 14)], (1, 2, 2, 6, 2), "conv_preds@in"),
    Case("MobileNetV2", V2, (1, 2, 3, 4, 3, 3, 1)),
    Case("MobileNetV3Small", V3_SMALL, (1, 2, 3, 2, 3), "logits@in"),
    Case("MobileNetV3Large", V3_LARGE, (1, 2, 3, 4, 2, 3), "logits@in"),
    Case(
        "EfficientNetB0",
        [f"block{n}{c}_{'project_bn' if c == 'a' else 'add'}" for n, c in EFFICIENT],
        (1, 2, 2, 3, 3, 4, 1),
    ),
    Case(
        "EfficientNetV2B0",
        [
            f"block{n}{c}_{'add' if c != 'a' else 'project_activation' if n == 1 else 'project_bn'}"
            for n, c in EFFICIENT_V2
        ],
        (1, 2, 2, 3, 5, 8),
    ),
    Case("DenseNet121", rows("conv{}_block{}_concat", 6, 12, 24, 16, first=2), (6, 12, 24, 16)),
    Case("InceptionV3", [f"mixed{n}" for n in range(11)], (1, 2, 5, 1, 2), side=139),
    Case(
        "InceptionResNetV2",
        [
            *("mixed_5b", *SCALES[0], "mixed_6a", *SCALES[1], "mixed_7a"),
            *[f"block8_{n}_ac" for n in range(1, 10)],
            "custom_scale_layer_39",  # the tenth has no activation
        ],
        (11, 21, 11),
        side=139,
    ),
    Case(
        "Xception",
        ["block1_conv2_act", "add", *[f"add_{n}" for n in range(1, 12)], "block14_sepconv2_act"],
        (1, 1, 1, 9, 1, 1),
    ),
    Case(
        "ConvNeXtTiny",
        [f"convnext_tiny_{n}_identity" for n in rows("stage_{}_block_{}", 3, 3, 9, 3, first=0, start=0)],
        (3, 3, 9, 3),
        "convnext_tiny_head_dense@in",
    ),
    Case("NASNetMobile", [f"normal_concat_{n}" for n in range(13) if n != 4], (4, 4, 4), side=224),
    Case("VGG16", VGG, (2, 2, 3, 3, 3), quick=True),
    Case("VGG19", rows("block{}_conv{}", 2, 2, 4, 4, 4), (2, 2, 4, 4, 4)),
]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.quick else pytest.mark.zoo) for c in CASES]
)
def test_blocks_and_stages_of_keras_applications(case: Case) -> None:
    if case.name == "NASNetMobile" and keras.backend.backend() == "torch":
        pytest.skip("Keras does not build it on torch")
    shape = (case.side, case.side, 3)
    model = getattr(keras.applications, case.name)(weights=None, input_shape=shape, classes=7)
    seen = observe(model, (1, *shape))
    found = places(seen)
    assert found.blocks == tuple(case.blocks)
    assert found.stages == tuple(case.stages)
    assert last_features(seen) == case.last
    points, _ = resolve(["stages", case.last], "auto", seen)
    assert len(points) == len(case.stages) + 1, "a stage is one tensor"


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("MobileNetV2", "block_16_project_BN"),
        pytest.param("ResNet50", "conv5_block3_out", marks=pytest.mark.zoo),
        ("VGG16", "block5_conv3"),
    ],
)
def test_a_model_without_its_top_ends_with_its_last_block(name: str, last: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), include_top=False)
    seen = observe(model, (1, 64, 64, 3))
    assert last_features(seen) == last == places(seen).blocks[-1]


def test_a_network_inside_a_chain_has_the_same_structure_under_its_name() -> None:
    base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), include_top=False)
    chain = keras.Sequential(
        [keras.Input((64, 64, 3)), base, layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")]
    )
    seen = observe(chain, (1, 64, 64, 3))
    inside = V2
    assert places(seen).blocks == tuple(f"{base.name}/{name}" for name in inside)
    assert places(seen).stages == tuple(
        f"{base.name}/{name}" for name in last_of(inside, 1, 2, 3, 4, 3, 3, 1)
    )
    assert last_features(seen) == "head@in"


# ----------------------------------------------------------------------------- networks of one's own


def residual(x: Any, width: int, stride: int = 1) -> Any:
    y = layers.Conv2D(width, 3, strides=stride, padding="same")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(y))
    if stride > 1 or x.shape[-1] != width:
        x = layers.BatchNormalization()(layers.Conv2D(width, 1, strides=stride)(x))
    return layers.Activation("relu")(layers.Add()([x, y]))


def resnet(*, shortcut_first: bool = False) -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(layers.Conv2D(8, 3, padding="same")(inputs))
    for width, stride in ((16 if shortcut_first else 8, 1), (16, 2), (32, 2)):
        x = residual(residual(x, width, stride), width)
    x = layers.Dense(4)(layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x)))
    return keras.Model(inputs, layers.Softmax()(x))


def preactivated() -> keras.Model:
    """Attention on the channels inside every block, whose merges stay inside too."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    for _ in range(3):
        y = layers.Conv2D(8, 3, padding="same")(layers.Activation("relu")(layers.BatchNormalization()(x)))
        scale = layers.Reshape((1, 1, 8))(layers.Dense(8, "sigmoid")(layers.GlobalAveragePooling2D()(y)))
        y = layers.Multiply()([y, scale])
        y = layers.Add()([layers.Conv2D(8, 1)(y), layers.Conv2D(8, 3, padding="same")(y)])
        x = layers.Add()([x, y])
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def transformer(*, after: bool = False) -> keras.Model:
    inputs = keras.Input((6, 8))
    x = layers.Dense(8)(inputs)
    for _ in range(3):
        for make in (lambda y: layers.MultiHeadAttention(2, 4)(y, y), perceptron):
            if after:
                x = layers.LayerNormalization()(layers.Add()([x, make(x)]))
            else:
                x = layers.Add()([x, make(layers.LayerNormalization()(x))])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def perceptron(x: Any) -> Any:
    return layers.Dense(8)(layers.Dense(16, "gelu")(x))


def unet() -> keras.Model:
    inputs = x = keras.Input((32, 32, 3))
    skips = []
    for width in (8, 16):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    for skip in reversed(skips):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skip])
        x = layers.Conv2D(skip.shape[-1], 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def plain(*, fused: bool) -> keras.Model:
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for n, width in enumerate((8, 8, 16, 16)):
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu" if fused else None))
        if not fused:
            model.add(layers.BatchNormalization())
            model.add(layers.ReLU())
        if n == 1:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(5, name="classes"))
    model.add(layers.Activation("softmax"))
    return model


def numbered_by_hand() -> keras.Model:
    """Blocks by name only: no merges, and activations named automatically end them."""
    inputs = x = keras.Input((32, 32, 3))
    for n, (width, stride) in enumerate([(8, 1), (8, 1), (16, 2), (16, 1), (16, 1)], 1):
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", name=f"block{n}_depthwise")(x)
        x = layers.ReLU()(layers.Conv2D(width, 1, name=f"block{n}_pointwise")(x))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(x)))


def perceptrons() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(16, "relu"), layers.Dense(2)]
    )


def recurrent() -> keras.Model:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4)(inputs)
    x = layers.GRU(4)(layers.LSTM(8, return_sequences=True)(x))
    return keras.Model(inputs, layers.Dense(2, name="classes")(x))


def automatic(name: str, numbers: range) -> list[str]:
    return [name if n == 0 else f"{name}_{n}" for n in numbers]


@pytest.mark.parametrize(
    ("make", "example", "blocks", "stages", "last"),
    [
        (resnet, (1, 32, 32, 3), automatic("activation", range(1, 7)), (2, 2, 2), "dense@in"),
        (
            lambda: resnet(shortcut_first=True),
            (1, 32, 32, 3),
            automatic("activation", range(1, 7)),
            (2, 2, 2),
            "dense@in",
        ),
        (preactivated, (1, 32, 32, 3), ["add_1", "add_3", "add_5"], (1, 1, 1), "dense_3@in"),
        (transformer, (1, 6, 8), ["add_1", "add_3", "add_5"], (1, 1, 1), "dense_7@in"),
        (
            lambda: transformer(after=True),
            (1, 6, 8),
            automatic("layer_normalization", range(1, 6, 2)),
            (1, 1, 1),
            "dense_7@in",
        ),
        (unet, (1, 32, 32, 3), automatic("conv2d", range(6)), (1, 1, 1, 1, 1, 1), "conv2d_5@in"),
        (
            lambda: plain(fused=True),
            (1, 32, 32, 3),
            automatic("conv2d", range(4)),
            (2, 2),
            "classes@in",
        ),
        (
            lambda: plain(fused=False),
            (1, 32, 32, 3),
            automatic("re_lu", range(4)),
            (2, 2),
            "classes@in",
        ),
        (numbered_by_hand, (1, 32, 32, 3), automatic("re_lu", range(5)), (2, 3), "dense@in"),
        (perceptrons, (1, 8), ["dense", "dense_1", "dense_2"], (2, 1), "dense_2@in"),
        (recurrent, keras.ops.ones((1, 6), "int32"), ["lstm"], (1,), "classes@in"),
    ],
    ids=[
        "residual",
        "residual, projected",
        "pre-activated",
        "transformer",
        "transformer, normalised after",
        "u-net",
        "fused activations",
        "activations",
        "names",
        "perceptrons",
        "recurrent",
    ],
)
def test_networks_of_ones_own(
    make: Callable[[], keras.Model], example: Any, blocks: list[str], stages: tuple[int, ...], last: str
) -> None:
    seen = observe(make(), example)
    found = places(seen)
    assert found.blocks == tuple(blocks)
    assert found.stages == tuple(last_of(blocks, *stages))
    assert last_features(seen) == last


# ----------------------------------------------------------------------------- composites


@pytest.mark.zoo
def test_the_layers_of_a_keras_hub_transformer_are_its_blocks() -> None:
    hub = pytest.importorskip("keras_hub")
    model = hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=6,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    tokens = keras.ops.ones((1, 6), "int32")
    seen = observe(model, {"token_ids": tokens, "segment_ids": tokens, "padding_mask": tokens})
    blocks = [f"transformer_layer_{n}" for n in range(6)]
    assert places(seen).blocks == tuple(blocks)
    assert places(seen).stages == tuple(blocks[n] for n in (1, 2, 4, 5))
    assert last_features(seen) == blocks[-1], "its pooler is no classifier"


class Block(layers.Layer):
    """A residual block of a subclassed model."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = layers.Conv2D(width, 3, strides=stride, padding="same")
        self.skip = layers.Conv2D(width, 1, strides=stride)

    def call(self, x: Any) -> Any:
        return keras.ops.relu(self.conv(x) + self.skip(x))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.stem = layers.Conv2D(8, 3, padding="same")
        self.blocks = [Block(8), Block(8), Block(16, 2), Block(16)]
        self.head = layers.Dense(3)

    def call(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(keras.ops.mean(x, (1, 2)))


def test_the_composites_of_a_subclassed_model_are_its_blocks() -> None:
    model = Subclassed()
    model(keras.ops.zeros((1, 16, 16, 3)))
    seen = observe(model, (1, 16, 16, 3))
    assert places(seen).blocks == tuple(f"blocks/{n}" for n in range(4))
    assert places(seen).stages == ("blocks/1", "blocks/3")
    assert last_features(seen) == "head@in"
