"""Ways in which tapping a Keras model has given wrong answers elsewhere, in calls and in extraction."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
from keras import layers, ops

import spile
from spile.errors import AddressError, CaptureError
from spile.keras import backend

pytestmark = pytest.mark.essential

MIB = 2**20


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    keras.utils.set_random_seed(0)


def rows(count: int = 5, *shape: int) -> Any:
    return np.random.default_rng(count).normal(size=(count, *(shape or (4,)))).astype("float32")


def check(model: keras.Model, expected: dict[str, Any], x: Any) -> None:
    """Each place in a call of its own, all in one, and all in (compiled) extraction with a last odd batch."""
    wanted = {place: ops.convert_to_numpy(value) for place, value in expected.items()}
    for places in (*([place] for place in wanted), list(wanted)):
        with spile.tap(model, places, pool=None, example=x[:2]) as tap:
            assert_close(tap(x), wanted, places)
    with spile.tap(model, list(wanted), pool=None, example=x[:2]) as tap:
        store = spile.extract(tap, x, dtype="float32", batch_size=2, progress=False)
        assert_close(
            {name: column.numpy() for name, column in ((p, store[p]) for p in store.points)}, wanted, wanted
        )


def assert_close(found: Any, wanted: dict[str, Any], places: Any) -> None:
    assert set(found) == set(places)
    for place in places:
        value = ops.convert_to_numpy(found[place])
        np.testing.assert_allclose(value, wanted[place], rtol=1e-4, atol=1e-5, err_msg=place)


# --- graphs ---------------------------------------------------------------------------------------


def test_inner_layers_of_nested_models_are_connected() -> None:
    """``keras.Model(outer.input, inner_layer.output)`` says that they are not."""
    start = keras.Input((4,))
    dense = layers.Dense(6, name="dense")
    inner = keras.Model(start, layers.ReLU(name="act")(dense(start)), name="inner")
    middle_start = keras.Input((4,))
    enter = layers.Dense(4, name="enter")
    middle = keras.Model(middle_start, inner(enter(middle_start)), name="middle")
    outer_start = keras.Input((4,))
    outer = keras.Model(outer_start, layers.Dense(2, name="head")(middle(outer_start)), name="outer")
    with pytest.raises(ValueError):
        keras.Model(outer.inputs, dense.output)
    x = rows()
    hidden = dense(enter(x))
    check(
        outer,
        {
            "middle/enter": enter(x),
            "middle/inner/dense": hidden,
            "middle/inner": ops.relu(hidden),
            "head": outer(x),
        },
        x,
    )


def test_a_model_used_inside_another_gives_the_values_of_that_use() -> None:
    """Its own ``output`` is that of its own input."""
    start = keras.Input((4,))
    dense = layers.Dense(6, name="dense")
    part = keras.Model(start, dense(start), name="part")
    outer_start = keras.Input((4,))
    whole = keras.Model(outer_start, layers.Dense(2, name="head")(part(2 * outer_start)))
    x = rows()
    check(whole, {"part": dense(2 * x), "part/dense": dense(2 * x)}, x)
    check(part, {"dense": dense(x)}, x)


def test_a_shared_layer_gives_each_of_its_calls() -> None:
    """Keras' ``layer.output`` is that of the first, most hooks keep the last."""
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    encoder = layers.Dense(5, name="encoder")
    model = keras.Model([left, right], layers.Dense(2, name="head")(encoder(left) - encoder(right)))
    a, b = rows(5), rows(6)[:5]
    with spile.tap(model, ["encoder#1", "encoder#0"], pool=None, example=[a, b]) as tap:
        wanted = {f"encoder#{i}": ops.convert_to_numpy(encoder(x)) for i, x in enumerate((a, b))}
        assert_close(tap([a, b]), wanted, wanted)
    with pytest.raises(AddressError, match="runs 2 times; say which call"):
        spile.tap(model, "encoder", example=[a, b])


def test_one_relu_used_twice() -> None:
    start, relu = keras.Input((4,)), layers.ReLU(name="relu")
    first, second = layers.Dense(5, name="first"), layers.Dense(6, name="second")
    model = keras.Model(start, relu(second(relu(first(start)))))
    x = rows()
    hidden = ops.relu(first(x))
    check(model, {"relu#0": hidden, "relu#1": ops.relu(second(hidden)), "second@in": hidden}, x)


def test_a_layer_that_was_also_used_in_another_graph() -> None:
    """Its first call is not one of this model."""
    dense = layers.Dense(4, name="dense")
    other = keras.Input((4,))
    keras.Model(other, dense(3 * other))
    start = keras.Input((4,))
    model = keras.Model(start, layers.Dense(2, name="head")(dense(start)))
    x = rows()
    check(model, {"dense": dense(x), "head": model(x)}, x)


def test_parent_and_child_together() -> None:
    start = keras.Input((4,))
    act = layers.ReLU(name="act")
    dense = layers.Dense(5, name="dense")
    child = keras.Sequential([start, dense, act], name="child")
    outer_start = keras.Input((4,))
    model = keras.Model(outer_start, layers.Dense(2, name="head")(child(outer_start)))
    x = rows()
    check(model, {"child": ops.relu(dense(x)), "child/act": ops.relu(dense(x)), "child/dense": dense(x)}, x)


def test_a_sequential_model_reloaded_from_disk(tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.Input((6, 5, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.ReLU(name="act"),
            layers.Flatten(name="flat"),
        ]
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = rows(5, 6, 5, 3)
    conv = model.get_layer("conv")(x)
    check(again, {"conv": conv, "act": ops.relu(conv), "flat": model(x)}, x)


def test_a_sequential_model_without_an_input() -> None:
    first, second = layers.Dense(5, name="first"), layers.Dense(3, name="second")
    model = keras.Sequential([first, second])
    x = rows()
    model(x)
    check(model, {"first": first(x), "second": model(x)}, x)


# --- subclasses -----------------------------------------------------------------------------------


class Subclassed(keras.Model):
    """With layers in lists and dicts, a model inside, operations between, and a branch on the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [layers.Dense(4), layers.Dense(4)]
        self.ends = {"left": layers.Dense(3), "right": layers.Dense(3)}
        start = keras.Input((4,))
        self.inner = keras.Model(start, layers.Dense(4, name="deep")(start))
        for layer in (*self.steps, *self.ends.values()):
            layer.build((None, 4))

    def call(self, x: Any) -> Any:
        for step in self.steps:
            x = ops.tanh(step(x)) + x
        x = self.inner(x)
        return self.ends["left" if x.shape[1] == 4 else "right"](x)


def test_subclassed_models_have_layers_too() -> None:
    """They have no ``output``, even after a call."""
    model, x = Subclassed(), rows()
    model(x)
    with pytest.raises((AttributeError, ValueError)):
        _ = model.output
    zero = ops.convert_to_tensor(x)
    one = ops.tanh(model.steps[0](zero)) + zero
    two = ops.tanh(model.steps[1](one)) + one
    deep = model.inner(two)
    check(
        model,
        {
            "steps/0": model.steps[0](x),
            "steps/1": model.steps[1](one),
            "steps/1@in": one,
            "inner/deep": deep,
            "inner": deep,
            "ends/left": model.ends["left"](deep),
        },
        x,
    )
    with pytest.raises(AddressError, match="'ends/right' never runs"):
        spile.tap(model, "ends/right", example=x)


def test_a_layer_whose_call_is_called_directly_gives_its_value_or_an_error() -> None:
    class Direct(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.head = layers.Dense(4), layers.Dense(2)
            self.dense.build((None, 4))

        def call(self, x: Any) -> Any:
            return self.head(self.dense.call(x))

    model, x = Direct(), rows()
    model(x)
    check(model, {"dense": model.dense(x), "head": model(x)}, x)


def test_weights_used_without_running_their_layer_do_not_fire() -> None:
    class Borrowing(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.lender, self.head = layers.Dense(4), layers.Dense(2)
            self.lender.build((None, 4))

        def call(self, x: Any) -> Any:
            return self.head(ops.matmul(x, self.lender.kernel))

    model, x = Borrowing(), rows()
    model(x)
    with pytest.raises(AddressError, match="'lender' never runs"):
        spile.tap(model, "lender", example=x)
    check(model, {"head": model(x)}, x)


class Branching(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = layers.Dense(3), layers.Dense(3)
        self.up.build((None, 4))
        self.down.build((None, 4))

    def call(self, x: Any) -> Any:
        return self.up(x) if float(ops.sum(x)) > 0 else self.down(x)


def test_nothing_stale_where_a_layer_does_not_run() -> None:
    model, x = Branching(), np.ones((2, 4), "float32")
    model(x)
    with spile.tap(model, "up", pool=None, example=x) as tap:
        for sign in (1, -1, 2, -2):
            if sign > 0:
                expected = ops.convert_to_numpy(model.up(sign * x))
                np.testing.assert_allclose(ops.convert_to_numpy(tap(sign * x)["up"]), expected, rtol=1e-5)
            else:
                with pytest.raises(CaptureError, match="did not run in this batch"):
                    tap(sign * x)


def test_a_model_that_was_compiled_and_run_before_it_is_tapped() -> None:
    """Its compiled functions hold no trace of the tap, and the tap no trace of them."""
    start = keras.Input((4,))
    dense = layers.Dense(5, name="dense")
    model = keras.Model(start, layers.Dense(2, name="head")(dense(start)))
    model.compile(optimizer="sgd", loss="mse")
    x = rows()
    before = model.predict(x, verbose=0)
    check(model, {"dense": dense(x), "head": before}, x)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    model.train_on_batch(x, rows(5, 2))
    check(model, {"dense": dense(x), "head": model(x)}, x)


# --- modes and state ------------------------------------------------------------------------------


def test_batch_norm_and_dropout_that_are_always_in_training_leave_no_trace() -> None:
    """What a layer assigns in a pass is dropped: moving statistics and seeds stay."""

    class Training(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = layers.BatchNormalization(), layers.Dropout(0.5, seed=1)
            self.head = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.head(self.drop(self.norm(x, training=True), training=True))

    model, x = Training(), rows(8)
    model(x)
    before = [variable.numpy().tobytes() for variable in model.variables]
    assert len(before) == 7, "with the state of the seed"
    with spile.tap(model, "all", pool=None, example=x) as tap:
        tap(x)
        tap.with_output(x)
        spile.extract(tap, x, dtype="float32", batch_size=4, progress=False)
    assert [variable.numpy().tobytes() for variable in model.variables] == before
    model(x)
    assert [variable.numpy().tobytes() for variable in model.variables] != before


def normalised() -> keras.Model:
    start = keras.Input((6, 5, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(start)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5, name="drop")(layers.ReLU(name="act")(x))
    model = keras.Model(start, layers.GlobalAveragePooling2D(name="pool")(x))
    model.get_layer("norm").moving_variance.assign([0.5, 2.0, 1.3, 0.8])
    return model


def test_features_are_those_of_evaluation() -> None:
    model, x = normalised(), rows(5, 6, 5, 3)
    conv = model.get_layer("conv")(x)
    norm = model.get_layer("norm")(conv, training=False)
    check(model, {"norm": norm, "drop": ops.relu(norm), "pool": ops.mean(ops.relu(norm), axis=(1, 2))}, x)


def test_one_row_alone_is_the_row_in_a_batch() -> None:
    model, x = normalised(), rows(5, 6, 5, 3)
    with spile.tap(model, "all", example=x) as tap:
        together = tap(x)
        alone = spile.extract(tap, x[3:4], dtype="float32", progress=False)
        for name, value in tap(x[3:4]).items():
            expected = ops.convert_to_numpy(together[name])[3:4]
            np.testing.assert_allclose(ops.convert_to_numpy(value), expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(alone[name].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_compiled_pass_reads_the_weights_when_it_runs() -> None:
    """Traced functions may keep the weights of the time they were traced as constants."""
    model, x = normalised(), rows(4, 6, 5, 3)
    with spile.tap(model, "conv", pool="avg", example=x) as tap:
        run = backend.engine(tap, preprocessing=None, precision="float32")
        old = run(x)["conv"].copy()
        model.get_layer("conv").kernel.assign(2 * model.get_layer("conv").kernel)
        np.testing.assert_allclose(run(x)["conv"], ops.convert_to_numpy(tap(x)["conv"]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(run(x)["conv"], 2 * old, rtol=1e-4, atol=1e-6)


def test_a_layer_that_fires_no_more_after_the_dry_pass() -> None:
    """The graph of the model is not looked at again, so a tap must notice by itself."""

    class Switch(keras.Model):
        off = False

        def __init__(self) -> None:
            super().__init__()
            self.dense, self.head = layers.Dense(4), layers.Dense(2)
            self.dense.build((None, 4))

        def call(self, x: Any) -> Any:
            return self.head(x if Switch.off else self.dense(x))

    model, x = Switch(), rows()
    model(x)
    with spile.tap(model, "dense", example=x) as tap:
        tap(x)
        Switch.off = True
        with pytest.raises(CaptureError, match=r"did not run in this batch.*dense"):
            tap(x)
        with pytest.raises(CaptureError, match=r"did not run in this batch.*dense"):
            spile.extract(tap, x, progress=False)


# --- the process ----------------------------------------------------------------------------------


def resident() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss / MIB)


@pytest.mark.parametrize("how", ["call", "engine"])
def test_memory_stays_flat_over_200_batches(how: str) -> None:
    """`predict` keeps everything; a tap keeps nothing. Every batch holds 1 MiB of activations."""
    start = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same", name="conv")(start)
    model = keras.Model(start, layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="act")(x)))
    images = rows(8, 32, 32, 3)
    with spile.tap(model, ["conv", "act"], pool="avg", example=images[:1]) as tap:
        run: Any = tap if how == "call" else backend.engine(tap, preprocessing=None, precision="float32")
        for _ in range(20):
            run(images)
        before = resident()
        for _ in range(200):
            run(images)
        assert resident() - before < 24


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_without_its_backend_keras_models_say_what_to_install(backend: str) -> None:
    """`import keras` alone raises about TensorFlow, or whichever is missing, from deep inside."""
    code = (
        f"import sys; sys.modules[{backend!r}] = None\n"
        "import spile\n"
        "try: spile.load_model('keras:MobileNetV2', pretrained=False)\n"
        "except spile.SpileError as error: print(error)\n"
        "assert 'keras' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"Keras is set to its backend {backend!r}, which is not installed" in done.stdout
    assert f"pip install {backend}" in done.stdout
    assert "KERAS_BACKEND=" in done.stdout


def test_only_the_module_of_this_backend_is_loaded() -> None:
    model = normalised()
    spile.tap(model, "conv")(rows(2, 6, 5, 3))
    backends = {f"spile.keras.on_{name}" for name in ("tensorflow", "jax", "torch")}
    assert backends & set(sys.modules) == {f"spile.keras.on_{keras.backend.backend()}"}
