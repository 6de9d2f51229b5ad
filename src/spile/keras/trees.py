"""Small tools on nested tensors, and on the arguments of a call of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from spile import trees
from spile.errors import ModelError
from spile.keras.names import is_graph

_CONTEXT = ("training", "mask")


class Inputs(NamedTuple):
    """The arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def is_tensor(value: Any) -> bool:
    """Whether a value is a dense tensor of Keras' backend."""
    return bool(keras.ops.is_tensor(value)) and hasattr(value, "shape")


def tensors(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every tensor in nested values, with its dotted key."""
    return trees.leaves(value, is_tensor)


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A layer's input as one value: the argument itself where there is one, else a dict of them."""
    own = {name: value for name, value in kwargs.items() if name not in _CONTEXT}
    return trees.given(args, own, is_tensor)


def transform(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to every tensor and array in nested tuples, lists and mappings."""
    if is_array(value):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(transform(v, function) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(transform(v, function) for v in value)
    if isinstance(value, Mapping):
        return {k: transform(v, function) for k, v in value.items()}
    return value


def is_array(value: Any) -> bool:
    """Whether a value is a tensor or an array of any library, with at least one axis."""
    return hasattr(value, "__array__") and len(getattr(value, "shape", ())) > 0


def tensor_of(value: Any) -> Any:
    """A tensor of Keras' backend; doubles, NumPy's default, become Keras' own floats."""
    if is_tensor(value):
        return value
    array = np.asarray(value)
    dtype = keras.config.floatx() if array.dtype == np.float64 else None
    return keras.ops.convert_to_tensor(array, dtype=dtype)


def called_with(model: keras.Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """The arguments of a call, as tensors. One mapping of the model's own argument names is taken as
    keywords."""
    return Inputs(*transform(tuple(spread(model, args, kwargs)), tensor_of))


def spread(model: keras.Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """The same, as they are."""
    only = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(only, Mapping) and set(only) <= set(_parameters(model)):
        return Inputs((), dict(only))
    return Inputs(args, kwargs)


def inputs_of(model: keras.Model, example: Any) -> Inputs:
    """The arguments an example stands for; without one, zeros of the shapes that the model was built for.

    An example is a batch as the model takes it (an array, or a nested list or dict of them), or the shape of
    one, likewise nested. Raises `ModelError` where there is none and the model does not tell.
    """
    if isinstance(example, Inputs):
        return example
    example = _declared(model) if example is None else _zeros(model, example)
    several = isinstance(example, tuple) and not hasattr(example, "_fields")
    if several and len(_parameters(model)) > 1:
        return called_with(model, example, {})
    return called_with(model, (example,), {})


def _parameters(model: keras.Model) -> list[str]:
    """Names of what the model's call takes; a Functional model takes one nested value."""
    if is_graph(model) or isinstance(model, keras.Sequential):
        return ["inputs"]
    signature = inspect.signature(type(model).call).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in signature if p.name not in ("self", *_CONTEXT) and p.kind not in kinds]


def declared_inputs(model: keras.Model) -> Any:
    """The symbolic inputs that the model was built with, nested as it takes them, if there are any."""
    if isinstance(model, keras.Sequential):
        inputs = getattr(model, "inputs", None)  # not there before it is built
        return inputs[0] if inputs else None
    return model.input if is_graph(model) else None


def _declared(model: keras.Model) -> Any:
    declared = declared_inputs(model)
    if declared is None or any(None in t.shape[1:] for t in keras.tree.flatten(declared)):
        raise ModelError(
            "the layers of a model are learnt from one dry pass, which needs an example where the model does "
            "not fix its input size: pass a batch or its shape, e.g. example=(1, 224, 224, 3)"
        )
    return keras.tree.map_structure(lambda t: np.zeros((2, *t.shape[1:]), dtype_of(t)), declared)


def dtype_of(tensor: Any) -> str:
    """The name of a tensor's type, as Keras writes it."""
    return str(keras.backend.standardize_dtype(tensor.dtype))


def _zeros(model: keras.Model, example: Any) -> Any:
    """The example with every shape in it replaced by zeros of the type that the model was built for."""
    dtypes = {dtype_of(t) for t in keras.tree.flatten(declared_inputs(model)) if t is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 else keras.config.floatx()

    def filled(value: Any) -> Any:
        if isinstance(value, tuple) and value and all(type(n) is int for n in value):
            return np.zeros(value, dtype)
        if isinstance(value, (tuple, list)):
            return type(value)(filled(v) for v in value)
        if isinstance(value, Mapping):
            return {k: filled(v) for k, v in value.items()}
        return value

    return filled(example)
