"""Small tools on nested values and on wrapped models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_WRAPPERS = ("module.", "_orig_mod.")


def tensors(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested tuples, lists, mappings and dataclasses, with its dotted key."""
    if isinstance(value, Tensor):
        yield key, value
        return
    for name, child in _children(value):
        yield from tensors(child, f"{key}.{name}" if key else str(name))


def pick(value: Any, key: str) -> Any:
    """Follow a dotted key; raises `LookupError` where it leads nowhere."""
    for part in key.split("."):
        found = dict(_children(value))
        if part not in found:
            raise LookupError(key)
        value = found[part]
    return value


def transform(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply `function` to every tensor in nested tuples, lists and plain mappings."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(transform(v, function) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(transform(v, function) for v in value)
    if isinstance(value, Mapping):
        return {k: transform(v, function) for k, v in value.items()}
    return value


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward pass: a tuple is positional, a mapping is keywords."""
    if isinstance(example, tuple) and not hasattr(example, "_fields"):
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example,), {}


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer's input as one value: the argument itself where there is one, else a dict of them."""
    if len(args) == 1 and not any(True for _ in tensors(kwargs)):
        return args[0]
    return {**{str(i): value for i, value in enumerate(args)}, **kwargs}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `DataParallel` and `torch.compile` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def unwrapped_name(name: str) -> str:
    """A layer's name without the prefixes that wrappers put before it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def is_compiled(model: nn.Module) -> bool:
    """Whether any part of the model was handed to `torch.compile`, after which new hooks may not run."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def names_of(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every name of every module, first name first; a tied module has several."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {module: tuple(found) for module, found in names.items()}


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(k), v) for k, v in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((str(i), v) for i, v in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
