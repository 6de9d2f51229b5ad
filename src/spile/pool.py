"""What is kept of an activation: pool names -> specs. Pure; the backends apply them.

A layout names the axes of an activation, one letter an axis: ``B`` sample, ``C`` channel, ``Z Y X`` space, ``T`` token or
time, ``?`` unknown. A map is ``BCYX`` or ``BYXC``, tokens are ``BTC``, a vector is ``BC``.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from spile.errors import PoolError, nearest

PoolKind = Literal["none", "avg", "max", "gem", "grid", "flatten", "cls", "mean", "cls+mean", "last", "auto", "callable"]

SPATIAL = ("avg", "max", "gem", "grid")
TOKENS = ("cls", "mean", "cls+mean", "last")
NAMES = ("auto", "avg", "max", "gem", "grid:N", "flatten", "cls", "mean", "cls+mean", "last")


@dataclass(frozen=True, slots=True)
class Pool:
    """A parsed pool. ``str(pool)`` is its canonical name and parses back, callables apart."""

    kind: PoolKind
    size: float | None = None
    """The n of ``grid:n`` (cells a side), the p of ``gem:p``."""
    function: Callable[..., Any] | None = None

    def __str__(self) -> str:
        if self.kind == "callable":
            return f"callable:{getattr(self.function, '__qualname__', type(self.function).__name__)}"
        if self.kind == "grid" or (self.kind == "gem" and self.size != 3.0):
            return f"{self.kind}:{self.size:g}"
        return self.kind

    def fingerprint(self) -> str:
        """Text that changes with the values the pool gives; a callable's holds a hash of its source."""
        if self.kind != "callable":
            return str(self)
        try:
            source = inspect.getsource(self.function)  # type: ignore[arg-type]
        except (OSError, TypeError):
            source = repr(getattr(getattr(self.function, "__code__", None), "co_code", self.function))
        return f"{self}:{hashlib.sha256(source.encode()).hexdigest()[:16]}"


PoolLike: TypeAlias = str | None | Callable[..., Any] | Pool


def parse(pool: PoolLike) -> Pool:
    """Parse a pool: a name, ``None`` for the whole tensor, or a callable on the batch-first tensor."""
    if isinstance(pool, Pool):
        return pool
    if pool is None or pool == "none":
        return Pool("none")
    if callable(pool):
        return Pool("callable", function=pool)
    if not isinstance(pool, str):
        raise PoolError(f"{pool!r} is no pool: give one of {', '.join(NAMES)}, None or a callable")
    name, _, size = pool.partition(":")
    if name == "grid":
        if not (size.isascii() and size.isdecimal()) or int(size) < 1:
            raise PoolError(f"pool {pool!r} needs the number of cells a side: write 'grid:2'")
        return Pool("grid", float(size))
    if name == "gem":
        return Pool("gem", _exponent(pool, size))
    if size or name not in NAMES:
        near = nearest(pool, NAMES, n=1)[0]
        raise PoolError(f"unknown pool {pool!r}: did you mean {near!r}? Pools: {', '.join(NAMES)}, None or a callable")
    return Pool(name)  # type: ignore[arg-type]


def _exponent(pool: str, size: str) -> float:
    if not size and ":" not in pool:
        return 3.0
    try:
        exponent = float(size)
    except ValueError:
        exponent = 0.0
    if not 0 < exponent < float("inf"):
        raise PoolError(f"pool {pool!r} needs a positive exponent: write 'gem' (3) or 'gem:4'")
    return exponent


def settle(pool: Pool, layout: str | None, *, place: str, prefix_tokens: int | None, text: bool = False) -> Pool:
    """Choose what ``auto`` means for a `layout`, and refuse pools that do not fit it.

    `prefix_tokens` counts the class and register tokens before the patches, ``None`` where they could not be told;
    the class token of `text` is its first token. A vector (``BC``) is already pooled: every named pool keeps it as it is. `place` is for the message.
    """
    if pool.kind in ("none", "callable"):
        return pool
    if layout is None or "B" not in layout:
        raise PoolError(f"{place} has no axis for the samples, so pool {str(pool)!r} cannot be applied: use pool=None")
    axes = layout.replace("B", "")
    if pool.kind == "flatten":
        return pool
    if axes in ("C", ""):
        return Pool("flatten")
    spatial, tokens = _is_map(axes), sorted(axes) == ["C", "T"]
    if pool.kind == "auto":
        if spatial:
            return Pool("avg")
        if tokens:
            return Pool("mean")
        raise PoolError(f"{place} has axes {layout!r}, which 'auto' does not cover: use pool='flatten', None or a callable")
    if pool.kind in SPATIAL and not spatial:
        remedy = "pool='mean', 'cls' or 'auto'" if tokens else "pool='flatten', None or a callable"
        raise PoolError(f"{place} is no map but has axes {layout!r}; pool {str(pool)!r} is for maps: use {remedy}")
    if pool.kind in TOKENS and not tokens:
        remedy = "pool='avg' or 'auto'" if spatial else "pool='flatten', None or a callable"
        raise PoolError(f"{place} is no token sequence but has axes {layout!r}; pool {str(pool)!r} is for tokens: use {remedy}")
    if "cls" in pool.kind and not text and not prefix_tokens:
        why = "has no class token" if prefix_tokens == 0 else "has tokens whose class token could not be found"
        raise PoolError(f"{place} {why}: use pool='mean', or a callable such as lambda x: x[:, 0]")
    return pool


def _is_map(axes: str) -> bool:
    return "C" in axes and len(axes) > 1 and set(axes) <= set("CZYX")
