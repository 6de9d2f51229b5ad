"""Layers are watched for a pass, and left alone again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile.keras.watching import watching_calls

pytestmark = pytest.mark.essential

X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def array(value: Any) -> Any:
    return ops.convert_to_numpy(value)


def chain(*inside: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), *(inside or (layers.Dense(5, name="a"), layers.Dense(2)))])


class Note:
    """Writes down which layers run."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.beyond: list[str] = []

    def __call__(self, layer: keras.Layer, run: Any, args: Any, kwargs: Any) -> Any:
        self.seen.append(layer.name)
        return run()

    def see_beyond(self, layer: keras.Layer) -> None:
        self.beyond.append(layer.name)


def wrapped(model: keras.Model) -> list[str]:
    names = {"call", "quantized_call"}
    return [layer.name for layer in model._flatten_layers() if names & vars(layer).keys()]


def test_every_run_is_seen_and_nothing_stays() -> None:
    model, note = chain(), Note()
    with watching_calls(model.layers, note):
        model(X)
        model.layers[0].call(ops.convert_to_tensor(X))
    assert note.seen == ["a", model.layers[1].name, "a"]
    assert not wrapped(model)


def test_what_watch_returns_is_the_output() -> None:
    dense = layers.Dense(5)
    dense.build((None, 4))
    with watching_calls([dense], lambda layer, run, args, kwargs: run() + args[0][:, :1] * 0 + 1):
        high = dense(X)
    np.testing.assert_allclose(array(high), array(dense(X)) + 1, rtol=1e-6)


def test_nothing_stays_after_an_exception() -> None:
    model = chain()

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watching_calls(model.layers, fail):
        model(X)
    assert not wrapped(model)


def test_nothing_stays_of_a_pass_that_was_given_up() -> None:
    model = chain()

    def passes() -> Iterator[Any]:
        with watching_calls(model.layers, Note()):
            yield model(X)
            yield model(X)

    started = passes()
    next(started)
    assert wrapped(model)
    started.close()
    assert not wrapped(model)


def test_a_call_of_ones_own_is_seen_and_kept() -> None:
    dense, note = layers.Dense(5, name="a"), Note()
    dense.build((None, 4))
    own = lambda x, training=None: x * 3  # noqa: E731
    dense.call = own
    with watching_calls([dense], note):
        found = dense(X)
    assert note.seen == ["a"]
    assert vars(dense)["call"] is own
    np.testing.assert_allclose(array(found), X * 3)
    with spile.tap(chain(dense), "a", pool=None) as tap:
        np.testing.assert_allclose(array(tap(X)["a"]), X * 3)
    assert vars(dense)["call"] is own


def test_other_threads_pass_through() -> None:
    model, note = chain(), Note()
    with watching_calls(model.layers, note), ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: array(model(X))).result(timeout=60)
    assert note.seen == []
    np.testing.assert_allclose(found, array(model(X)), rtol=1e-6)


def test_two_threads_tap_one_model_at_once() -> None:
    model = chain(layers.Dense(5, name="a"), layers.Dense(5, name="b"), layers.Dense(2, name="c"))
    taps = {name: spile.tap(model, name, pool=None) for name in "abc"}
    expected = {name: array(tap(X)[name]) for name, tap in taps.items()}
    start = threading.Barrier(3)

    def often(name: str) -> bool:
        start.wait(timeout=60)
        same = (np.allclose(array(taps[name](X)[name]), expected[name]) for _ in range(20))
        return all(same)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(often, "abc", timeout=120)) == [True] * 3
    assert not wrapped(model)


def test_watches_nest() -> None:
    model, outer, inner = chain(), Note(), Note()
    with watching_calls(model.layers, outer):
        with watching_calls(model.layers[:1], inner):
            model(X)
        assert wrapped(model) == [layer.name for layer in model.layers]
    assert inner.seen == ["a"]
    assert outer.seen == [layer.name for layer in model.layers]
    assert not wrapped(model)


def test_a_tap_inside_a_tapped_model() -> None:
    class Outer(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = chain(), layers.Dense(2)
            self.head.build((None, 5))
            self.tap = spile.tap(self.body, "a", pool=None)

        def call(self, x: Any) -> Any:
            return self.head(self.tap(x)["a"])

    model = Outer()
    expected = array(model(X))
    with spile.tap(model, ["head", "body/a"], pool=None, example=X) as tap:
        found = tap(X)
    np.testing.assert_allclose(array(found["head"]), expected, rtol=1e-5)
    np.testing.assert_allclose(array(found["body/a"]), array(model.body.layers[0](X)), rtol=1e-5)
    assert not wrapped(model)


def test_a_loop_of_the_backend_is_beyond_reach() -> None:
    """Where the backend has one; else its steps are runs like any other."""
    dense = layers.Dense(4, name="a")
    dense.build((None, 4))
    note = Note()

    def rows(x: Any) -> Any:
        return ops.vectorized_map(lambda row: dense(row[None])[0], x)

    with watching_calls([dense], note, note.see_beyond):
        found = rows(ops.convert_to_tensor(X))
    np.testing.assert_allclose(array(found), array(dense(X)), rtol=1e-5)
    assert note.seen == []
    assert set(note.beyond) == {"a"}


@pytest.mark.parametrize("run_before", [False, True])
def test_predict_and_fit_are_as_without_a_tap(run_before: bool) -> None:
    model, twin = chain(), chain()
    twin.set_weights(model.get_weights())
    for each in (model, twin):
        each.compile(keras.optimizers.SGD(0.1), "mse")
    if run_before:
        model.predict(X, verbose=0)
    with spile.tap(model, "a", pool=None) as tap:
        tap(X)
        np.testing.assert_allclose(model.predict(X, verbose=0), array(twin(X)), rtol=1e-5)
        model.fit(X, X[:, :2], epochs=2, batch_size=3, shuffle=False, verbose=0)
        twin.fit(X, X[:, :2], epochs=2, batch_size=3, shuffle=False, verbose=0)
        np.testing.assert_allclose(array(tap(X)["a"]), array(twin.layers[0](X)), rtol=1e-5)
    np.testing.assert_allclose(model.predict(X, verbose=0), array(twin(X)), rtol=1e-5)
