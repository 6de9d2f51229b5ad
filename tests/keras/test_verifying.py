"""The reference is caught by another way, and comparing finds what is off."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile.errors import CaptureError
from spile.keras.verifying import compare

pytestmark = pytest.mark.essential

X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def tensors(**arrays: Any) -> dict[str, Any]:
    return {name: ops.convert_to_tensor(np.asarray(value)) for name, value in arrays.items()}


def classes_of(model: keras.Model) -> dict[type, Any]:
    return {c: dict(vars(c)) for layer in model._flatten_layers() for c in type(layer).__mro__}


class Direct(keras.Model):
    """Calls `call` of its layers without the layers' `__call__`."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layers.Dense(4), layers.Dense(4)
        self.one.build((None, 4))
        self.two.build((None, 4))

    def call(self, x: Any) -> Any:
        return self.two(self.one.call(x))


class Derived(layers.Dense):
    """Its `call` uses that of its base: one run, not two."""

    def call(self, x: Any, training: Any = None) -> Any:
        return super().call(x, training=training) + 1


# --- the reference --------------------------------------------------------------------------------


def test_layers_that_are_called_directly() -> None:
    model = Direct()
    model(X)
    with spile.tap(model, "all", pool=None, example=X) as tap:
        assert tap.verify(X).points == 2


def test_a_base_classes_call_is_the_same_run() -> None:
    start, derived = keras.Input((4,)), Derived(4, name="a")
    model = keras.Model(start, derived(layers.Dense(4, name="b")(derived(start))))
    with spile.tap(model, ["a#0", "b", "a#1", "a@in#1"], pool=None) as tap:
        assert tap.verify(X).points == 4


def test_inputs_are_compared_as_the_layer_gets_them() -> None:
    """After Keras has made its types of them, and added masks."""
    start = keras.Input((4,))
    half = keras.Model(start, layers.Dense(2, dtype="mixed_float16", name="d")(start))
    with spile.tap(half, ["d@in", "d"], pool=None) as tap:
        assert keras.backend.standardize_dtype(tap(X)["d@in"].dtype) == "float16"
        assert tap.verify(X).points == 2
    ids = keras.Input((5,), dtype="int32")
    tokens = layers.Embedding(9, 4, mask_zero=True)(ids)
    text = keras.Model(ids, layers.MultiHeadAttention(2, 3, name="attend")(tokens, tokens))
    with spile.tap(text, ["type:MultiHeadAttention@in", "attend/**"], pool=None) as tap:
        assert tap.verify(np.array([[1, 2, 0, 0, 0], [3, 1, 2, 4, 4]])).points >= 6


def test_classes_are_as_before() -> None:
    model = Direct()
    model(X)
    with spile.tap(model, "all", pool=None, example=X) as tap:
        before = classes_of(model)
        tap.verify(X)
        assert classes_of(model) == before

        def fails(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        model.two.call = fails
        with pytest.raises(KeyboardInterrupt):
            tap.verify(X)
        assert classes_of(model) == before


def test_wrong_values_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tap's own way of catching is not the reference's."""
    from spile.keras.capturing import Capture

    true = Capture.watch

    def tampered(self: Any, layer: Any, run: Any, args: Any, kwargs: Any) -> Any:
        return true(self, layer, lambda: run() + 1e-3, args, kwargs)

    model = Direct()
    model(X)
    with spile.tap(model, "one", pool=None, example=X) as tap:
        assert tap.verify(X).largest_difference == 0
        monkeypatch.setattr(Capture, "watch", tampered)
        with pytest.raises(CaptureError, match=r"1 of 1 points differ .*: one: off by 0\.001"):
            tap.verify(X)
        assert tap.verify(X, atol=1e-2).largest_difference == pytest.approx(1e-3, rel=1e-2)


# --- comparing ------------------------------------------------------------------------------------


def test_equal_values() -> None:
    found = compare(tensors(a=X, b=[1, 2]), tensors(a=X, b=[1, 2], c=[3]), rtol=0, atol=0)
    assert (found.points, found.largest_difference) == (2, 0)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ([1.0, 2.5], r"a: off by 0\.5"),
        ([1.0], r"a: \[2\] float32 instead of \[1\] float32"),
        (np.array([1, 2], "int32"), r"a: \[2\] float32 instead of \[2\] int32"),
        ([1.0, np.nan], "a: off by inf"),
        ([1.0, np.inf], "a: off by inf"),
    ],
)
def test_what_differs_is_told(other: Any, says: str) -> None:
    wanted = np.asarray(other, None if isinstance(other, np.ndarray) else "float32")
    with pytest.raises(CaptureError, match=f"1 of 1 points differ from the reference: {says}"):
        compare(tensors(a=np.array([1, 2], "float32")), tensors(a=wanted), rtol=0, atol=0)


def test_a_point_that_the_reference_did_not_reach() -> None:
    with pytest.raises(CaptureError, match=r"1 of 2 points .*: b: the reference did not reach it"):
        compare(tensors(a=X, b=X), tensors(a=X), rtol=0, atol=0)


def test_tolerances_and_what_is_no_number() -> None:
    same = compare(tensors(a=[np.nan, 1.0]), tensors(a=[np.nan, 1.0]), rtol=0, atol=0)
    assert same.largest_difference == 0
    endless = compare(tensors(a=[np.inf, -np.inf]), tensors(a=[np.inf, -np.inf]), rtol=0, atol=0)
    assert endless.largest_difference == 0
    near = compare(tensors(a=[100.0]), tensors(a=[101.0]), rtol=0.01, atol=0)
    assert near.largest_difference == 1
    assert compare(tensors(a=np.zeros((0, 2))), tensors(a=np.zeros((0, 2))), rtol=0, atol=0).points == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bool", "int32"])
def test_other_types(dtype: str) -> None:
    one, two = (ops.cast(ops.convert_to_tensor(np.array(v)), dtype) for v in ([0, 1], [0, 0]))
    assert compare({"a": one}, {"a": one}, rtol=0, atol=0).largest_difference == 0
    with pytest.raises(CaptureError, match="a: off by 1"):
        compare({"a": one}, {"a": two}, rtol=0, atol=0)
