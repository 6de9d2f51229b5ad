"""Catching tensors: the right one, of this very pass, at the moment it is made."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile.errors import CaptureError, PoolError

pytestmark = pytest.mark.essential

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def array(value: Any) -> Any:
    return ops.convert_to_numpy(value)


class Body(keras.Model):
    """Two dense layers, called as `step` says."""

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.one, self.two = layers.Dense(4), layers.Dense(4)
        self.one.build((None, 4))
        self.two.build((None, 4))
        self.step = step

    def call(self, x: Any) -> Any:
        return self.step(self, x)


def body(step: Any) -> keras.Model:
    model = Body(step)
    model(X)
    return model


def wrapped(model: keras.Model) -> bool:
    return any("call" in vars(layer) for layer in model._flatten_layers())


# --- stopping -------------------------------------------------------------------------------------


def test_a_models_own_error_handling_does_not_swallow_the_stop() -> None:
    def careful(model: Any, x: Any) -> Any:
        try:
            y = model.one(x)
            return model.two(y)
        except Exception:
            return model.two(x)

    model = body(careful)
    with spile.tap(model, "one", pool=None, example=X) as tap:
        np.testing.assert_allclose(array(tap(X)["one"]), array(model.one(X)), rtol=1e-6)
    assert not wrapped(model)


def test_a_fault_is_told_although_the_model_goes_on() -> None:
    def careful(model: Any, x: Any) -> Any:
        try:
            return model.two(model.one(x))
        except Exception:
            return x

    model = body(careful)

    def pool(x: Any) -> Any:
        if x.shape[0] == 3:
            raise ZeroDivisionError("of the pool")
        return x

    with spile.tap(model, ["one", "two"], pool={"one": pool}, example=(2, 4)) as tap:
        with pytest.raises(ZeroDivisionError, match="of the pool"):
            tap(X)
        with pytest.raises(ZeroDivisionError, match="of the pool"):
            tap.with_output(X)
        assert set(tap(X[:2])) == {"one", "two"}
    assert not wrapped(model)


def test_a_pool_that_misbehaves_later_is_told() -> None:
    model = body(lambda model, x: model.two(model.one(x)))
    pool = lambda x: x if x.shape[0] < 3 else ops.sum(x)  # noqa: E731
    with (
        spile.tap(model, "one", pool=pool, example=(2, 4)) as tap,
        pytest.raises(PoolError, match="the samples must stay the first axis"),
    ):
        tap(X)


# --- calls ----------------------------------------------------------------------------------------


def test_a_layer_that_runs_again_only_in_a_later_batch() -> None:
    def by_size(model: Any, x: Any) -> Any:
        y = model.one(x)
        return model.two(model.one(y) if x.shape[0] == 7 else y)

    model = body(by_size)
    with spile.tap(model, ["one", "two"], pool=None, example=(2, 4)) as tap:
        assert set(tap(X)) == {"one", "two"}
        with pytest.raises(CaptureError, match=r"one ran again in this batch.*name a call, 'one#0'"):
            tap(np.ones((7, 4), "float32"))
        assert set(tap(X)) == {"one", "two"}
    with spile.tap(model, "one@in", pool=None, example=(2, 4)) as tap:
        tap(X)
        with pytest.raises(CaptureError, match="one@in ran again"):
            tap.with_output(np.ones((7, 4), "float32"))
    with spile.tap(model, ["one#0", "two"], pool=None, example=(2, 4)) as tap:
        tap(np.ones((7, 4), "float32"))


def test_a_layer_that_is_left_out_only_in_a_later_batch() -> None:
    model = body(lambda model, x: model.two(model.one(x) if x.shape[0] != 7 else x))
    with (
        spile.tap(model, ["one", "two"], pool=None, example=(2, 4)) as tap,
        pytest.raises(CaptureError, match="did not run in this batch, though it did in the dry pass: one"),
    ):
        tap(np.ones((7, 4), "float32"))


def test_another_kind_of_output_in_a_later_batch() -> None:
    class Fickle(layers.Layer):
        def call(self, x: Any) -> Any:
            match x.shape[0]:
                case 5:
                    return {"a": x}
                case 6:
                    return x[:, None]
                case 7:
                    return "text"
            return (x, x + 1)

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.fickle, self.dense = Fickle(), layers.Dense(2)
            self.dense.build((None, 4))

        def call(self, x: Any) -> Any:
            self.fickle(x)
            return self.dense(x)

    model = Model()
    model(X)
    with spile.tap(model, "fickle:1", pool=None, example=(2, 4)) as tap:
        np.testing.assert_allclose(array(tap(X)["fickle:1"]), X + 1)
        for rows in (5, 6, 7):
            with pytest.raises(CaptureError, match=r"fickle:1 held no tensor in this batch"):
                tap(np.ones((rows, 4), "float32"))

    class Grown(Body):
        pass

    grown = Grown(lambda model, x: model.two(model.one(x[:, None] if x.shape[0] == 6 else x)))
    grown(X)
    with (
        spile.tap(grown, "one", pool=None, example=(2, 4)) as tap,
        pytest.raises(CaptureError, match=r"one has the shape \[6, 1, 4\] in this batch, but had 2 axes"),
    ):
        tap(np.ones((6, 4), "float32"))


# --- in place -------------------------------------------------------------------------------------


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch's tensors can be changed in place")
@pytest.mark.parametrize("pool", [None, "mean", "last", "flatten", lambda x: x])
def test_a_later_change_in_place_does_not_reach_what_was_taken(pool: Any) -> None:
    class Spoil(layers.Layer):
        def call(self, x: Any) -> Any:
            return x.mul_(0).add_(7)

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.spoil, self.head = layers.LayerNormalization(), Spoil(), layers.Dense(2)
            self.norm.build((None, 5, 4))
            self.head.build((None, 5, 4))

        def call(self, x: Any) -> Any:
            return self.head(self.spoil(self.norm(x)))

    model = Model()
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    with _no_grad():
        model(x)
        expected = array(model.norm(x))
        wanted = {"mean": expected.mean(1), "last": expected[:, -1], "flatten": expected.reshape(3, -1)}
        with spile.tap(model, ["norm", "spoil@in", "head"], pool=pool, example=x) as tap:
            found = tap(x)
            for name in ("norm", "spoil@in"):
                np.testing.assert_allclose(
                    array(found[name]), wanted.get(pool, expected), rtol=1e-5, atol=1e-6
                )
            tap.verify(x)


def _no_grad() -> Any:
    import torch

    return torch.no_grad()


def test_what_one_pass_gave_stays_after_the_next() -> None:
    model = body(lambda model, x: model.two(model.one(x)))
    with spile.tap(model, "one", pool=None, example=X) as tap:
        first = tap(X)["one"]
        kept = array(first).copy()
        tap(X * 5)
        model(X * 7)
    np.testing.assert_array_equal(array(first), kept)


def test_a_model_that_is_being_fitted_can_be_tapped_or_says_why_not() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one"), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    x = np.ones((2, 4), "float32")
    tap = spile.tap(model, "one", example=x)
    found: list[Any] = []

    class During(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            try:
                found.append(np.asarray(keras.ops.convert_to_numpy(tap(x)["one"])))
            except CaptureError as error:
                found.append(str(error))

    model.fit(x, np.zeros((2, 2)), batch_size=2, epochs=1, verbose=0, callbacks=[During()])
    if keras.backend.backend() == "jax":
        assert "fit holds them while it trains" in found[0] and "clone_model" in found[0]
    else:
        np.testing.assert_allclose(found[0], keras.ops.convert_to_numpy(tap(x)["one"]), rtol=1e-5)
