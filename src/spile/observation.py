"""What one dry pass of a model shows: which layers ran, how often, with which tensors. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from spile.address import Side


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor that went into or came out of a layer."""

    key: str | None
    """Where it stood in a tuple or dict (``0``, ``1.0``); ``None`` where the value is the tensor itself."""
    shape: tuple[int, ...]
    """With two samples in the batch."""
    dtype: str
    identity: int
    """Equal numbers are one and the same tensor object."""
    layout: str | None = None
    """One letter an axis (see `spile.pool`); ``None`` where no axis runs over the samples."""
    prefix_tokens: int | None = None
    """Class and register tokens before the patches; ``None`` where it could not be told."""


@dataclass(frozen=True, slots=True)
class Call:
    """One run of one layer. `start` and `end` are ticks of one clock for the whole pass."""

    path: str
    index: int
    start: int
    end: int
    inputs: tuple[Item, ...]
    outputs: tuple[Item, ...]
    macs_before: int
    macs: int
    """Multiply-accumulates a sample, from the start of the pass until the layer was left."""
    params_before: int
    params: int
    """Parameters needed until the layer was left."""

    def items(self, side: Side) -> tuple[Item, ...]:
        """The tensors on one side of the layer."""
        return self.outputs if side == "out" else self.inputs


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the model, whether it ran or not."""

    path: str
    aliases: tuple[str, ...]
    types: tuple[str, ...]
    """Class names, most derived first."""
    leaf: bool
    container: bool
    """Only holds other layers in a list, a dict or a chain."""
    params: int


@dataclass(frozen=True)
class Observation:
    """One dry pass. `calls` stand in the order in which layers were left; the model itself is ``""``."""

    layers: Mapping[str, Layer]
    calls: tuple[Call, ...]
    separator: str
    prefix_tokens: int | None
    """Those of the last block; a layer's own are in `Item.prefix_tokens`."""
    text: bool = False
    """The inputs are token ids."""
    class_token: bool = True
    """The first of the prefix tokens, where there are any, is a class token and no register."""
    value_dependent: bool = False
    """Which layers run, and how often, may depend on the values of the inputs."""
    channels_last: bool = True
    """PyTorch: it also takes images whose memory is channels last, which a `view` across channels forbids."""

    @cached_property
    def by_path(self) -> dict[str, tuple[Call, ...]]:
        """The calls of every layer that ran, in forward order."""
        grouped: dict[str, list[Call]] = {}
        for call in self.calls:
            grouped.setdefault(call.path, []).append(call)
        return {path: tuple(calls) for path, calls in grouped.items()}

    @property
    def root(self) -> Call:
        """The run of the model itself."""
        return self.by_path[""][0]
