"""Saving what a tap needs of a network: all of that, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from safetensors.numpy import load_file

from spile.keras.backend import load_reached
from spile.keras.deploying import save_reached
from spile.keras.taps import Tap

X = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)


class Net(keras.Model):
    """The layers do not stand in the order in which they run; `idle` never does."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.idle = layers.Dense(4), layers.Dense(4)
        self.idle.build((None, 4))
        self.attention = layers.MultiHeadAttention(2, 3)
        self.first = layers.LSTM(4, return_sequences=True)
        self.scale = self.add_weight(name="scale", shape=(4,))

    def call(self, x: Any) -> Any:
        x = self.first(x)
        return self.late(self.attention(x, x) * self.scale)


def subclass() -> keras.Model:
    model = Net()
    model(X)
    return model


def functional() -> keras.Model:
    x = keras.Input((6, 4))
    y = layers.Dense(4, name="side")(x)
    z = keras.Sequential([layers.Dense(4), layers.BatchNormalization()], name="inner")(x)
    z = layers.Dense(4, name="body")(z)
    return keras.Model(x, layers.Dense(4, name="late")(z + y))


INNER = {f"inner/{name}" for name in ("dense/kernel", "dense/bias", "batch_normalization/gamma")} | {
    f"inner/batch_normalization/{name}" for name in ("beta", "moving_mean", "moving_variance")
}
FIRST = {"scale", "first/kernel", "first/recurrent_kernel", "first/bias"}
ATTENTION = {
    f"attention/_{part}_dense/{name}"
    for part in ("query", "key", "value", "output")
    for name in ("kernel", "bias")
}


@pytest.mark.parametrize(
    ("make", "at", "keys"),
    [
        (functional, "inner", INNER),
        (functional, "body", INNER | {"body/kernel", "body/bias"}),
        (functional, "side", {"side/kernel", "side/bias"}),
        (subclass, "first", FIRST),
        (subclass, "attention", FIRST | ATTENTION),
    ],
)
def test_what_is_reached_is_saved(
    make: Callable[[], keras.Model], at: str, keys: set[str], tmp_path: Path
) -> None:
    model, other = make(), make()
    tap = Tap(model, at, pool=None, example=X)

    save_reached(tap, X, tmp_path / "w.safetensors")
    load_reached(other, tmp_path / "w.safetensors")

    assert set(load_file(tmp_path / "w.safetensors")) == keys
    found, expected = (
        keras.ops.convert_to_numpy(t(X)[at]) for t in (Tap(other, at, pool=None, example=X), tap)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
