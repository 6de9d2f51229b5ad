"""Nested values: tuples, lists, mappings and dataclasses that hold tensors of any framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

IsTensor = Callable[[Any], bool]


def leaves(value: Any, is_tensor: IsTensor, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor in nested values, with its dotted key; a tensor by itself has the key ``""``."""
    if is_tensor(value):
        yield key, value
        return
    for name, child in children(value):
        yield from leaves(child, is_tensor, f"{key}.{name}" if key else str(name))


def pick(value: Any, key: str) -> Any:
    """Follow a dotted key, of whose parts some may have dots of their own.

    Raises `LookupError` where it leads nowhere.
    """
    for name, child in children(value):
        if key == name:
            return child
        if key.startswith(f"{name}."):
            try:
                return pick(child, key[len(name) + 1 :])
            except LookupError:
                continue
    raise LookupError(key)


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any], is_tensor: IsTensor) -> Any:
    """A layer's input as one value: the argument itself where there is one, else a dict of them."""
    if len(args) == 1 and not any(True for _ in leaves(kwargs, is_tensor)):
        return args[0]
    return {**{str(i): value for i, value in enumerate(args)}, **kwargs}


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """What a nested value holds directly, by index, key or field."""
    if isinstance(value, Mapping):
        yield from ((str(k), v) for k, v in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((str(i), v) for i, v in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
