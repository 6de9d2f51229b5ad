"""How a tap is run during extraction."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import spile
from spile import ImagePreprocessing, ModelError
from spile.keras import backend
from spile.keras.engines import CompiledEngine, EagerEngine
from spile.keras.runtime import runtime

pytestmark = pytest.mark.essential


class Counting(keras.layers.Layer):
    """Counts how often its Python runs: once a trace where the pass is compiled."""

    runs = 0

    def call(self, x: Any) -> Any:
        Counting.runs += 1
        return x * 2


def net(layer: keras.layers.Layer | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(4, 3, name="conv")(x)
    y = (layer or Counting())(y)
    return keras.Model(x, keras.layers.Conv2D(2, 3, name="after")(y))


def batch(rows: int) -> Any:
    return np.random.default_rng(rows).random((rows, 8, 8, 3), dtype=np.float32)


def engine(tap: Any, **options: Any) -> Any:
    return backend.engine(tap, **{"preprocessing": None, "precision": "float32"} | options)


def numpy(values: Any) -> dict[str, Any]:
    return {name: keras.ops.convert_to_numpy(value) for name, value in values.items()}


def test_the_engine_gives_the_values_of_the_tap() -> None:
    tap = spile.tap(net(), ["conv", "after"], pool={"after": None})
    for rows in (5, 2):
        found, expected = engine(tap)(batch(rows)), numpy(tap(batch(rows)))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert isinstance(found[name], np.ndarray)
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


def test_it_is_compiled_where_that_pays_and_says_so() -> None:
    run = engine(spile.tap(net(), "conv"))
    run(batch(2))
    assert run.name == "compile"
    short = engine(spile.tap(net(), "conv"), samples=2 * max(runtime().least_batches - 1, 1))
    short(batch(2))
    assert short.name == ("compile" if runtime().least_batches == 1 else "eager")
    asked = engine(spile.tap(net(), "conv"), name="eager")
    asked(batch(2))
    assert isinstance(asked, EagerEngine)
    assert asked.name == "eager"


def test_a_last_odd_batch_compiles_nothing_anew() -> None:
    tap = spile.tap(net(), "after")
    run = CompiledEngine(tap, preprocessing=None)
    before = Counting.runs
    full = run(batch(6))
    traced = Counting.runs - before
    assert traced == 1
    odd = [run(batch(rows)) for rows in (6, 6, 4, 1)]
    assert Counting.runs - before == traced
    assert full["after"].shape == (6, 2)
    assert [found["after"].shape for found in odd] == [(6, 2), (6, 2), (4, 2), (1, 2)]
    np.testing.assert_allclose(odd[2]["after"], numpy(tap(batch(4)))["after"], rtol=1e-5, atol=1e-6)


def test_weights_are_not_compiled_in() -> None:
    model = net()
    tap = spile.tap(model, "conv")
    run = engine(tap)
    before = run(batch(3))["conv"]
    model.get_layer("conv").set_weights([w + 1 for w in model.get_layer("conv").get_weights()])
    after = run(batch(3))["conv"]
    assert np.abs(after - before).min() > 0.5
    np.testing.assert_allclose(after, numpy(tap(batch(3)))["conv"], rtol=1e-5, atol=1e-6)


def test_pixels_are_normalised_as_told() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    spec = ImagePreprocessing(scale=1.0, mean=(1, 2, 3), std=(4, 5, 6), channel_order="BGR")
    found = engine(spile.tap(net(), "@in", pool=None), preprocessing=spec)(pixels)["@in"]
    expected = (pixels[..., ::-1].astype(np.float32) - (1, 2, 3)) / (4, 5, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_several_devices_are_refused_with_what_to_do_instead() -> None:
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match=r"for PyTorch models.*CUDA_VISIBLE_DEVICES"):
        spile.extract(spile.tap(model, "stages"), np.ones((3, 4), np.float32), devices=["cuda:0", "cuda:1"])


def test_pixels_without_their_preprocessing_are_refused() -> None:
    with pytest.raises(ModelError, match="uint8 images need the model's preprocessing"):
        engine(spile.tap(net(), "conv"))(np.zeros((2, 8, 8, 3), np.uint8))


def test_a_model_that_looks_at_values_runs_as_it_is() -> None:
    class Looking(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = keras.layers.Dense(2), keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.high(x) + self.low(x) if float(keras.ops.max(x)) > 1 else self.low(x)

    model = Looking()
    model(2 * np.ones((1, 3), "float32"))
    tap = spile.tap(model, "low", example=np.ones((1, 3), "float32"))
    run = engine(tap)
    low = run(np.ones((2, 3), "float32"))["low"]
    high = run(2 * np.ones((2, 3), "float32"))["low"]
    assert run.name == "eager"
    np.testing.assert_allclose(high, 2 * low, rtol=1e-5)


def test_a_tap_without_an_example_learns_its_points_from_the_first_batch() -> None:
    x = keras.Input((None, None, 3))
    tap = spile.tap(keras.Model(x, keras.layers.Conv2D(4, 3, name="conv")(x)), "conv")
    assert engine(tap)(batch(3))["conv"].shape == (3, 4)
    assert tap.points[0].shape == (6, 6, 4)


def test_half_precision_comes_out_as_float32() -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = net()
    finally:
        keras.config.set_dtype_policy(policy)
    found = engine(spile.tap(model, "conv", pool=None))(batch(2))["conv"]
    assert found.dtype == np.float32
    with pytest.raises(ModelError, match="mixed_bfloat16"):
        engine(spile.tap(model, "conv"), precision="bfloat16")


def test_a_larger_batch_and_then_smaller_ones() -> None:
    tap = spile.tap(net(), ["conv", "after"], pool=None)
    run = CompiledEngine(tap, preprocessing=None)
    for rows in (2, 5, 1, 4):
        found, expected = run(batch(rows)), numpy(tap(batch(rows)))
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)


def test_several_inputs_and_more_digits_than_needed() -> None:
    sides = {name: keras.Input((4,), name=name) for name in ("left", "right")}
    joined = keras.layers.Concatenate(name="join")(list(sides.values()))
    model = keras.Model(sides, keras.layers.Dense(2, name="head")(joined))
    tap = spile.tap(model, ["join", "head"])
    run = engine(tap)
    for rows in (4, 3):
        values = np.random.default_rng(rows).normal(size=(2, rows, 4))
        found = run({"left": values[0], "right": values[1]})
        assert {value.dtype.name for value in found.values()} == {"float32"}
        np.testing.assert_allclose(found["join"], np.concatenate(values, axis=1), rtol=1e-6)


def test_integers_stay_integers() -> None:
    ids = keras.Input((5,), dtype="int32")
    model = keras.Model(ids, keras.layers.Embedding(9, 2, name="embed")(ids))
    batches = [np.random.default_rng(rows).integers(0, 9, (rows, 5)) for rows in (3, 2)]
    run = engine(spile.tap(model, ["embed", "@in"], pool=None))
    for batch_ in batches:
        found = run(batch_)
        assert found["@in"].dtype.kind == "i"
        np.testing.assert_array_equal(found["@in"], batch_)


def test_what_holds_no_samples_is_not_cut_to_them() -> None:
    """A table as long as a full batch."""

    class Table(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.rows = self.add_weight((4, 3), name="rows")

        def call(self, x: Any) -> Any:
            return x, self.rows + 0.0

    class Holder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.table = Table()

        def call(self, x: Any) -> Any:
            return self.table(x)[0]

    model = Holder()
    model(np.ones((4, 2), "float32"))
    run = engine(spile.tap(model, ["table:0", "table:1"], pool=None, example=(4, 2)))
    for rows in (4, 2):
        found = run(np.ones((rows, 2), "float32"))
        assert (found["table:0"].shape, found["table:1"].shape) == ((rows, 2), (4, 3))


@pytest.mark.parametrize("name", ["auto", "eager"])
def test_pixels_may_be_tensors(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    run = engine(spile.tap(net(), "@in", pool=None), preprocessing=ImagePreprocessing(), name=name)
    found = run(keras.ops.convert_to_tensor(pixels))["@in"]
    np.testing.assert_allclose(found, run(pixels)["@in"], rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", ["auto", "eager"])
def test_padding_is_left_out_in_every_engine(name: str) -> None:
    """Keras' masks travel with the tensors, also with those that have no values yet."""
    ids = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(9, 2, mask_zero=True, name="embed")(ids)
    model = keras.Model(ids, keras.layers.Dense(3, name="head")(x))
    batch_ = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7], [8, 0, 0, 0, 0]])
    run, whole = engine(spile.tap(model, "head", pool="mean"), name=name), spile.tap(model, "head", pool=None)
    values = numpy(whole(batch_))["head"]
    expected = [row[row_ids != 0].mean(0) for row, row_ids in zip(values, batch_, strict=True)]
    np.testing.assert_allclose(run(batch_)["head"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["auto", "eager"])
def test_padding_that_attention_takes_away_is_left_out_in_every_engine(name: str) -> None:
    ids = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(9, 2, mask_zero=True)(ids)
    x = keras.layers.LSTM(3, return_sequences=True, name="lstm")(x)
    model = keras.Model(ids, keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x))
    batch_ = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7], [8, 0, 0, 0, 0]])
    whole = numpy(spile.tap(model, "lstm", pool=None)(batch_))["lstm"]
    expected = [row[row_ids != 0].mean(0) for row, row_ids in zip(whole, batch_, strict=True)]
    found = engine(spile.tap(model, ["lstm", "attention"]), name=name)(batch_)["lstm"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_second_extraction_uses_the_program_of_the_first() -> None:
    """With new weights, of which the program holds none; what the layers' options say is compiled anew."""
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.LeakyReLU(name="act")(keras.layers.Dense(2, name="dense")(x)))
    tap = spile.tap(model, "act")
    values = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    engine(tap)(values)
    (first,) = tap.programs.values()
    model.get_layer("dense").set_weights([np.ones((3, 2)), np.ones(2)])
    found = engine(tap)(values)["act"]
    assert list(tap.programs.values()) == [first]
    np.testing.assert_allclose(found, numpy(tap(values))["act"], rtol=1e-5)
    model.get_layer("act").negative_slope = 0.9
    found = engine(tap)(values)["act"]
    assert len(tap.programs) == 2
    np.testing.assert_allclose(found, numpy(tap(values))["act"], rtol=1e-5)
    tap.close()
    assert not tap.programs


def test_layers_that_may_not_tell_all_their_options_are_compiled_every_time() -> None:
    class Shift(keras.layers.Layer):
        by = 1.0

        def call(self, x: Any) -> Any:
            return x + self.by

    x = keras.Input((3,))
    shift = Shift(name="shift")
    tap = spile.tap(keras.Model(x, shift(x)), "shift")
    values = np.zeros((2, 3), "float32")
    assert engine(tap)(values)["shift"].max() == 1
    shift.by = 2.0
    assert engine(tap)(values)["shift"].max() == 2


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="how it is done there")
def test_graphs_give_the_bits_of_the_layers_in_memory_of_their_own() -> None:
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(4, 3, name="conv")(x)
    y = keras.layers.ReLU(name="act")(keras.layers.BatchNormalization()(y))
    model = keras.Model(x, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(y)))
    tap = spile.tap(model, ["@in", "conv", "act", "head"], pool=None)
    run, values = engine(tap, name="compile"), batch(4)
    expected = {name: value.copy() for name, value in numpy(tap(values)).items()}
    found = run(values)
    values[:] = -1  # the memory of a batch is used again
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="how it is done there")
def test_what_passes_through_is_not_left_in_the_callers_memory() -> None:
    import torch

    from spile.keras import on_torch

    weight = keras.Variable(np.zeros((2, 2)))
    run = on_torch.compiled(
        lambda state, batch: {"same": batch, "part": batch[1:], "weight": state[0]}, [weight]
    )
    values = torch.zeros(4, 2)
    found = run(values)
    values[:] = 1  # it is used again
    weight.assign(np.ones((2, 2)))
    assert not any(value.any() for value in found.values())


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="how it is done there")
@pytest.mark.parametrize("strided", [False, True])
def test_what_depends_on_how_a_value_lies_in_memory_keeps_its_copies(strided: bool) -> None:
    import torch

    from spile.keras import on_torch

    def body(state: Any, batch: Any) -> dict[str, Any]:
        copied = batch.permute(0, 2, 1).contiguous()
        first = copied.as_strided((2, 4), (12, 1)) if strided else copied[:, 0]
        return {"flat": torch.ops.aten._unsafe_view(copied, [2, 12]), "first": first}

    batch = torch.arange(24.0).reshape(2, 3, 4)
    found = on_torch.compiled(body, [])(batch)
    for name, value in body([], batch).items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="how it is done there")
def test_many_shapes_are_not_all_traced() -> None:
    x = keras.Input((None, 3))
    tap = spile.tap(keras.Model(x, Counting(name="twice")(x)), "twice", pool=None, example=(2, 5, 3))
    run = engine(tap, name="compile")
    for length in range(1, 30):
        values = np.random.default_rng(length).random((2, length, 3), dtype=np.float32)
        np.testing.assert_array_equal(run(values)["twice"], values * 2)
    before = Counting.runs
    assert run(np.ones((2, 3, 3), "float32"))["twice"].min() == 2
    assert Counting.runs == before
