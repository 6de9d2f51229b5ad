"""Arguments and examples of a call, and the nested tensors in them."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from spile.errors import ModelError
from spile.keras.trees import (
    Inputs,
    called_with,
    declared_inputs,
    given,
    inputs_of,
    is_array,
    is_tensor,
    tensor_of,
    tensors,
    transform,
)

Pair = namedtuple("Pair", ["left", "right"])


def shapes(value: Any) -> Any:
    return transform(value, lambda t: tuple(t.shape))


def dtype(tensor: Any) -> str:
    return str(keras.backend.standardize_dtype(tensor.dtype))


class TwoArguments(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)
        self.dense.build((None, 4))

    def call(self, left: Any, right: Any = None, scale: float = 1.0, training: Any = None) -> Any:
        return self.dense(left) * scale


class OneArgument(TwoArguments):
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return self.dense(inputs["left"])


def graph(inputs: Any) -> keras.Model:
    joined = [ops.cast(t, "float32") for t in keras.tree.flatten(inputs)]
    return keras.Model(inputs, layers.Dense(1)(joined[0] if len(joined) == 1 else ops.concatenate(joined, 1)))


# --- tensors --------------------------------------------------------------------------------------


def test_doubles_become_floats_and_all_else_keeps_its_type() -> None:
    kept = {
        "float16": "float16",
        "float32": "float32",
        "float64": "float32",
        "int32": "int32",
        "uint8": "uint8",
        "bool": "bool",
    }
    for given_as, becomes in kept.items():
        tensor = tensor_of(np.ones((2, 3), given_as))
        assert is_tensor(tensor)
        assert dtype(tensor) == becomes


def test_a_tensor_is_taken_as_it_is() -> None:
    tensor = ops.convert_to_tensor(np.ones(3, "float16"))
    assert tensor_of(tensor) is tensor


def test_tensors_of_another_framework() -> None:
    import jax.numpy as jnp
    import torch

    for other in (torch.arange(4.0), jnp.arange(4.0)):
        tensor = tensor_of(other)
        assert is_tensor(tensor)
        assert ops.convert_to_numpy(tensor).tolist() == [0, 1, 2, 3]


def test_what_is_an_array() -> None:
    assert is_array(np.ones(1)) and is_array(ops.ones((1,)))
    for other in (np.float32(1), np.ones(()), 3, "text", None, [1, 2]):
        assert not is_array(other)


def test_nested_values_keep_their_kinds() -> None:
    value = {"a": [np.ones(2), (np.ones(3), None)], "b": Pair(np.ones(1), 7)}
    assert shapes(value) == {"a": [(2,), ((3,), None)], "b": Pair((1,), 7)}
    assert isinstance(shapes(value)["b"], Pair)
    assert [key for key, _ in tensors(transform(value, tensor_of))] == ["a.0", "a.1.0", "b.0"]


def test_the_input_of_a_layer_leaves_context_out() -> None:
    x, mask = ops.ones((2, 3)), ops.ones((2, 3))
    assert given((x,), {"training": False, "mask": mask}) is x
    assert given((x,), {"attention_mask": mask}) == {"0": x, "attention_mask": mask}


# --- calls ----------------------------------------------------------------------------------------


def test_a_mapping_of_argument_names_is_taken_as_keywords() -> None:
    left, right = np.ones((2, 4)), np.ones((2, 3))
    both = called_with(TwoArguments(), ({"left": left, "right": right},), {})
    assert both.args == ()
    assert shapes(both.kwargs) == {"left": (2, 4), "right": (2, 3)}
    other = called_with(TwoArguments(), ({"left": left, "wrong": right},), {})
    assert shapes(other.args) == ({"left": (2, 4), "wrong": (2, 3)},)


def test_a_mapping_for_one_argument_is_that_argument() -> None:
    batch = {"left": np.ones((2, 4)), "right": np.ones((2, 3))}
    for model in (
        OneArgument(),
        graph({"left": keras.Input((4,), name="left"), "right": keras.Input((3,), name="right")}),
    ):
        assert shapes(called_with(model, (batch,), {}).args) == ({"left": (2, 4), "right": (2, 3)},)


def test_keywords_that_are_no_tensors_are_kept() -> None:
    found = called_with(TwoArguments(), (np.ones((2, 4)),), {"scale": 2.0, "right": None})
    assert found.kwargs == {"scale": 2.0, "right": None}
    assert is_tensor(found.args[0])


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nest", [list, tuple, dict], ids=lambda nest: nest.__name__)
def test_without_an_example_the_model_tells(nest: Any) -> None:
    sides = {
        "left": keras.Input((4,), name="left"),
        "right": keras.Input((3,), dtype="int32", name="right"),
    }
    model = graph(sides if nest is dict else nest(sides.values()))
    (found,) = inputs_of(model, None).args
    assert isinstance(found, nest)
    assert [tuple(t.shape) for t in keras.tree.flatten(found)] == [(2, 4), (2, 3)]
    assert [dtype(t) for t in keras.tree.flatten(found)] == ["float32", "int32"]


def test_the_shape_of_an_example_has_the_type_of_the_models_input() -> None:
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, layers.Embedding(5, 2)(ids))
    (found,) = inputs_of(model, (1, 7)).args
    assert (dtype(found), tuple(found.shape)) == ("int32", (1, 7))


def test_nested_shapes() -> None:
    model = OneArgument()
    (found,) = inputs_of(model, {"left": (2, 4), "more": [(1, 3)], "as_is": np.ones((2, 2), "int32")}).args
    assert shapes(found) == {"left": (2, 4), "more": [(1, 3)], "as_is": (2, 2)}
    assert dtype(found["as_is"]) == "int32"
    assert not ops.convert_to_numpy(found["left"]).any()


def test_a_tuple_is_the_arguments_of_a_model_that_takes_several() -> None:
    assert shapes(inputs_of(TwoArguments(), ((2, 4), (2, 3))).args) == ((2, 4), (2, 3))
    assert shapes(inputs_of(TwoArguments(), {"left": (2, 4)}).kwargs) == {"left": (2, 4)}
    pair = graph((keras.Input((4,)), keras.Input((3,))))
    assert shapes(inputs_of(pair, ((2, 4), (2, 3))).args) == (((2, 4), (2, 3)),)


def test_ready_inputs_are_left_alone() -> None:
    ready = Inputs((1,), {"x": 2})
    assert inputs_of(TwoArguments(), ready) is ready


@pytest.mark.parametrize(
    "model",
    [TwoArguments, keras.Sequential, lambda: graph(keras.Input((None,) * 3)[..., 0, 0, None])],
    ids=["subclass", "empty", "size"],
)
def test_a_model_that_does_not_tell_needs_an_example(model: Any) -> None:
    with pytest.raises(ModelError, match=r"needs an example where .* e\.g\. example=\(1, 224, 224, 3\)"):
        inputs_of(model(), None)


def test_declared_inputs() -> None:
    assert declared_inputs(TwoArguments()) is None
    assert declared_inputs(keras.Sequential([layers.Dense(2)])) is None
    assert declared_inputs(keras.Sequential([keras.Input((4,)), layers.Dense(2)])).shape == (None, 4)
    assert len(declared_inputs(graph([keras.Input((4,)), keras.Input((3,))]))) == 2
