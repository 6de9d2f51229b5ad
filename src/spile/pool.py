"""What is kept of an activation: pool names -> specs. Pure; the backends apply them.

A layout names the axes of an activation, one letter an axis: ``B`` sample, ``C`` channel, ``Z Y X`` space,
``T`` token or time, ``?`` unknown. A map is ``BCYX`` or ``BYXC``, tokens are ``BTC``, a vector is ``BC``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from spile.errors import PoolError, nearest

PoolKind = Literal[
    "none", "avg", "max", "gem", "grid", "flatten", "cls", "mean", "cls+mean", "last", "auto", "callable"
]

SPATIAL = ("avg", "max", "gem", "grid")
TOKENS = ("cls", "mean", "cls+mean", "last")
_ANY_AXES = "use pool='flatten', None or a callable"
_CELLS = re.compile("[1-9][0-9]{0,3}")
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
            return f"{self.kind}:{str(self.size).removesuffix('.0')}"
        return self.kind

    def fingerprint(self) -> str:
        """Text that changes with the values the pool gives; a callable's holds a hash of code and state."""
        if self.kind != "callable":
            return str(self)
        return f"{self}:{hashlib.sha256(_described(self.function).encode()).hexdigest()[:16]}"


PoolLike: TypeAlias = str | Callable[..., Any] | Pool | None


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
        if not _CELLS.fullmatch(size):
            raise PoolError(f"pool {pool!r} needs the number of cells a side: write 'grid:2'")
        return Pool("grid", int(size))
    if name == "gem":
        return Pool("gem", _exponent(pool, size))
    if pool not in NAMES:
        near = nearest(pool, NAMES, n=1)[0]
        raise PoolError(
            f"unknown pool {pool!r}: did you mean {near!r}? Pools: {', '.join(NAMES)}, None or a callable"
        )
    return Pool(pool)  # type: ignore[arg-type]


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


def settle(
    pool: Pool,
    layout: str | None,
    *,
    place: str,
    prefix_tokens: int | None,
    text: bool = False,
    class_token: bool = True,
) -> Pool:
    """Choose what ``auto`` means for a `layout`, and refuse pools that do not fit it.

    `prefix_tokens` counts the class and register tokens before the patches, ``None`` where they could not be
    told; the class token of `text` is its first token. Without `class_token` the prefix is registers alone.
    ``auto`` is class token and mean of the patches where there are both. A vector (``BC``) is already pooled:
    every named pool keeps it as it is. `place` is for the message.
    """
    if pool.kind in ("none", "callable"):
        return pool
    if layout is None or "B" not in layout:
        raise PoolError(
            f"{place} has no axis for the samples, so pool {str(pool)!r} cannot be applied: use pool=None"
        )
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
            return Pool("cls+mean" if prefix_tokens and class_token and not text else "mean")
        raise PoolError(f"{place} has axes {layout!r}, which 'auto' does not cover: {_ANY_AXES}")
    if pool.kind in SPATIAL and not spatial:
        remedy = "use pool='mean', 'cls' or 'auto'" if tokens else _ANY_AXES
        raise PoolError(
            f"{place} is no map but has axes {layout!r}; pool {str(pool)!r} is for maps: {remedy}"
        )
    if pool.kind in TOKENS and not tokens:
        remedy = "use pool='avg' or 'auto'" if spatial else _ANY_AXES
        raise PoolError(
            f"{place} is no sequence but has axes {layout!r}; pool {str(pool)!r} is for tokens: {remedy}"
        )
    if "cls" in pool.kind and not text and not (prefix_tokens and class_token):
        known = prefix_tokens == 0 or not class_token
        why = "has no class token" if known else "has tokens whose class token could not be found"
        raise PoolError(f"{place} {why}: use pool='mean', or a callable such as lambda x: x[:, 0]")
    return pool


def _is_map(axes: str) -> bool:
    return "C" in axes and len(axes) > 1 and set(axes) <= set("CZYX")


def _described(function: Any) -> str:
    """Text that is the same in every process for a callable of the same behaviour, as far as can be seen."""
    if isinstance(function, functools.partial):
        text = f"partial of {_described(function.func)}, {_state(function.args)}, {_state(function.keywords)}"
    elif inspect.ismethod(function):
        text = f"{_described(function.__func__)} of {function.__self__}"
        if not inspect.isclass(function.__self__):
            text += f" {_state(getattr(function.__self__, '__dict__', None))}"
    elif inspect.isfunction(function):
        closed_over = [cell.cell_contents for cell in function.__closure__ or ()]
        defaults = f"{_state(function.__defaults__)} {_state(function.__kwdefaults__)}"
        text = f"{_code(function)} {defaults} {_state(closed_over)}"
    else:
        text = f"{_code(type(function))} {_state(getattr(function, '__dict__', function))}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _state(value: Any) -> str:
    """The ``repr`` of what a callable holds, but arrays by their bytes: theirs leaves out the middle."""
    if inspect.isclass(value):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_state(held)}" for key, held in value.items()) + "}"
    if type(value) is list:
        return f"[{', '.join(map(_state, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(_state, value))}{',' if len(value) == 1 else ''})"
    if hasattr(value, "state_dict"):  # a module of PyTorch, whose `repr` has no weights
        return f"{value!r} {_state(value.state_dict())}"
    if hasattr(value, "detach") or hasattr(value, "numpy"):
        value = _as_numpy(value)
    if not hasattr(value, "tobytes"):
        return repr(value)
    shape, dtype = getattr(value, "shape", ""), getattr(value, "dtype", "")
    if getattr(dtype, "hasobject", False):  # its bytes are addresses
        return f"{shape} {_state(value.tolist())}"
    return f"{type(value).__name__} {shape} {dtype} {hashlib.sha256(value.tobytes()).hexdigest()}"


def _as_numpy(tensor: Any) -> Any:
    """A tensor of any framework as an array; as nested lists where NumPy has no such type."""
    held = tensor.detach().cpu().to_dense() if hasattr(tensor, "detach") else tensor
    try:
        return held.numpy()
    except (TypeError, RuntimeError):
        return held.tolist()


def _code(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt, or built in
        code = getattr(value, "__code__", None)
        return repr((code.co_code, code.co_names, code.co_consts) if code else value)
