"""The dry pass: what ran, with which axes; without values wherever that is enough."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile.errors import CaptureError, ModelError
from spile.keras.accelerating import engine_for
from spile.keras.observing import observe, with_samples
from spile.keras.trees import Inputs
from spile.observation import Item, Observation

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def array(value: Any) -> Any:
    return ops.convert_to_numpy(value)


def output(observation: Observation, path: str) -> Item:
    return observation.by_path[path][0].outputs[0]


def layouts(model: keras.Model, example: Any = None) -> dict[str, str | None]:
    observation = observe(model, example)
    return {path: output(observation, path).layout for path in observation.by_path if path}


def row(start: Any, *inside: keras.Layer, **options: Any) -> keras.Model:
    x = start
    for layer in inside:
        x = layer(x)
    return keras.Model(start, x, **options)


def built(*inside: keras.Layer, width: int = 4) -> None:
    for layer in inside:
        layer.build((None, width))


# --- what ran -------------------------------------------------------------------------------------


def test_calls_are_recorded_in_order_with_their_tensors() -> None:
    class Twice(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            inside = [layers.Dense(4, name="d"), layers.ReLU(name="r")]
            self.inner = keras.Sequential([keras.Input((4,)), *inside])
            self.idle = layers.Dense(4)
            built(self.idle)

        def call(self, x: Any) -> Any:
            return {"first": self.inner(x), "pair": (self.inner(x), None)}

    model = Twice()
    model(X)
    found = observe(model, (1, 4))
    assert [(c.path, c.index) for c in found.calls] == [
        ("inner/d", 0), ("inner/r", 0), ("inner", 0), ("inner/d", 1), ("inner/r", 1), ("inner", 1), ("", 0),
    ]  # fmt: skip
    assert all(c.start < c.end for c in found.calls)
    assert [c.end for c in found.calls] == sorted(c.end for c in found.calls)
    assert [item.key for item in found.root.outputs] == ["first", "pair.0"]
    assert found.root.outputs[0].identity == found.calls[2].outputs[0].identity
    assert set(found.layers) == {"", "inner", "inner/d", "inner/r", "idle"}
    assert found.layers["inner"].container and found.layers["inner/r"].leaf
    assert found.layers["inner/d"].types == ("Dense",)
    assert not found.value_dependent


def test_lists_of_layers_are_containers() -> None:
    class Blocks(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [layers.Dense(4), layers.Dense(4)]
            built(*self.blocks)

        def call(self, x: Any) -> Any:
            return self.blocks[1](self.blocks[0](x))

    model = Blocks()
    model(X)
    found = observe(model, (1, 4))
    assert found.layers["blocks"].container and not found.layers["blocks"].leaf
    assert [layer.path for layer in found.layers.values()] == ["", "blocks", "blocks/0", "blocks/1"]


def test_models_without_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="'net' has no weights yet: call it on one batch"):
        observe(keras.Sequential([layers.Dense(2)], name="net"), (1, 4))

    class Lazy(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="lazy")
            self.one, self.other = layers.Dense(4), layers.Dense(4)

        def call(self, x: Any) -> Any:
            return self.other(self.one(x))

    model = Lazy()
    model.built = True
    with pytest.raises(ModelError, match=r"(no weights yet|does not take two samples)"):
        observe(model, (1, 4))


def test_a_model_that_does_not_take_the_example() -> None:
    model = row(keras.Input((4,)), layers.Dense(2))
    with pytest.raises(ModelError, match=r"two samples like the example \(\[2, 5\] float32\): Value"):
        observe(model, (1, 5))


def test_samples_are_repeated() -> None:
    args = (ops.convert_to_tensor(X), {"table": ops.ones((7, 2))})
    found = with_samples(Inputs(args, {"other": ops.ones((3, 1)), "n": 4}), 5)
    assert tuple(found.args[0].shape) == (5, 4)
    assert (array(found.args[0]) == X[:1]).all()
    assert tuple(found.args[1]["table"].shape) == (7, 2)
    assert tuple(found.kwargs["other"].shape) == (5, 1)
    assert found.kwargs["n"] == 4


# --- values ---------------------------------------------------------------------------------------


class Signed(layers.Layer):
    """Looks at a value in Python."""

    def call(self, x: Any) -> Any:
        return x if float(ops.sum(x)) > 0 else -x

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@pytest.mark.parametrize("kind", ["subclass", "graph", "sequence"])
def test_what_looks_at_values_runs_on_real_ones(kind: str) -> None:
    class Looking(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.sign, self.dense = Signed(name="sign"), layers.Dense(2)
            built(self.dense)

        def call(self, x: Any) -> Any:
            return self.dense(self.sign(x))

    inside = [Signed(name="sign"), layers.Dense(2, name="dense")]
    if kind == "subclass":
        model = Looking()
        model(X)
    elif kind == "graph":
        model = row(keras.Input((4,)), *inside)
    else:
        model = keras.Sequential(inside)
        model(X)
    assert observe(model, X).value_dependent
    with spile.tap(model, ["sign", "dense"], pool=None, example=X) as tap:
        assert not tap.traceable
        for x in (X, -X):
            expected = x if x.sum() > 0 else -x
            np.testing.assert_allclose(array(tap(x)["sign"]), expected)
            engine = engine_for(tap, name="auto", preprocessing=None, precision="float32")
            np.testing.assert_allclose(engine(x)["sign"], expected)
            assert engine.name == "eager"


def test_arguments_that_are_no_tensors_are_not_traced() -> None:
    class Flagged(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(2)
            built(self.dense)

        def call(self, x: Any, twice: bool = False, times: int = 1, other: Any = None) -> Any:
            return self.dense(x * times) * (2 if twice else 1)

    model = Flagged()
    model(X)
    found = observe(model, {"x": X, "twice": True, "times": 3, "other": None})
    assert not found.value_dependent
    assert [call.path for call in found.calls] == ["dense", ""]


# --- loops of the backend -------------------------------------------------------------------------


class Loops(keras.Model):
    """A layer in each kind of loop or branch that Keras has, and one that runs outside as well."""

    def __init__(self, **kinds: Any) -> None:
        super().__init__()
        self.both, self.inside, self.head = layers.Dense(4), layers.Dense(4), layers.Dense(2)
        built(self.both, self.inside, self.head)
        self.loop = kinds.pop("loop")

    def call(self, x: Any) -> Any:
        return self.head(self.both(x) + self.loop(lambda t: self.both(self.inside(t)), x))


def scanned(step: Any, x: Any) -> Any:
    return ops.scan(lambda carry, _: (step(carry), ops.sum(carry)), x, ops.ones((3, 1)))[0]


def looped(step: Any, x: Any) -> Any:
    return ops.while_loop(lambda i, v: i < 2, lambda i, v: (i + 1, step(v)), (0, x))[1]


def branched(step: Any, x: Any) -> Any:
    return ops.cond(ops.sum(x) > 1e9, lambda: x, lambda: step(x))


def vectorized(step: Any, x: Any) -> Any:
    return ops.vectorized_map(lambda one: step(one[None])[0], x)


LOOPS = {"scan": scanned, "while": looped, "cond": branched, "vectorized_map": vectorized}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_layers_in_loops_of_the_backend_never_leak(loop: Any) -> None:
    """Python's own loops, which are all that PyTorch has but for `vmap`, are within reach."""
    if loop is scanned and BACKEND == "tensorflow":
        pytest.skip("Keras' scan on TensorFlow takes no such carry")
    model, x = Loops(loop=loop), X
    model(x)
    beyond = BACKEND != "torch" or loop is vectorized
    found = observe(model, x)
    assert ("inside" in found.by_path) == (not beyond)
    assert ("both" in found.by_path) == (not beyond)
    with spile.tap(model, "all", pool=None, example=x) as tap:
        points = [point.name for point in tap.points]
        assert points[-1] == "head"
        assert len(points) == 1 or not beyond
        values = {name: array(value) for name, value in tap(x).items()}
        tap.verify(x, rtol=1e-5, atol=1e-5)
        engine = engine_for(tap, name="auto", preprocessing=None, precision="float32")
        for name, value in engine(x).items():
            np.testing.assert_allclose(value, values[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["head"], array(model(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        layers.LSTM(3, return_sequences=True),
        layers.TimeDistributed(layers.Dense(3)),
        layers.Bidirectional(layers.GRU(3, return_sequences=True)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_recurrent_layers(layer: keras.Layer) -> None:
    model = row(keras.Input((5, 4)), layer, layers.Dense(2, name="head"))
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    with spile.tap(model, "all", pool=None) as tap:
        assert all(point.layout == "BTC" for point in tap.points)
        values = tap(x)
        tap.verify(x)
    np.testing.assert_allclose(array(values[layer.name]), array(layer(x)), rtol=1e-5, atol=1e-6)


# --- axes -----------------------------------------------------------------------------------------


def test_axes_of_images() -> None:
    inside = [
        layers.Conv2D(5, 3, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="act"),
        layers.MaxPooling2D(name="down"),
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dense(2, name="head"),
    ]
    maps = dict.fromkeys(("conv", "norm", "act", "down"), "BYXC")
    for size in ((16, 12, 3), (None, None, 3)):
        model = row(keras.Input(size), *inside)
        assert layouts(model, (1, 16, 12, 3)) == maps | {"pool": "BC", "head": "BC"}


def test_axes_of_channels_first_layers() -> None:
    """Which TensorFlow cannot run on a CPU, only trace."""
    model = row(
        keras.Input((3, 16, 12)),
        layers.Conv2D(5, 3, data_format="channels_first", name="conv"),
        layers.BatchNormalization(axis=1, name="norm"),
        layers.ReLU(name="act"),
        layers.AveragePooling2D(2, data_format="channels_first", name="down"),
    )
    assert layouts(model) == dict.fromkeys(("conv", "norm", "act", "down"), "BCYX")


CHANNELS_FIRST = """
import keras, numpy as np, spile
from keras import layers
from spile.keras.observing import observe
keras.config.set_image_data_format("channels_first")
start = keras.Input((3, None, None))
x = layers.Conv2D(5, 3, padding="same", name="conv")(start)
x = layers.Conv2D(7, 3, padding="same", name="next")(layers.ReLU(name="act")(x))
model = keras.Model(start, layers.GlobalAveragePooling2D(name="pool")(x))
tap = spile.tap(model, ["conv", "act", "next", "pool"], pool=None, example=(1, 3, 16, 12))
assert [p.layout for p in tap.points] == ["BCYX"] * 3 + ["BC"], tap.points
rows = {row.address: row for row in spile.layers(model, (1, 3, 16, 12))}
assert rows["conv"].macs == 16 * 12 * 3 * 9 * 5, rows["conv"]
assert rows["conv"].stride == 1
if keras.backend.backend() != "tensorflow":
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 12)).astype("float32")
    whole = keras.ops.convert_to_numpy(tap(images)["act"])
    pooled = spile.tap(model, "act", pool="avg", example=images)(images)["act"]
    assert np.allclose(keras.ops.convert_to_numpy(pooled), whole.mean((2, 3)), atol=1e-6)
"""


@pytest.mark.zoo
def test_axes_where_keras_puts_channels_first() -> None:
    run = subprocess.run([sys.executable, "-c", CHANNELS_FIRST], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]


def test_axes_of_signals_and_volumes() -> None:
    signal = row(keras.Input((16, 3)), layers.Conv1D(5, 3, name="conv"), layers.MaxPooling1D(name="down"))
    assert layouts(signal) == {"conv": "BTC", "down": "BTC"}
    volume = row(keras.Input((8, 8, 6, 3)), layers.Conv3D(5, 3, name="conv"), layers.ReLU(name="act"))
    assert layouts(volume) == {"conv": "BZYXC", "act": "BZYXC"}


def test_axes_of_texts() -> None:
    ids = keras.Input((None,), dtype="int32")
    tokens = layers.Embedding(9, 8, mask_zero=True, name="embed")(ids)
    attended = layers.MultiHeadAttention(2, 4, name="attend")(tokens, tokens)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="add")([tokens, attended]))
    model = keras.Model(ids, layers.GlobalAveragePooling1D(name="pool")(layers.Dense(8, name="dense")(x)))
    found = observe(model, (1, 6))
    names = ("embed", "attend", "add", "norm", "dense")
    assert {name: output(found, name).layout for name in names} == dict.fromkeys(names, "BTC")
    assert output(found, "pool").layout == "BC"
    assert found.text
    assert not found.value_dependent


class ClassToken(layers.Layer):
    def build(self, shape: Any) -> None:
        self.token = self.add_weight((1, 2, shape[-1]), name="token")

    def call(self, x: Any) -> Any:
        return ops.concatenate([ops.repeat(self.token, ops.shape(x)[0], axis=0), x], axis=1)


@pytest.mark.parametrize("size", [32, None])
def test_class_and_register_tokens_of_images(size: int | None) -> None:
    """By growing the image, or, at one fixed size, by the cells of the convolution before the blocks."""
    start = keras.Input((size, size, 3))
    x = layers.Conv2D(6, 8, strides=8, name="patches")(start)
    x = layers.Reshape((-1, 6) if size is None else (16, 6), name="flat")(x)
    x = ClassToken(name="tokens")(x)
    for depth in range(3):
        inside = [layers.LayerNormalization(), layers.Dense(6)]
        block = row(keras.Input((None, 6)), *inside, name=f"block{depth}")
        x = layers.Add(name=f"add{depth}")([x, block(x)])
    model = keras.Model(start, layers.Dense(2, name="head")(x[:, 0]))
    with spile.tap(model, ["flat", "block0", "block2"], pool="mean", example=(1, 32, 32, 3)) as tap:
        assert [point.layout for point in tap.points] == ["BTC"] * 3
        images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
        pooled = tap(images)
    with spile.tap(model, ["flat", "block0", "block2"], pool=None, example=(1, 32, 32, 3)) as tap:
        whole = tap(images)
    np.testing.assert_allclose(array(pooled["flat"]), array(whole["flat"]).mean(1), rtol=1e-4, atol=1e-6)
    for name in ("block0", "block2"):
        expected = array(whole[name])[:, 2:].mean(1)
        np.testing.assert_allclose(array(pooled[name]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_types_of_half_precision_models(policy: str) -> None:
    inside = [layers.Dense(5, dtype=policy, name="a"), layers.ReLU(dtype=policy, name="b")]
    model = row(keras.Input((4,)), *inside)
    half = policy.removeprefix("mixed_")
    with spile.tap(model, ["a@in", "a", "b@in", "b", "@in"], pool=None) as tap:
        found = tap(X)
        types = {name: keras.backend.standardize_dtype(value.dtype) for name, value in found.items()}
        assert types == {"a@in": half, "a": half, "b@in": half, "b": half, "@in": "float32"}
        assert tap.verify(X).points == 5
    assert {row.dtype for row in spile.layers(model)} == {half}


# --- without a trace ------------------------------------------------------------------------------


def test_losses_and_graphs_are_left_alone() -> None:
    class Losing(layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(ops.sum(x))
            return x

    start = keras.Input((4,))
    first = layers.Dense(4, activity_regularizer="l2", name="first")
    model = keras.Model(start, layers.Dense(2, name="head")(Losing(name="losing")(first(start))))
    model(X)

    def state() -> Any:
        lines: list[str] = []
        model.summary(print_fn=lines.append)
        nodes = [(len(l._inbound_nodes), len(l._outbound_nodes)) for l in model._flatten_layers()]  # noqa: E741
        return lines, nodes, [float(array(loss)) for loss in model.losses], len(model.variables)

    before = state()
    assert len(before[2]) == 2
    with spile.tap(model, ["losing", "first"], pool=None) as tap:
        tap(-X)
        tap.with_output(-X)
        tap.verify(-X)
        engine_for(tap, name="auto", preprocessing=None, precision="float32")(-X)
    spile.layers(model)
    assert state() == before


def test_names_that_keras_makes_up_go_on_as_without_a_tap() -> None:
    def made_up() -> list[int]:
        new = (layers.Dense(1), layers.Layer(), keras.Sequential(), row(keras.Input((1,)), layers.ReLU()))
        return [int(layer.name.rpartition("_")[2] or 0) if "_" in layer.name else 0 for layer in new]

    model = row(keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b"))
    before = made_up()
    with spile.tap(model, "a") as tap:
        tap(X)
        tap.verify(X)
    after = made_up()
    # Each round makes these: one dense, one layer, one sequence, one graph of its own.
    assert after == [number + 1 for number in before]


def test_passes_that_fail_are_quiet(capfd: Any) -> None:
    """A model of one size does not take a larger input, which nobody has to hear of."""

    class Fixed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = self.add_weight((48, 2), name="kernel")

        def call(self, x: Any) -> Any:
            return ops.matmul(ops.reshape(x, (ops.shape(x)[0], -1)), self.kernel)

    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    model = Fixed()
    model(np.ones((1, 4, 4, 3), "float32"))
    logger.addHandler(handler)
    try:
        observe(model, (1, 4, 4, 3))
    finally:
        logger.removeHandler(handler)
    assert not heard
    assert "Traceback" not in capfd.readouterr().err


def test_the_scope_around_a_pass_keeps_its_values() -> None:
    """As in a loss that JAX differentiates with respect to the weights."""
    model = row(keras.Input((4,)), layers.Dense(2, name="a", use_bias=False))
    kernel = model.variables[0]
    with spile.tap(model, "a", pool=None) as tap:
        with keras.StatelessScope(state_mapping=[(kernel, ops.ones((4, 2)))]):
            inside = array(tap(X)["a"])
        outside = array(tap(X)["a"])
    np.testing.assert_allclose(inside, np.repeat(X.sum(1, keepdims=True), 2, 1), rtol=1e-5)
    np.testing.assert_allclose(outside, X @ array(kernel.value), rtol=1e-5, atol=1e-6)


def test_a_closed_tap_of_a_value_dependent_model_says_so() -> None:
    model = keras.Sequential([Signed(name="sign")])
    model(X)
    tap = spile.tap(model, "sign", pool=None, example=X)
    tap.close()
    with pytest.raises(CaptureError, match="closed"):
        tap(X)
