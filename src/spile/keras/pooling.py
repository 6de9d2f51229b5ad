"""Pools on tensors of Keras' backend; samples come first in every result."""

from __future__ import annotations

import math
from typing import Any

from keras import backend, ops

from spile.errors import PoolError
from spile.keras.trees import is_tensor
from spile.pool import TOKENS, Pool

_HALF = ("float16", "bfloat16")
_GEM_FLOOR = 1e-6


def needs_mask(pool: Pool, layout: str | None) -> bool:
    """Whether the pool leaves padding out, so that it has to know where it is."""
    return pool.kind in TOKENS and layout is not None and "T" in layout


def pooled(x: Any, pool: Pool, layout: str | None, *, prefix_tokens: int = 0, mask: Any = None) -> Any:
    """Pool one activation.

    `mask` (samples, tokens) is true where a token is real. Half-precision activations are reduced in float32
    and stay float32.
    """
    if layout is not None:
        x = ops.moveaxis(x, layout.index("B"), 0)
    if pool.kind == "none":
        return x
    if pool.kind == "callable" or layout is None:
        return _called(pool, x)
    layout = "B" + layout.replace("B", "")
    if "?" not in layout:
        order = [layout.index(axis) for axis in _canonical(layout)]
        x = x if order == sorted(order) else ops.transpose(x, order)
    if pool.kind == "flatten":
        return _flat(x)
    dtype = backend.standardize_dtype(x.dtype)
    x = ops.cast(x, "float32") if dtype in _HALF or "float" not in dtype else x
    return _pool_tokens(x, pool.kind, prefix_tokens, mask) if "T" in layout else _pool_map(x, pool)


def _called(pool: Pool, x: Any) -> Any:
    assert pool.function is not None
    result = pool.function(x)
    if not is_tensor(result):
        raise PoolError(f"{pool!s} gave a {type(result).__name__}: a pool returns one tensor, samples first")
    if tuple(result.shape[:1]) != tuple(x.shape[:1]):
        raise PoolError(
            f"{pool!s} made {list(result.shape)} of {list(x.shape)}: the samples must stay the first axis"
        )
    return result


def _canonical(layout: str) -> str:
    """Samples, then channels, then space, as in PyTorch's maps; tokens before channels."""
    order = "BTC" if "T" in layout else "BCZYX"
    return "".join(axis for axis in order if axis in layout)


def _pool_map(x: Any, pool: Pool) -> Any:
    space = tuple(range(2, len(x.shape)))
    if pool.kind == "avg":
        return ops.mean(x, axis=space)
    if pool.kind == "max":
        return ops.amax(x, axis=space)
    if pool.kind == "gem":
        p = pool.size or 3.0
        return ops.power(ops.mean(ops.power(ops.maximum(x, _GEM_FLOOR), p), axis=space), 1 / p)
    for axis in space:
        x = averaged(x, axis, int(pool.size or 1))
    return _flat(x)


def _flat(x: Any) -> Any:
    """(samples, rest); in a graph, where the number of samples is open, the rest must be stated."""
    rest = x.shape[1:]
    return ops.reshape(x, (ops.shape(x)[0], -1) if None in rest else (-1, math.prod(rest)))


def averaged(x: Any, axis: int, cells: int) -> Any:
    """Adaptive average pooling along an axis: cell i covers floor(i n / cells) to ceil((i + 1) n / cells)."""
    size = int(x.shape[axis])
    index = (slice(None),) * axis
    parts = [
        ops.mean(x[(*index, slice(i * size // cells, -(-(i + 1) * size // cells)))], axis=axis, keepdims=True)
        for i in range(cells)
    ]
    return ops.concatenate(parts, axis=axis)


def _pool_tokens(x: Any, kind: str, prefix_tokens: int, mask: Any) -> Any:
    real = None
    if mask is not None and len(mask.shape) == 2 and mask.shape[1] == x.shape[1]:
        real = ops.cast(mask, "bool")
    if kind == "cls":
        return _first(x, real)
    if kind == "last":
        return _last(x, real)
    patches = x[:, prefix_tokens:]
    if real is None:
        mean = ops.mean(patches, axis=1)
    else:
        kept = ops.expand_dims(real[:, prefix_tokens:], -1)
        total = ops.sum(ops.where(kept, patches, ops.zeros_like(patches)), axis=1)  # padding may hold NaN
        mean = total / ops.maximum(ops.sum(ops.cast(kept, x.dtype), axis=1), 1)
    return mean if kind == "mean" else ops.concatenate([_first(x, real), mean], axis=1)


def _first(x: Any, real: Any) -> Any:
    if real is None:
        return x[:, 0]
    return _at(x, ops.argmax(ops.cast(real, "int32"), axis=1))


def _last(x: Any, real: Any) -> Any:
    if real is None:
        return x[:, -1]
    positions = ops.arange(x.shape[1], dtype="int32")
    return _at(x, ops.maximum(ops.amax(ops.where(real, positions, -1), axis=1), 0))


def _at(x: Any, tokens: Any) -> Any:
    """One token a sample."""
    index = ops.reshape(ops.cast(tokens, "int32"), (-1, 1, 1))
    return ops.squeeze(ops.take_along_axis(x, index, axis=1), axis=1)
