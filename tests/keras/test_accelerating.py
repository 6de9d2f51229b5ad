"""Which engine runs a Keras tap: OpenVINO where it helps, the same values, and reasons where it does not."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import pytest

import spile
from spile import ImagePreprocessing, ModelError, on_openvino
from spile.choosing import EngineUnfit
from spile.keras import accelerating
from spile.keras.engines import CompiledEngine, EagerEngine
from spile.keras.runtime import runtime

pytestmark = pytest.mark.essential

SPEC = ImagePreprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), channel_order="BGR")
helps = pytest.mark.skipif(not runtime().openvino_helps, reason="OpenVINO does not help on this backend")


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 6, 3))
    y = keras.layers.Conv2D(4, 3, padding="same", name="conv")(x)
    y = keras.layers.BatchNormalization(name="norm")(y)
    return keras.Model(x, keras.layers.Conv2D(8, 3, activation="relu", name="after")(y))


def pixels(rows: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(rows).integers(0, 256, (rows, 8, 6, 3), dtype=np.uint8)


def engine(tap: Any, name: Any = "openvino", samples: int | None = None, preprocessing: Any = SPEC) -> Any:
    return accelerating.engine_for(
        tap, name=name, preprocessing=preprocessing, precision="float32", samples=samples
    )


@helps
def test_images_are_normalised_and_pooled_inside_and_results_are_the_callers_own() -> None:
    tap = spile.tap(net(), ["conv", "norm", "after"], pool={"conv": None, "norm": "max", "after": "grid:2"})
    eager, run = EagerEngine(tap, preprocessing=SPEC), engine(tap)
    first = run(pixels(5))
    kept = {name: value.copy() for name, value in first.items()}
    for rows in (5, 1, 3, 7):
        found = run(pixels(rows) // 2)
        for name, expected in eager(pixels(rows) // 2).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    for name, value in first.items():  # the next batches have not written into it
        np.testing.assert_array_equal(value, kept[name])
    assert (run.name, run.versions) == ("openvino", on_openvino.versions())


@helps
def test_several_inputs_come_by_their_names_and_texts_may_have_any_length() -> None:
    sides = {
        "right": keras.Input((None,), dtype="int32", name="right"),
        "left": keras.Input((4,), name="left"),
    }
    read = keras.layers.Embedding(9, 4, name="embed")(sides["right"])
    joined = keras.layers.Add(name="join")([keras.ops.sum(read, axis=1), sides["left"]])
    tap = spile.tap(keras.Model(sides, keras.layers.Dense(2, name="head")(joined)), ["join", "head"])
    run = engine(tap, preprocessing=None)
    for rows, length in ((4, 5), (3, 7)):
        ids = np.random.default_rng(rows).integers(0, 9, (rows, length)).astype(np.int32)
        given = {"left": np.random.default_rng(rows).normal(size=(rows, 4)).astype("float32"), "right": ids}
        expected = EagerEngine(tap, preprocessing=None)(given)
        for name, value in run(given).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


@helps
def test_auto_takes_it_where_it_is_faster_than_what_the_backend_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = CompiledEngine.__call__

    def slow(self: Any, inputs: Any) -> Any:
        time.sleep(0.2)
        return call(self, inputs)

    tap = spile.tap(net(), "after")
    short = engine(tap, "auto", samples=8)
    short(pixels(4))
    assert short.name == "compile"
    assert "too short" in short.notes["passed_over"]["openvino"]
    monkeypatch.setattr(CompiledEngine, "__call__", slow)
    long = engine(tap, "auto", samples=10**6)
    np.testing.assert_allclose(long(pixels(4))["after"], short(pixels(4))["after"], rtol=1e-4, atol=1e-5)
    assert long.name == "openvino"
    assert "times as fast as compile" in long.notes["why"]


class Counting(keras.layers.Layer):
    """Counts its own calls, and adds the count: in a variable of TensorFlow, of which Keras does not know."""

    def build(self, shape: Any) -> None:
        import tensorflow as tf

        self.count = tf.Variable(0.0)

    def call(self, x: Any) -> Any:
        return x + self.count.assign_add(1.0)


def counting() -> keras.Model:
    x = keras.Input((8, 6, 3))
    return keras.Model(x, Counting(name="after")(x))


@helps
@pytest.mark.parametrize(
    ("model", "mode", "reason"),
    [(counting, "eval", "changes the model's own variables"), (net, "as_is", "training mode")],
)
def test_what_cannot_be_converted_faithfully_is_refused(model: Any, mode: Any, reason: str) -> None:
    tap = spile.tap(model(), "after", mode=mode)
    with pytest.raises(ModelError, match=f"engine 'openvino' cannot run this tap: .*{reason}.*'eager'"):
        engine(tap)(pixels(2))


@helps
def test_a_batch_of_another_kind_or_size_has_a_program_of_its_own() -> None:
    x = keras.Input((None, None, 3))
    tap = spile.tap(keras.Model(x, keras.layers.Conv2D(4, 3, name="conv")(x)), "conv", example=(1, 8, 6, 3))
    run, eager = engine(tap), EagerEngine(tap, preprocessing=SPEC)
    random = np.random.default_rng(0)
    for batch in (pixels(2), random.random((3, 8, 6, 3), np.float32), pixels(2)[:, :5], pixels(3)):
        np.testing.assert_allclose(run(batch)["conv"], eager(batch)["conv"], rtol=1e-4, atol=1e-5)


@helps
def test_a_later_batch_that_cannot_be_converted_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine(spile.tap(net(), "after"))
    run(pixels(2))

    def unfit(*_: Any) -> Any:
        raise EngineUnfit("odd")

    monkeypatch.setattr(runtime(), "openvino", unfit)
    with pytest.raises(ModelError, match=r"another way than the first one, and odd: write engine='eager'"):
        run(np.zeros((2, 8, 6, 3), np.float32))


@pytest.mark.skipif(runtime().openvino_helps, reason="OpenVINO helps on this backend")
def test_where_it_does_not_help_it_is_refused_and_auto_leaves_it() -> None:
    tap = spile.tap(net(), "after")
    with pytest.raises(ModelError, match=r"engine 'openvino' cannot run this tap: .*'eager'"):
        engine(tap)(pixels(2))
    run = engine(tap, "auto", samples=10**6)
    run(pixels(2))
    assert run.name == "compile"


@helps
def test_without_the_package_or_on_a_gpu_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tap = spile.tap(net(), "after")
    with monkeypatch.context() as patched:
        patched.setattr(on_openvino, "available", lambda: False)
        with pytest.raises(ModelError, match=r"pip install 'spile\[openvino\]'"):
            engine(tap)(pixels(2))
        assert isinstance(engine(tap, "auto"), accelerating.OwnEngine)
    monkeypatch.setattr(accelerating, "_on_cpu", lambda: False)
    with pytest.raises(ModelError, match="runs on the CPU"):
        engine(tap)(pixels(2))
    assert isinstance(engine(tap, "auto"), accelerating.OwnEngine)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown engine 'onnx': write one of 'auto', 'eager'"):
        engine(spile.tap(net(), "after"), "onnx")
