"""Small tools on nested values, on the arguments of a forward pass, and on wrapped models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spile import trees
from spile.errors import ModelError
from spile.trees import pick

__all__ = [
    "Inputs",
    "called_with",
    "device_of",
    "floating_of",
    "from_array",
    "given",
    "inputs_of",
    "is_compiled",
    "names_of",
    "pick",
    "position_of",
    "tensors",
    "transform",
    "unwrap",
]


class Inputs(NamedTuple):
    """The arguments of one forward pass: tensors on the model's device, and whatever else the model takes."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested tuples, lists, mappings and dataclasses, with its dotted key."""
    return trees.leaves(value, _is_tensor)


def transform(value: Any, function: Callable[[Tensor], Any], *, floating: torch.dtype = torch.float32) -> Any:
    """Apply `function` to every tensor in nested tuples, lists and mappings.

    Arrays become tensors first, as by `from_array`.
    """

    def applied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0:
            return function(from_array(np.asarray(value), floating))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(applied, value))
        if isinstance(value, (tuple, list)):
            return type(value)(map(applied, value))
        if isinstance(value, Mapping):
            return {k: applied(v) for k, v in value.items()}
        return value

    return applied(value)


def from_array(array: np.ndarray[Any, Any], floating: torch.dtype = torch.float32) -> Tensor:
    """Doubles, NumPy's default, become floats, PyTorch's; read-only memory is copied.

    With another `floating` dtype, that of a model, all floating numbers get that one.
    """
    kind = array.dtype.newbyteorder("=")
    if kind == np.float64 and floating != torch.float64:
        kind = np.dtype(np.float32)
    tensor = torch.from_numpy(np.require(array, kind, ("C", "W")))
    return tensor.to(floating) if floating != torch.float32 and tensor.is_floating_point() else tensor


def floating_of(model: nn.Module) -> torch.dtype:
    """That of the model's first floating parameter; float32 for a model without any."""
    found = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(found, torch.float32)


def called_with(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """The arguments of a call. One mapping of the forward pass's own argument names is taken as keywords."""
    only = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(only, Mapping) and _takes(model, only):
        args, kwargs = (), dict(only)
    device = device_of(model)
    placed = transform(
        (args, kwargs), lambda t: t if t.device == device else t.to(device), floating=floating_of(model)
    )
    return Inputs(placed[0], placed[1])


def inputs_of(model: nn.Module, example: Any) -> Inputs:
    """The arguments an example stands for: a batch, a tuple of arguments, a mapping of keywords, or a shape.

    Raises `ModelError` where there is none.
    """
    if isinstance(example, Inputs):
        return example
    if example is None:
        raise ModelError(
            "the layers of a model are learnt from one dry pass, which needs an example: pass a batch or its "
            "shape, e.g. example=(1, 3, 224, 224)"
        )
    if isinstance(example, tuple) and example and all(type(n) is int for n in example):
        example = torch.zeros(example, dtype=floating_of(model))
    positional = isinstance(example, tuple) and not hasattr(example, "_fields")
    return called_with(model, example if positional else (example,), {})


def position_of(model: nn.Module, name: str) -> int | None:
    """Where the argument `name` of the forward pass stands; ``None`` where it has none of that name."""
    names = list(inspect.signature(model.forward).parameters)
    return names.index(name) if name in names else None


def _takes(model: nn.Module, names: Mapping[Any, Any]) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or set(names) <= set(parameters)


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer's input as one value: the argument itself where there is one, else a dict of them."""
    return trees.given(args, kwargs, _is_tensor)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `DataParallel` and `torch.compile` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_compiled(model: nn.Module) -> bool:
    """Whether any part of the model was handed to `torch.compile`, after which new hooks may not run."""
    return any(
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def names_of(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every name of every module, first name first; a tied module has several."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {module: tuple(found) for module, found in names.items()}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model without any."""
    for tensors_of in (model.parameters(), model.buffers()):
        for tensor in tensors_of:
            return tensor.device
    return torch.device("cpu")
