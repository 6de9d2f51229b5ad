"""Pools against NumPy and PyTorch's definitions, on the whole tensor."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers, ops

import spile
from spile.errors import PoolError
from spile.keras.pooling import needs_mask, pooled
from spile.pool import parse

MAPS = np.random.default_rng(0).normal(size=(3, 5, 7, 4)).astype("float32")  # channels last
TOKENS = np.random.default_rng(1).normal(size=(3, 6, 4)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]], bool)


def array(value: Any) -> Any:
    return ops.convert_to_numpy(value)


def pool(x: Any, name: Any, layout: str | None, **options: Any) -> Any:
    """The pool's result, and its type by Keras' name."""
    result = pooled(ops.convert_to_tensor(x), parse(name), layout, **options)
    return array(result)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- maps -----------------------------------------------------------------------------------------


def map_by_numpy(maps: Any, name: str) -> Any:
    """Maps (samples, channels, space...) pooled."""
    space = tuple(range(2, maps.ndim))
    kind, _, size = name.partition(":")
    match kind:
        case "avg":
            return maps.mean(space)
        case "max":
            return maps.max(space)
        case "gem":
            p = float(size or 3)
            return (np.maximum(maps, 1e-6) ** p).mean(space) ** (1 / p)
        case "grid":
            kinds = torch.nn.AdaptiveAvgPool1d, torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool3d
            return kinds[len(space) - 1](int(size))(torch.from_numpy(maps)).flatten(1).numpy()
    return maps.reshape(len(maps), -1)


NAMES = ["avg", "max", "gem", "gem:2", "grid:1", "grid:2", "grid:3", "grid:9", "flatten"]


@pytest.mark.parametrize("name", NAMES)
def test_maps(name: str) -> None:
    first = np.ascontiguousarray(MAPS.transpose(0, 3, 1, 2))
    expected = map_by_numpy(first, name)
    close(pool(MAPS, name, "BYXC"), expected)
    close(pool(first, name, "BCYX"), expected)
    close(pool(MAPS.transpose(1, 0, 2, 3), name, "YBXC"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_volumes(name: str) -> None:
    volume = np.random.default_rng(2).normal(size=(2, 4, 5, 3, 2)).astype("float32")
    expected = map_by_numpy(np.ascontiguousarray(volume.transpose(0, 4, 1, 2, 3)), name)
    close(pool(volume, name, "BZYXC"), expected)


def test_nothing_is_kept_as_it_is_but_for_the_samples_axis() -> None:
    close(pool(MAPS.transpose(1, 0, 2, 3), None, "YBXC"), MAPS)
    close(pool(MAPS, None, "BYXC"), MAPS)
    close(pool(MAPS, None, None), MAPS)


def test_unknown_axes_can_be_flattened() -> None:
    close(pool(MAPS, "flatten", "B???"), MAPS.reshape(3, -1))


# --- tokens ---------------------------------------------------------------------------------------


def tokens_by_numpy(name: str, mask: Any, prefix: int) -> Any:
    real = np.ones((3, 6), bool) if mask is None else mask
    rows = []
    for x, kept in zip(TOKENS, real, strict=True):
        patches = x[prefix:][kept[prefix:]]
        cls, mean, last = x[kept][0], patches.mean(0), x[kept][-1]
        rows.append({"cls": cls, "mean": mean, "last": last, "cls+mean": np.concatenate([cls, mean])}[name])
    return np.stack(rows)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("mask", [None, MASK, MASK.astype("int32"), MASK.astype("float32")], ids=str)
@pytest.mark.parametrize("name", ["cls", "mean", "last", "cls+mean"])
def test_tokens(name: str, mask: Any, prefix: int) -> None:
    expected = tokens_by_numpy(name, None if mask is None else mask.astype(bool), prefix)
    given = None if mask is None else ops.convert_to_tensor(mask)
    close(pool(TOKENS, name, "BTC", prefix_tokens=prefix, mask=given), expected)
    close(pool(TOKENS.transpose(1, 0, 2), name, "TBC", prefix_tokens=prefix, mask=given), expected)
    close(pool(TOKENS.transpose(0, 2, 1), name, "BCT", prefix_tokens=prefix, mask=given), expected)


def test_padding_may_hold_anything() -> None:
    dirty = np.where(MASK[..., None], TOKENS, np.nan)
    for name in ("cls", "mean", "last", "cls+mean"):
        close(pool(dirty, name, "BTC", mask=ops.convert_to_tensor(MASK)), tokens_by_numpy(name, MASK, 0))


def test_nothing_but_padding_is_zero() -> None:
    mask = ops.convert_to_tensor(np.zeros((3, 6), bool))
    close(pool(TOKENS, "mean", "BTC", mask=mask), np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [(3, 5), (3, 6, 6), (3,)])
def test_a_mask_of_something_else_is_none_of_these_tokens(shape: tuple[int, ...]) -> None:
    close(pool(TOKENS, "mean", "BTC", mask=ops.zeros(shape)), TOKENS.mean(1))


def test_what_needs_a_mask() -> None:
    assert needs_mask(parse("mean"), "BTC") and needs_mask(parse("cls"), "BTC")
    for name, layout in ((None, "BTC"), ("flatten", "BTC"), ("mean", None), ("avg", "BYXC"), ("mean", "BC")):
        assert not needs_mask(parse(name), layout)


def text_model(width: int = 6) -> keras.Model:
    ids = keras.Input((width,), dtype="int32", name="ids")
    x = layers.Embedding(9, 4, mask_zero=True, name="embed")(ids)
    x = layers.LSTM(5, return_sequences=True, name="lstm")(x)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(ids, layers.Dense(3, name="dense")(x))


@pytest.mark.parametrize("name", ["mean", "last", "cls+mean"])
def test_padding_that_keras_tells(name: str) -> None:
    """Also where the pass goes to the very layer and no further."""
    model = text_model()
    ids = np.where(MASK, np.arange(1, 7), 0).astype("int32")
    ids[2] = [4, 0, 5, 6, 0, 0]  # not only at the end
    real = ids != 0
    for place in ("embed", "norm", "dense", "norm@in"):
        with spile.tap(model, place, pool=None) as tap:
            whole = array(tap(ids)[place])
        expected = []
        for x, kept in zip(whole, real, strict=True):
            mean = x[kept].mean(0)
            both = np.concatenate([x[0], mean])
            expected.append({"mean": mean, "last": x[kept][-1], "cls+mean": both}[name])
        with spile.tap(model, place, pool=name) as tap:
            close(array(tap(ids)[place]), np.stack(expected))
            tap.verify(ids)
            assert not np.allclose(array(tap(np.full_like(ids, 3))[place]), np.stack(expected))


@pytest.mark.parametrize("place", ["lstm", "attention@in:0", "attention", "embed"])
def test_padding_that_attention_takes_away(place: str) -> None:
    """`MultiHeadAttention` takes Keras' masks from its inputs; wherever the pass ends."""
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(9, 4, mask_zero=True, name="embed")(ids)
    x = layers.MultiHeadAttention(2, 3, name="first")(x, x)
    x = layers.LSTM(5, return_sequences=True, name="lstm")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    model = keras.Model(ids, layers.Dense(3, name="dense")(x))
    batch = np.where(MASK, np.arange(1, 7), 0).astype("int32")
    with spile.tap(model, place, pool=None) as tap:
        whole = array(tap(batch)[place])
    expected = np.stack([x[kept].mean(0) for x, kept in zip(whole, MASK, strict=True)])
    for places in ([place], [place, "dense"], [place, "attention/_query_dense"]):
        with spile.tap(
            model, places, pool={"attention/_query_dense": None} if "/" in places[-1] else "auto"
        ) as tap:
            close(array(tap(batch)[place]), expected)
            close(array(tap.with_output(batch)[1][place]), expected)
            assert tap.verify(batch).largest_difference == 0


def test_padding_that_the_model_is_told() -> None:
    ids = keras.Input((6,), dtype="int32", name="ids")
    mask = keras.Input((6,), dtype="int32", name="padding_mask")
    x = layers.Embedding(9, 4, name="embed")(ids)
    model = keras.Model({"ids": ids, "padding_mask": mask}, x * ops.cast(mask, "float32")[..., None])
    batch = {"ids": np.arange(1, 19).reshape(3, 6) % 9, "padding_mask": MASK.astype("int32")}
    with spile.tap(model, "embed", pool=None) as tap:
        whole = array(tap(batch)["embed"])
    expected = np.stack([x[kept].mean(0) for x, kept in zip(whole, MASK, strict=True)])
    with spile.tap(model, "embed", pool="mean") as tap:
        close(array(tap(batch)["embed"]), expected)


# --- types, and pools of one's own ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["avg", "max", "gem", "grid:2"])
def test_half_precision_is_reduced_in_single(dtype: str, name: str) -> None:
    high = ops.cast(ops.convert_to_tensor(MAPS * 1e-1 + 300), dtype)
    result = pooled(high, parse(name), "BYXC")
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    exact = array(ops.cast(high, "float32")).astype("float64").transpose(0, 3, 1, 2)
    np.testing.assert_allclose(array(result), map_by_numpy(exact, name), rtol=1e-5)


def test_whole_tensors_keep_their_type() -> None:
    for name in (None, "flatten"):
        result = pooled(ops.cast(ops.convert_to_tensor(MAPS), "float16"), parse(name), "BYXC")
        assert keras.backend.standardize_dtype(result.dtype) == "float16"


def test_integers_are_averaged() -> None:
    whole = (MAPS * 100).astype("int32")
    close(pool(whole, "avg", "BYXC"), whole.mean((1, 2)))


def test_a_pool_of_ones_own_gets_the_layers_own_axes() -> None:
    close(pool(MAPS, lambda x: x[:, 0, 0] * 2, "BYXC"), MAPS[:, 0, 0] * 2)
    close(pool(MAPS.transpose(1, 0, 2, 3), lambda x: x[:, 0, 0], "YBXC"), MAPS[:, 0, 0])


def test_a_pool_that_returns_something_else() -> None:
    with pytest.raises(PoolError, match="gave a tuple: a pool returns one tensor, samples first"):
        pool(MAPS, lambda x: (x, x), "BYXC")
    with pytest.raises(PoolError, match=r"made \[4\] of \[3, 5, 7, 4\]: the samples must stay the first"):
        pool(MAPS, lambda x: ops.mean(x, axis=(0, 1, 2)), "BYXC")
