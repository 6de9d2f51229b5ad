"""The tap on Keras: what of a model it runs, and what it is called with."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile import ImagePreprocessing
from spile.errors import AddressError, CaptureError, ModelError
from spile.models import as_loaded

pytestmark = pytest.mark.essential

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def array(value: Any) -> Any:
    return ops.convert_to_numpy(value)


class Ran(layers.Layer):
    """Counts its runs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.runs = 0

    def call(self, x: Any) -> Any:
        self.runs += 1
        return x * 1


def graph(*inside: keras.Layer, name: str | None = None, width: int = 4) -> keras.Model:
    x = start = keras.Input((width,))
    for layer in inside:
        x = layer(x)
    return keras.Model(start, x, name=name)


def dense(name: str, width: int = 4) -> keras.Layer:
    return layers.Dense(width, name=name)


# --- what is run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_a_graph_is_cut_to_what_the_points_need(nested: bool) -> None:
    """Branches that lead to no point do not run, though they come before it."""
    aside, beyond = Ran(name="aside"), Ran(name="beyond")
    start = keras.Input((4,))
    side = graph(aside, name="side")(start) if nested else aside(start)
    middle = graph(dense("deep"), name="middle")(start) if nested else dense("middle")(start)
    model = keras.Model(start, layers.Add()([side, beyond(middle)]))
    with spile.tap(model, "middle", pool=None) as tap:
        before = aside.runs, beyond.runs
        found = tap(X)["middle"]
        assert (aside.runs, beyond.runs) == before
        assert {layer.name for layer in tap.pruned().layers} == {
            start._keras_history.operation.name,
            "middle",
        }
        whole, same = tap.with_output(X)
        assert (aside.runs, beyond.runs) == (before[0] + 1, before[1] + 1)
        np.testing.assert_array_equal(array(same["middle"]), array(found))
        np.testing.assert_allclose(array(whole), array(model(X)), rtol=1e-6)
    inner = model.get_layer("middle")
    np.testing.assert_allclose(array(found), array(inner(X)), rtol=1e-6)


def test_inside_a_nested_model_the_pass_stops_too() -> None:
    late = Ran(name="late")
    inner = graph(dense("first"), late, name="inner")
    model = graph(inner, dense("head"))
    with spile.tap(model, "inner/first", pool=None) as tap:
        before = late.runs
        np.testing.assert_allclose(
            array(tap(X)["inner/first"]), array(inner.get_layer("first")(X)), rtol=1e-6
        )
        assert late.runs == before


def test_an_input_that_no_point_needs_is_still_taken() -> None:
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    joined = layers.Concatenate(name="join")([dense("a")(left), dense("b")(right)])
    batch = {"left": X, "right": X[:, :3]}
    for inputs in ({"left": left, "right": right}, [left, right]):
        model = keras.Model(inputs, joined)
        given = batch if isinstance(inputs, dict) else list(batch.values())
        with spile.tap(model, "a", pool=None) as tap:
            np.testing.assert_allclose(array(tap(given)["a"]), array(model.get_layer("a")(X)), rtol=1e-6)
            assert tap.verify(given).points == 1


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
def test_points_of_a_shared_layer(order: list[str]) -> None:
    """Their numbers are those of the whole model, so that nothing is cut."""
    shared = dense("shared")
    start = keras.Input((4,))
    first = dense(order[0])(shared(start))
    model = keras.Model(start, dense(order[1])(shared(first)))
    with spile.tap(model, ["shared#1", "shared#0"], pool=None) as tap:
        assert tap.pruned() is model
        found = tap(X)
        np.testing.assert_allclose(array(found["shared#0"]), array(shared(X)), rtol=1e-6)
        again = shared(model.get_layer(order[0])(shared(X)))
        np.testing.assert_allclose(array(found["shared#1"]), array(again), rtol=1e-5, atol=1e-6)


def test_a_layer_of_the_graph_that_another_layer_runs_too() -> None:
    """Its later run may be the one that is asked for, though the graph has it once."""

    class Again(layers.Layer):
        def __init__(self, inner: keras.Layer) -> None:
            super().__init__(name="again")
            self.inner = inner

        def call(self, x: Any) -> Any:
            return self.inner(x)

    start, shared = keras.Input((4,)), dense("shared")
    once = shared(start)
    model = keras.Model(start, Again(shared)(once))
    with spile.tap(model, ["shared#0", "shared#1"], pool=None) as tap:
        found = tap(X)
        np.testing.assert_allclose(array(found["shared#0"]), array(shared(X)), rtol=1e-6)
        np.testing.assert_allclose(array(found["shared#1"]), array(model(X)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["beside", "before", "after"])
@pytest.mark.parametrize("addresses", ["branch/shared#0", "branch/shared#1", "leaves"])
def test_a_layer_of_a_model_inside_that_runs_outside_of_it_too(order: str, addresses: str) -> None:
    shared = dense("shared")
    branch = graph(shared, name="branch")
    first, second = keras.Input((4,)), keras.Input((4,))
    model = {
        "beside": lambda: keras.Model([first, second], [branch(first), shared(second)]),
        "before": lambda: keras.Model([first, second], layers.Add()([branch(shared(first)), second])),
        "after": lambda: keras.Model([first, second], layers.Add()([shared(branch(first)), second])),
    }[order]()
    inputs = [X, 2 * X]
    with spile.tap(model, addresses, pool=None) as tap:
        found, whole = tap(inputs), tap.with_output(inputs)[1]
        assert found.keys() == whole.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(array(value), array(whole[name]))
        tap.verify(inputs)


def test_a_layer_that_was_also_called_elsewhere() -> None:
    one = dense("one")
    other = keras.Input((4,))
    keras.Model(other, one(layers.ReLU()(other)))
    model = graph(one, dense("two"))
    one(keras.Input((4,)))
    with spile.tap(model, "one", pool=None) as tap:
        np.testing.assert_allclose(array(tap(X)["one"]), array(one(X)), rtol=1e-6)


def test_a_sequence_that_grew() -> None:
    model = keras.Sequential([keras.Input((4,)), dense("one")])
    model(X)
    model.add(dense("two", 2))
    with spile.tap(model, ["one", "two"], pool=None) as tap:
        found = tap(X)
        np.testing.assert_allclose(array(found["two"]), array(model(X)), rtol=1e-6)
    model.pop()
    with pytest.raises(AddressError, match="no layer 'two'"):
        spile.tap(model, "two")


def test_layers_of_several_outputs_in_a_graph() -> None:
    start = keras.Input((5, 4))
    sequence, *state = layers.LSTM(3, return_sequences=True, return_state=True, name="lstm")(start)
    model = keras.Model(start, dense("head")(layers.Concatenate()([sequence[:, -1], *state])))
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    with spile.tap(model, ["lstm:0", "lstm:2"], pool=None) as tap:
        assert [point.layout for point in tap.points] == ["BTC", "BC"]
        found, expected = tap(x), model.get_layer("lstm")(x)
        for item in (0, 2):
            np.testing.assert_allclose(
                array(found[f"lstm:{item}"]), array(expected[item]), rtol=1e-5, atol=1e-6
            )


def test_layers_beside_which_keras_puts_operations() -> None:
    """Arithmetic between tensors becomes nodes of the graph that are no layers of the model's."""
    start = keras.Input((4,))
    model = keras.Model(start, ops.relu(dense("a")(start) * 2 + 1) - dense("b")(start))
    with spile.tap(model, ["a", "b", "@out"], pool=None) as tap:
        found = tap(X)
        np.testing.assert_allclose(array(found["@out"]), array(model(X)), rtol=1e-6)
        tap.verify(X)


# --- what it is called with -----------------------------------------------------------------------


class Two(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = layers.Dense(3), layers.Dense(3)
        self.left.build((None, 4))
        self.right.build((None, 4))

    def call(self, one: Any, other: Any = None, scale: float = 1.0, training: Any = None) -> Any:
        y = self.left(one) * scale
        return y if other is None else y + self.right(other)


def test_arguments_by_place_by_name_and_in_a_mapping() -> None:
    model = Two()
    model(X, X)
    with spile.tap(model, ["left", "right"], pool=None, example=(X, X)) as tap:
        expected = array(model.right(X * 2))
        for found in (
            tap(X, X * 2),
            tap(X, other=X * 2),
            tap(one=X, other=X * 2),
            tap({"one": X, "other": X * 2}),
        ):
            np.testing.assert_allclose(array(found["right"]), expected, rtol=1e-6)
        with pytest.raises(CaptureError, match="did not run in this batch"):
            tap(X)
        output, _ = tap.with_output(X, X, scale=3.0)
        np.testing.assert_allclose(array(output), array(model(X, X, scale=3.0)), rtol=1e-6)


def test_arrays_of_any_kind() -> None:
    import torch

    model = graph(dense("a"))
    with spile.tap(model, "a", pool=None) as tap:
        expected = array(tap(X)["a"])
        for same in (X.astype("float64"), ops.convert_to_tensor(X), torch.from_numpy(X)):
            np.testing.assert_allclose(array(tap(same)["a"]), expected, rtol=1e-6)


def test_pixels_are_normalised_where_the_preprocessing_is_known() -> None:
    spec = ImagePreprocessing(crop=(8, 8), mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    start = keras.Input((8, 8, 3))
    loaded = replace(
        as_loaded(keras.Model(start, layers.Conv2D(2, 3, name="conv")(start))),
        reference="keras:Tiny",
        preprocessing=spec,
        channels_last=True,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), "uint8")
    ready = ((pixels / 255 - spec.mean) / spec.std).astype("float32")
    with spile.tap(loaded, ["@in", "conv"], pool=None) as tap:
        np.testing.assert_allclose(array(tap(pixels)["@in"]), ready, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            array(tap(pixels)["conv"]), array(tap(ready)["conv"]), rtol=1e-4, atol=1e-5
        )
        assert tap.verify(pixels).points == 2
        with pytest.raises(ModelError, match="the images are 6x8"):
            tap(pixels[:, :6])


# --- modes ----------------------------------------------------------------------------------------


def test_the_pass_is_one_of_evaluation_unless_told_otherwise() -> None:
    """`as_is` takes the model's own default; what it is called with comes first in both."""

    class Told(layers.Layer):
        def call(self, x: Any, training: Any = None) -> Any:
            return x * (0 if training is None else 1 if training else 2)

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.told = Told()

        def call(self, x: Any, training: Any = True) -> Any:
            return self.told(x, training=training)

    model = Model()
    model(X)
    for mode, times in (("eval", 2), ("as_is", 1)):
        with spile.tap(model, "told", pool=None, example=X, mode=mode) as tap:  # type: ignore[arg-type]
            np.testing.assert_allclose(array(tap(X)["told"]), X * times, rtol=1e-6)
            np.testing.assert_allclose(array(tap(X, training=True)["told"]), X, rtol=1e-6)
            tap.verify(X)


def test_statistics_do_not_move() -> None:
    model = graph(layers.BatchNormalization(name="norm"))
    before = [array(v) for v in model.variables]
    with spile.tap(model, "norm", pool=None, mode="as_is") as tap:
        tap(X, training=True)
        tap.with_output(X, training=True)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(array(variable), old)


# --- gradients ------------------------------------------------------------------------------------


def test_gradients_reach_the_weights() -> None:
    """Of the sum of a dense layer's outputs: the sum of its inputs, in every column."""
    model = graph(dense("a", 3), dense("b"))
    layer = model.get_layer("a")
    expected = np.repeat(X.sum(0)[:, None], 3, 1)
    with spile.tap(model, "a", pool=None) as tap:
        match BACKEND:
            case "torch":
                tap(X)["a"].sum().backward()
                found = layer.kernel.value.grad.numpy()
            case "jax":
                import jax

                def total(kernel: Any) -> Any:
                    with keras.StatelessScope(state_mapping=[(layer.kernel, kernel)]):
                        return tap(X)["a"].sum()

                found = np.asarray(jax.grad(total)(layer.kernel.value))
            case _:
                import tensorflow as tf

                with tf.GradientTape() as tape:
                    total_ = tf.reduce_sum(tap(X)["a"])
                found = tape.gradient(total_, layer.kernel.value).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_under_the_backends_own_compiler() -> None:
    """A training step that holds a tap can be compiled."""
    model = graph(dense("a", 3), dense("b"))
    with spile.tap(model, "a", pool=None) as tap:
        expected = array(tap(X)["a"])
        match BACKEND:
            case "jax":
                import jax

                run = jax.jit(lambda x: tap(x)["a"])
            case "tensorflow":
                import tensorflow as tf

                run = tf.function(lambda x: tap(x)["a"])
            case _:
                pytest.skip("torch.compile takes minutes")
        for _ in range(2):
            np.testing.assert_allclose(array(run(ops.convert_to_tensor(X))), expected, rtol=1e-5)


# --- copies ---------------------------------------------------------------------------------------


def test_a_model_can_be_copied_and_saved_while_it_is_tapped(tmp_path: Any) -> None:
    model = graph(dense("a"), dense("b"))
    with spile.tap(model, "a", pool=None) as tap:
        expected = array(tap(X)["a"])
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        twin = keras.models.clone_model(model)
        twin.set_weights(model.get_weights())
        for other in (loaded, twin, copy.deepcopy(model)):
            with spile.tap(other, "a", pool=None) as another:
                np.testing.assert_allclose(array(another(X)["a"]), expected, rtol=1e-6)
