"""Weights by keys that mean the same in every process: each stored once, none lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from safetensors.numpy import load_file, save_file

from spile.errors import ModelError
from spile.keras.weights import (
    architecture_hash,
    load_weights,
    save_weights,
    stable_paths,
    weights_hash,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
"""Of NumPy, when Keras saves a model."""

RAMP = "08eb5d453895a41dca36b16fab0dfd3ffd7e0bd9cd1092c8949b1e056a4d83ff"
"""Of `ramp()`, on every backend."""


def lstm() -> keras.Model:
    return keras.Sequential([keras.Input((6, 4)), layers.LSTM(3)])


def bidirectional() -> keras.Model:
    return keras.Sequential([keras.Input((6, 4)), layers.Bidirectional(layers.GRU(3))])


def stacked() -> keras.Model:
    cells = [layers.LSTMCell(3), layers.LSTMCell(4)]
    return keras.Sequential([keras.Input((6, 4)), layers.RNN(cells)])


def attention() -> keras.Model:
    x = keras.Input((6, 4))
    return keras.Model(x, layers.MultiHeadAttention(2, 3, dropout=0.1)(x, x))


def distributed() -> keras.Model:
    inner = keras.Sequential([layers.Dense(4), layers.BatchNormalization()])
    return keras.Sequential([keras.Input((6, 4)), layers.TimeDistributed(inner)])


def convolutional() -> keras.Model:
    normalised = [layers.Conv2D(3, 2), layers.BatchNormalization(), layers.Dropout(0.5), layers.Conv2D(3, 2)]
    return keras.Sequential([keras.Input((6, 6, 2)), *normalised])


def nested() -> keras.Model:
    def block(x: Any, depth: int) -> Any:
        y = inner = keras.Input((4,))
        y = layers.Dense(4)(y)
        return keras.Model(inner, block(y, depth - 1) if depth else y)(x)

    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2)(block(block(x, 2), 0)))


def shared() -> keras.Model:
    left, right = keras.Input((4,)), keras.Input((4,))
    encoder = keras.Sequential([layers.Dense(3), layers.Dense(3)])
    return keras.Model([left, right], encoder(left) - encoder(right))


class Tied(layers.Layer):
    """Borrows a weight."""

    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(name="bias", shape=(4,))

    def call(self, x: Any) -> Any:
        return x @ self.kernel + self.bias


class Own(keras.Model):
    """Weights of its own with and without names, layers in lists and dicts, a tie, and a weightless layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [layers.Dense(4), layers.Dense(4)]
        self.heads = {"left": layers.Dense(2), "right": layers.Dense(2)}
        self.noise = layers.GaussianDropout(0.1)
        self.scale = self.add_weight(name="scale", shape=(4,), initializer="ones")
        self.offsets = [self.add_weight(shape=(4,)), self.add_weight(shape=(4,))]
        self.tied = Tied()

    def build(self, shape: Any) -> None:
        for layer in (*self.blocks, *self.heads.values()):
            layer.build((None, 4))
        self.tied.kernel = self.own = self.blocks[1].kernel
        self.tied.build((None, 4))

    def call(self, x: Any) -> Any:
        for block, offset in zip(self.blocks, self.offsets, strict=True):
            x = block(x) * self.scale + offset
        return self.heads["left"](self.tied(self.noise(x)))


def own() -> keras.Model:
    model = Own()
    model.build((None, 4))
    return model


MODELS = [lstm, bidirectional, stacked, attention, distributed, convolutional, nested, shared, own]


def ramp() -> keras.Model:
    """The same weights everywhere."""
    model = own()
    start = 0
    for variable in model.weights:
        variable.assign(np.arange(start, start + int(np.prod(variable.shape))).reshape(variable.shape))
        start += 7
    return model


def keys(model: keras.Model, path: Path) -> set[str]:
    save_weights(model, path)
    return set(load_file(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("make", MODELS)
def test_every_weight_is_stored_once_and_comes_back(make: Callable[[], keras.Model], path: Path) -> None:
    model, other = make(), make()
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))

    save_weights(model, path)
    load_weights(other, path)

    assert len(load_file(path)) == len(model.weights) > 0
    for before, after in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (before.value, after.value)))
    assert weights_hash(other) == weights_hash(model)
    assert architecture_hash(other) == architecture_hash(model)
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_keys_say_where_a_weight_is(path: Path) -> None:
    assert keys(own(), path) == {
        *("scale", "variable", "variable_1", "tied/bias"),
        *("blocks/0/kernel", "blocks/0/bias", "blocks/1/kernel", "blocks/1/bias"),
        *("heads/left/kernel", "heads/left/bias", "heads/right/kernel", "heads/right/bias"),
    }
    assert keys(lstm(), path) == {"lstm/kernel", "lstm/recurrent_kernel", "lstm/bias"}
    assert {"rnn/kernel", "rnn/kernel_1", "rnn/recurrent_kernel_1"} <= keys(stacked(), path)


def test_names_that_keras_makes_up_are_counted_within_their_model() -> None:
    x = keras.Input((4,))
    y = layers.Dense(4, name="dense_1")(layers.Dense(4)(x))
    y = layers.Dense(4)(layers.Dense(4, name="chosen")(y))
    y = layers.ReLU(name="dense")(y)
    model = keras.Model(x, y)

    paths = [path for layer, path in stable_paths(model).items() if layer is not model]

    assert paths == ["dense_1", "dense_2", "chosen", "dense_3", "dense"]


def test_hash_sees_values_statistics_dtypes_shapes_and_places() -> None:
    def net(units: int = 4, dtype: str = "float32", first: str = "a") -> keras.Model:
        keras.utils.set_random_seed(0)
        normalise = layers.BatchNormalization(name="norm", dtype=dtype)
        return keras.Sequential([keras.Input((4,)), layers.Dense(units, name=first, dtype=dtype), normalise])

    weight, statistic, swapped = net(), net(), net()
    kernel = keras.ops.convert_to_numpy(weight.layers[0].kernel.value).copy()
    kernel[1, 2] += 1e-6
    weight.layers[0].kernel.assign(kernel)
    statistic.layers[1].moving_mean.assign([0, 0, 0, 1e-6])
    swapped.layers[0].bias.assign(np.ones(4))
    swapped.layers[1].gamma.assign(np.zeros(4))

    assert weights_hash(net()) == weights_hash(net())
    changed = [weight, statistic, swapped, net(5), net(dtype="float16"), net(first="b")]
    assert len({weights_hash(model) for model in (net(), *changed)}) == 7


@pytest.mark.zoo
def test_hash_is_the_same_on_every_backend_and_in_other_processes() -> None:
    code = "import keras; keras.layers.Dense(1); keras.Variable(1.0)\n"
    code += f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "import test_weights as t; print(t.weights_hash(t.ramp()), t.architecture_hash(t.ramp()))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert weights_hash(ramp()) == RAMP
    assert there.stdout.split() == [RAMP, architecture_hash(ramp())]


def test_what_training_and_chance_leave_behind_does_not_count() -> None:
    model = convolutional()
    before = weights_hash(model), architecture_hash(model)

    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    model.trainable = False
    for layer in model.layers:
        for generator in layer._seed_generators:
            generator.next()

    assert (weights_hash(model), architecture_hash(model)) == before


def test_bfloat16_and_half_precision_come_back(path: Path) -> None:
    for dtype in ("bfloat16", "float16"):
        model, other = (keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype=dtype)]) for _ in range(2))
        save_weights(model, path)
        assert {value.dtype.name for value in load_file(path).values()} == {dtype}
        load_weights(other, path)
        assert weights_hash(other) == weights_hash(model)


def test_normalisation_computes_with_what_was_loaded(path: Path) -> None:
    def net() -> keras.Model:
        return keras.Sequential([keras.Input((3,)), layers.Normalization()])

    x = np.random.default_rng(0).normal(5, 3, (20, 3)).astype(np.float32)
    model, other = net(), net()
    model.layers[0].adapt(x)
    save_weights(model, path)
    load_weights(other, path)

    expected, found = (keras.ops.convert_to_numpy(m(x)) for m in (model, other))
    np.testing.assert_array_equal(found, expected)
    assert abs(expected.mean()) < 0.1
    assert load_file(path)["normalization/count"].dtype == np.int64


def test_keep_takes_layers_without_what_is_inside_them(path: Path) -> None:
    model = own()
    save_weights(model, path, keep={"", "blocks/1", "no/such/layer"})
    assert set(load_file(path)) == {"scale", "variable", "variable_1", "blocks/1/kernel", "blocks/1/bias"}

    other = own()
    with pytest.raises(ModelError, match=r"7 missing \(blocks/0/kernel, "):
        load_weights(other, path)
    load_weights(other, path, allow_missing=True)
    found, expected = (keras.ops.convert_to_numpy(m.blocks[1].kernel.value) for m in (other, model))
    np.testing.assert_array_equal(found, expected)


def test_keep_goes_by_the_names_a_model_has_now(path: Path) -> None:
    model = convolutional()
    last = model.layers[-1]
    save_weights(model, path, keep={last.name})
    assert set(load_file(path)) == {"conv2d_1/kernel", "conv2d_1/bias"}


def test_keep_has_all_that_opaque_layers_hold(path: Path) -> None:
    save_weights(model := distributed(), path, keep={model.layers[0].name})
    assert len(load_file(path)) == len(model.weights) == 6


def test_what_does_not_fit_is_listed_and_nothing_is_changed(path: Path) -> None:
    model = convolutional()
    before = weights_hash(model)
    save_weights(convolutional(), path)
    weights = load_file(path)
    weights["conv2d/kernel"] = np.zeros((1, 2), np.float32)
    weights["conv2d/bias"] = np.zeros(3, np.float16)
    weights["dense/bias"] = weights.pop("conv2d_1/bias")
    save_file(weights, path)

    with pytest.raises(ModelError) as caught:
        load_weights(model, path)

    assert "1 missing (conv2d_1/bias)" in str(caught.value)
    assert "1 unexpected (dense/bias)" in str(caught.value)
    assert "1 of another shape (conv2d/kernel (1, 2), not (2, 2, 2, 3))" in str(caught.value)
    assert "1 of another dtype (conv2d/bias float16, not float32)" in str(caught.value)
    assert weights_hash(model) == before


@pytest.mark.parametrize("content", [None, b"junk"])
def test_unreadable_files_are_one_line(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"no weights file|not a readable safetensors file") as caught:
        load_weights(lstm(), path)
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(lstm(), path)
    before = path.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spile.keras.weights.save_file", full)
    with pytest.raises(ModelError, match="No space left on device"):
        save_weights(lstm(), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def graph(**options: Any) -> keras.Model:
    """Two convolutions and a sum; `options` change one thing."""
    x = keras.Input((8, 8, 2))
    first = layers.Conv2D(2, 3, padding="same", activation=options.get("activation", "relu"))(x)
    convolve = layers.Conv2D(
        2, 3, padding="same", strides=options.get("strides", 1), dtype=options.get("dtype")
    )
    second = convolve(first)
    if options.get("twice"):
        second = convolve(second)
    if options.get("strides", 1) == 1:
        second = second * options.get("factor", 2.0) + options.get("plus", lambda x, first: x)(x, first)
    return keras.Model(x, [second, first] if options.get("both") else second)


CHANGES = {
    "activation": "tanh",
    "strides": 2,
    "dtype": "mixed_float16",
    "factor": 3.0,
    "plus": lambda x, first: first,
    "twice": True,
    "both": True,
}


def test_architecture_is_options_and_wiring_not_weights_or_made_up_names() -> None:
    assert architecture_hash(graph()) == architecture_hash(graph())
    models = [graph(), *(graph(**{name: value}) for name, value in CHANGES.items())]
    assert len({architecture_hash(model) for model in models}) == len(CHANGES) + 1


def test_architecture_is_the_same_after_layers_ran_elsewhere_and_after_reloading(tmp_path: Path) -> None:
    model = graph()
    before = architecture_hash(model)
    model.layers[1](keras.Input((8, 8, 2)))
    model.save(tmp_path / "m.keras")

    assert architecture_hash(model) == before
    assert architecture_hash(keras.saving.load_model(tmp_path / "m.keras")) == before


def test_architecture_of_layers_that_do_not_tell_their_options() -> None:
    class Silent(layers.Layer):
        def __init__(self, thing: Any) -> None:
            super().__init__()
            self.thing = thing

        def call(self, x: Any) -> Any:
            return x

    class Loud(Silent):
        pass

    one, other, loud = (
        keras.Sequential([keras.Input((2,)), layer])
        for layer in (Silent(object()), Silent(object()), Loud(object()))
    )
    assert architecture_hash(one) == architecture_hash(other) != architecture_hash(loud)


def test_architecture_before_and_after_the_first_batch() -> None:
    model = keras.Sequential([layers.Dense(2), layers.Dense(2)])
    before = architecture_hash(model)
    model(np.zeros((5, 3), np.float32))
    assert architecture_hash(model) == before
