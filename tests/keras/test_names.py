"""Paths of layers: the same in every process and on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import spile
from spile.address import literal
from spile.keras.names import children_of, is_graph, names_of


def paths(model: keras.Layer) -> list[str]:
    return [names[0] for names in names_of(model).values()]


def aliases(model: keras.Layer) -> dict[str, str]:
    """Every other name, and the path it stands for."""
    return {other: found[0] for found in names_of(model).values() for other in found[1:]}


def graph(*inside: keras.Layer, name: str | None = None, width: int = 4) -> keras.Model:
    x = start = keras.Input((width,))
    for layer in inside:
        x = layer(x)
    return keras.Model(start, x, name=name)


class Holder(keras.Model):
    """Holds what it is given as attributes; its pass does not matter here."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(name="holder")
        for name, value in attributes.items():
            setattr(self, name, value)


class Split(layers.Layer):
    def __init__(self) -> None:
        super().__init__(name="split")
        self.left, self.right = layers.Dense(2), layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.left(x) + self.right(x)


class OwnCall(keras.Model):
    """A graph, and a `call` of its own around it."""

    def __init__(self) -> None:
        start, hidden = keras.Input((4,)), layers.Dense(3, name="hidden")
        super().__init__(start, layers.Dense(2, name="end")(hidden(start)))
        self.held, self.extra = hidden, layers.Dense(2, name="x")

    def call(self, x: Any, training: Any = None) -> Any:
        return self.extra(super().call(x, training=training))


# --- paths ----------------------------------------------------------------------------------------


def test_graphs_go_by_names_and_hide_their_inputs() -> None:
    model = graph(layers.Dense(3, name="b"), Split(), layers.Dense(3, name="a"))
    assert paths(model) == ["", "b", "split", "split/left", "split/right", "a"]


def test_subclasses_go_by_attributes() -> None:
    model = Holder(
        encoder=layers.Dense(1),
        blocks=[layers.Dense(1), [layers.Dense(1), layers.Dense(1)]],
        heads={"left": layers.Dense(1), "right": (layers.Dense(1),)},
        other=7,
    )
    assert paths(model) == [
        "", "encoder", "blocks/0", "blocks/1/0", "blocks/1/1", "heads/left", "heads/right/0",
    ]  # fmt: skip


def test_graph_in_sequence_in_subclass() -> None:
    inner = graph(layers.Dense(4, name="deep"), name="inner")
    chain = keras.Sequential([layers.Dense(4, name="first"), inner], name="chain")
    model = Holder(models=[chain])
    assert paths(model) == [
        "", "models/0", "models/0/first", "models/0/inner", "models/0/inner/deep",
    ]  # fmt: skip


def test_a_layer_held_twice_is_one_layer_and_goes_by_its_attribute_before_a_list() -> None:
    """On every backend: PyTorch keeps layers apart from other attributes."""
    dense = layers.Dense(1, name="d")
    model = Holder(blocks=[dense], first=dense, second=dense)
    assert names_of(model)[dense] == ("first", "second", "blocks/0", "d", "holder/first", "holder/d")


def test_a_layer_that_holds_its_holder() -> None:
    inner = Split()
    model = Holder(inner=inner)
    object.__setattr__(inner, "parent", model)
    assert paths(model) == ["", "inner", "inner/left", "inner/right"]


@pytest.mark.parametrize("compiled", [False, True])
def test_bookkeeping_is_no_layer(compiled: bool) -> None:
    class Running(Holder):
        def call(self, x: Any) -> Any:
            return self.split(x)

    for model in (graph(layers.Dense(2, name="split")), Running(split=layers.Dense(2))):
        if compiled:
            model.compile("adam", "mse", metrics=["mae"])
            model.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
            model.predict(np.ones((2, 4)), verbose=0)
        assert paths(model) == ["", "split"]


def test_wrappers() -> None:
    both = layers.Bidirectional(layers.LSTM(2))
    model = Holder(both=both, norm=layers.SpectralNormalization(layers.Dense(2)))
    assert paths(model)[1:4] == ["both", "both/forward_layer", "both/backward_layer"]
    assert "norm/layer" in paths(model)


@pytest.mark.parametrize(
    "opaque",
    [layers.LSTM(2), layers.RNN([layers.LSTMCell(2)]), layers.TimeDistributed(layers.Dense(2))],
    ids=lambda layer: type(layer).__name__,
)
def test_what_runs_step_by_step_is_one_layer(opaque: keras.Layer) -> None:
    assert list(children_of(opaque)) == []


def test_a_graph_with_a_call_of_its_own() -> None:
    """Attributes first; what only the graph holds goes by its name."""
    model = OwnCall()
    assert not is_graph(model)
    assert sorted(paths(model)) == ["", "end", "extra", "held"]
    x = np.ones((2, 4), "float32")
    model(x)
    with spile.tap(model, "all", pool=None, example=(1, 4)) as tap:
        found = tap(x)
        tap.verify(x)
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found["extra"], model(x))), rtol=1e-6)


def test_what_is_a_graph() -> None:
    class Inherits(OwnCall):
        pass

    class Plain(keras.Model):
        def __init__(self) -> None:
            start = keras.Input((4,))
            super().__init__(start, layers.Dense(2)(start))

    class Functional(keras.Model):
        """A name is not what makes one."""

        def call(self, x: Any) -> Any:
            return x

    assert is_graph(graph(layers.Dense(1))) and is_graph(Plain())
    for other in (Inherits(), Functional(), keras.Sequential(), layers.Dense(1), Holder()):
        assert not is_graph(other)


# --- aliases --------------------------------------------------------------------------------------


def test_the_models_own_name_and_keras_names_are_aliases() -> None:
    inner = graph(layers.Dense(4, name="deep"), name="inner")
    assert aliases(graph(inner, name="net")) == {"net/inner": "inner", "net/inner/deep": "inner/deep"}
    assert aliases(Holder(encoder=inner)) == {
        "inner": "encoder",
        "holder/encoder": "encoder",
        "holder/inner": "encoder",
        "inner/deep": "encoder/deep",
        "holder/encoder/deep": "encoder/deep",
        "holder/inner/deep": "encoder/deep",
    }


def test_an_alias_never_hides_a_path() -> None:
    model = Holder(first=layers.Dense(1, name="second"), second=layers.Dense(1, name="first"))
    assert aliases(model) == {}


def test_an_alias_of_several_layers_is_none() -> None:
    model = Holder(one=layers.Dense(1, name="same"), other=layers.Dense(1, name="same"))
    assert aliases(model) == {"holder/one": "one", "holder/other": "other"}


def test_a_tap_takes_any_alias() -> None:
    model = graph(graph(layers.Dense(4, name="deep"), name="inner"), name="net")
    x = np.ones((2, 4), "float32")
    for address in ("inner/deep", "net/inner/deep"):
        with spile.tap(model, address) as tap:
            assert tap(x)[address].shape == (2, 4)
            assert tap.points[0].path == "inner/deep"


# --- odd ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a[0]", "a*", "a?b", "7", "all", "a:b", "a@in", "a#1"])
def test_names_that_mean_something_in_an_address(name: str) -> None:
    model = graph(layers.Dense(3, name=name), layers.Dense(2, name="a0"))
    with spile.tap(model, literal(name), example=(1, 4)) as tap:
        assert [point.path for point in tap.points] == [name]
        assert tap(np.ones((2, 4), "float32"))[tap.points[0].name].shape == (2, 3)


def test_keys_with_slashes() -> None:
    dense = layers.Dense(2)
    dense.build((None, 4))

    class Keyed(Holder):
        def call(self, x: Any) -> Any:
            return self.heads["a/b"](x)

    model = Keyed(heads={"a/b": dense})
    model(np.ones((2, 4), "float32"))
    assert paths(model) == ["", "heads/a/b"]
    with spile.tap(model, "heads/a/b", example=(1, 4)) as tap:
        assert tap(np.ones((2, 4), "float32"))["heads/a/b"].shape == (2, 2)


@pytest.mark.parametrize("kind", ["functional", "sequential", "deferred"])
def test_models_from_disk_have_the_same_names(kind: str, tmp_path: Path) -> None:
    inside = [layers.Dense(3, name="a"), layers.ReLU(name="b"), layers.Dense(2, name="c")]
    x = np.ones((2, 4), "float32")
    if kind == "functional":
        model = graph(*inside)
    else:
        model = keras.Sequential(inside if kind == "deferred" else [keras.Input((4,)), *inside])
    expected = model(x)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert paths(loaded) == paths(model) == ["", "a", "b", "c"]
    with spile.tap(loaded, "all", pool=None) as tap:
        found = tap(x)
        assert tap.verify(x).points == 3
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found["c"], expected)), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
def test_quantized_layers() -> None:
    model = graph(layers.Dense(8, name="a"), layers.Dense(2, name="b"))
    model.quantize("int8")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    with spile.tap(model, ["a", "b@in", "b"], pool=None) as tap:
        found = {name: keras.ops.convert_to_numpy(value) for name, value in tap(x).items()}
        tap.verify(x)
    np.testing.assert_allclose(found["b"], keras.ops.convert_to_numpy(model(x)), rtol=1e-6)
    np.testing.assert_array_equal(found["a"], found["b@in"])
    assert not any(name in vars(layer) for layer in model.layers for name in ("call", "quantized_call"))


def test_an_attribute_that_begins_like_tensorflow_s_own() -> None:
    class Block(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self._self_attention_layer = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self._self_attention_layer(x)

    block = Block()
    assert [found[0] for found in names_of(block).values()] == ["", "_self_attention_layer"]
