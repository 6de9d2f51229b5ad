"""Multiply-accumulates against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

import spile
from spile.keras.observing import observe


def macs(layer: keras.Layer, *shapes: tuple[int, ...]) -> int:
    """Of a model of this layer alone, as the table of layers has it."""
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, layer(*inputs))
    return observe(model).root.macs


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Dense(5), (4,), 20),
        (layers.Dense(5), (7, 3, 4), 21 * 20),
        (layers.Conv1D(6, 3, strides=2), (9, 4), 4 * 3 * 4 * 6),
        (layers.Conv2D(6, 3), (8, 10, 4), 6 * 8 * 9 * 4 * 6),
        (layers.Conv2D(6, (3, 1), strides=(2, 1), padding="same"), (8, 10, 4), 4 * 10 * 3 * 4 * 6),
        (layers.Conv2D(6, 3, groups=2, padding="same"), (8, 8, 4), 64 * 9 * 2 * 6),
        (layers.Conv2D(6, 3, dilation_rate=2), (8, 8, 4), 16 * 9 * 4 * 6),
        (layers.Conv3D(2, 3), (4, 5, 6, 3), 2 * 3 * 4 * 27 * 3 * 2),
        (layers.DepthwiseConv1D(3, depth_multiplier=2), (8, 4), 6 * 3 * 4 * 2),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), 36 * 9 * 4 * 2),
        (layers.SeparableConv1D(6, 3), (8, 4), 6 * (3 * 4 + 4 * 6)),
        (layers.SeparableConv2D(6, 3), (8, 8, 4), 36 * (9 * 4 + 4 * 6)),
        (layers.Conv1DTranspose(6, 3, strides=2), (8, 4), 8 * 3 * 4 * 6),
        (layers.Conv2DTranspose(6, 3, strides=2), (8, 8, 4), 64 * 9 * 4 * 6),
        (layers.Conv3DTranspose(2, 2), (2, 3, 4, 3), 24 * 8 * 3 * 2),
        (layers.EinsumDense("ab,bc->ac", 5), (4,), 20),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 5)), (7, 4), 7 * 4 * 10),
        (layers.EinsumDense("...b,bc->...c", 5), (7, 3, 4), 21 * 20),
        (layers.EinsumDense("...bc,bcd->...d", 5), (7, 3, 4), 7 * 12 * 5),
        (layers.EinsumDense("abc,bd->adc", (5, None)), (7, 4), 7 * 4 * 5),
        (layers.SimpleRNN(5), (7, 4), 7 * (4 * 5 + 25)),
        (layers.LSTM(5, return_sequences=True), (7, 4), 7 * 4 * (4 * 5 + 25)),
        (layers.GRU(5), (7, 4), 7 * 3 * (4 * 5 + 25)),
        (layers.LSTM(5, trainable=False), (7, 4), 7 * 4 * (4 * 5 + 25)),
        (layers.RNN([layers.LSTMCell(5), layers.GRUCell(2)]), (7, 4), 7 * (4 * 9 * 5 + 3 * 7 * 2)),
        (layers.Bidirectional(layers.SimpleRNN(5)), (7, 4), 2 * 7 * (4 * 5 + 25)),
        (layers.ConvLSTM1D(2, 3), (5, 8, 4), 5 * 6 * 3 * (4 + 2) * 2 * 4),
        (layers.ConvLSTM2D(2, 3, return_sequences=True), (5, 8, 8, 4), 5 * 36 * 9 * (4 + 2) * 2 * 4),
        (layers.BatchNormalization(), (8, 8, 4), 0),
        (layers.Embedding(9, 4), (7,), 0),
        (layers.MaxPooling2D(), (8, 8, 4), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else "",
)
def test_of_one_layer(layer: keras.Layer, shape: tuple[int, ...], expected: int) -> None:
    assert macs(layer, shape) == expected


def attended(queries: int, keys: int, *, width: int, heads: int, size: int) -> int:
    """Four projections, and two products of queries and keys."""
    projections = 2 * queries * width * heads * size + 2 * keys * width * heads * size
    return projections + 2 * queries * keys * heads * size


@pytest.mark.parametrize("named", [False, True])
def test_of_attention(named: bool) -> None:
    def attention(query: Any, value: Any) -> Any:
        layer = layers.MultiHeadAttention(2, 3)
        return layer(query=query, value=value) if named else layer(query, value)

    query, value = keras.Input((5, 4)), keras.Input((7, 4))
    crossed = keras.Model([query, value], attention(query, value))
    assert observe(crossed).root.macs == attended(5, 7, width=4, heads=2, size=3)
    alone = keras.Model(query, attention(query, query))
    assert observe(alone).root.macs == attended(5, 5, width=4, heads=2, size=3)


def test_masks_are_not_what_attention_looks_at() -> None:
    query, value = keras.Input((5, 4)), keras.Input((7, 4))
    mask = keras.Input((5, 7), dtype="bool")
    layer = layers.MultiHeadAttention(2, 3)
    model = keras.Model([query, value, mask], layer(query, value, attention_mask=mask))
    assert observe(model).root.macs == attended(5, 7, width=4, heads=2, size=3)
    ids = keras.Input((5,), dtype="int32")
    tokens = layers.Embedding(9, 4, mask_zero=True)(ids)
    model = keras.Model(ids, layers.MultiHeadAttention(2, 3)(tokens, tokens))
    assert observe(model).root.macs == attended(5, 5, width=4, heads=2, size=3)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="Keras cannot run this layer on JAX")
def test_of_attention_with_values_of_another_width() -> None:
    assert macs(layers.MultiHeadAttention(2, 3, value_dim=6), (5, 4), (7, 4)) == (
        5 * 4 * 2 * 3 + 7 * 4 * 2 * 3 + 7 * 4 * 2 * 6 + 5 * 4 * 2 * 6 + 5 * 7 * 2 * (3 + 6)
    )


def test_of_grouped_attention() -> None:
    found = macs(layers.GroupQueryAttention(3, 4, 2), (5, 4), (7, 4))
    assert found == 2 * 5 * 4 * 4 * 3 + 2 * 7 * 4 * 2 * 3 + 2 * 5 * 7 * 4 * 3


def channels_first(make: Callable[..., keras.Layer]) -> tuple[keras.Layer, keras.Layer]:
    return make(), make(data_format="channels_first")


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: layers.Conv2D(6, 3, **o),
        lambda **o: layers.DepthwiseConv2D(3, **o),
        lambda **o: layers.SeparableConv2D(6, 3, **o),
        lambda **o: layers.Conv2DTranspose(6, 3, **o),
    ],
    ids=["conv", "depthwise", "separable", "transposed"],
)
def test_channels_first_cost_the_same(make: Callable[..., keras.Layer]) -> None:
    last, first = channels_first(make)
    assert macs(last, (8, 9, 4)) == macs(first, (4, 8, 9)) > 0


def test_costs_add_up_to_a_layer() -> None:
    """Shared layers cost once a call and hold their parameters once."""
    shared = layers.Dense(4, name="shared")
    start = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), shared, layers.ReLU(name="relu")], name="inner")
    model = keras.Model(start, layers.Dense(2, name="head")(inner(shared(start))))
    with spile.tap(model, ["shared#0", "inner@in", "inner/relu", "head"], example=(1, 4)) as tap:
        assert [point.macs for point in tap.points] == [16, 16, 32, 40]
        assert [point.params for point in tap.points] == [20, 20, 20, 30]
    rows = {row.address: row for row in spile.layers(model)}
    assert (rows["inner"].params, rows["head"].params) == (20, 10)
