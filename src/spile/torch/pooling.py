"""Pools on tensors. Every result is a copy, so a later in-place operation of the model cannot reach it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spile.errors import PoolError
from spile.pool import Pool

_HALF = (torch.float16, torch.bfloat16)
_GEM_FLOOR = 1e-6
_LINEAR = ("avg", "cls", "mean", "cls+mean", "last")


def pooled(
    x: Tensor, pool: Pool, layout: str | None, *, prefix_tokens: int = 0, mask: Tensor | None = None
) -> Tensor:
    """Pool one activation; samples come first in the result.

    `mask` (samples, tokens) is 1 where a token is real. Half-precision activations are reduced in float32 and
    stay float32.
    """
    if x.is_quantized:
        x = x.dequantize()
    if layout is not None:
        x = x.movedim(layout.index("B"), 0)
    if pool.kind == "none":
        return x.clone()
    if pool.kind == "callable" or layout is None:
        return _called(pool, x)
    layout = "B" + layout.replace("B", "")
    if "?" not in layout:
        x = x.permute([layout.index(axis) for axis in _canonical(layout)])
    if pool.kind == "flatten":
        return x.flatten(1).clone() if x.ndim > 1 else x.unsqueeze(1).clone()
    if x.is_complex() and pool.kind not in _LINEAR:
        raise PoolError(f"{pool!s} is not for complex numbers: use pool=lambda x: x.abs()")
    x = x.float() if x.dtype in _HALF or not (x.is_floating_point() or x.is_complex()) else x
    if "T" in layout:
        return _pool_tokens(x, pool.kind, prefix_tokens, mask)
    return _pool_map(x, pool)


def _called(pool: Pool, x: Tensor) -> Tensor:
    """The user's function works on a copy, so that it cannot change what the model goes on with."""
    assert pool.function is not None
    result = pool.function(x.clone())
    if not isinstance(result, Tensor):
        raise PoolError(f"{pool!s} gave a {type(result).__name__}: a pool returns one tensor, samples first")
    if x.ndim and result.shape[:1] != x.shape[:1]:
        raise PoolError(
            f"{pool!s} made {list(result.shape)} of {list(x.shape)}: the samples must stay the first axis"
        )
    return result


def _canonical(layout: str) -> str:
    """Samples, then channels, then space; tokens before channels."""
    order = "BTC" if "T" in layout else "BCZYX"
    return "".join(axis for axis in order if axis in layout)


def _pool_map(x: Tensor, pool: Pool) -> Tensor:
    space = tuple(range(2, x.ndim))
    if pool.kind == "avg":
        return x.mean(space)
    if pool.kind == "max":
        return x.amax(space)
    if pool.kind == "gem":
        p = pool.size or 3.0
        return x.clamp(min=_GEM_FLOOR).pow(p).mean(space).pow(1 / p)
    cells: Any = (int(pool.size or 1),) * len(space)
    pooling = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)
    return pooling[len(space) - 1](x, cells).flatten(1)


def _pool_tokens(x: Tensor, kind: str, prefix_tokens: int, mask: Tensor | None) -> Tensor:
    real = mask if mask is not None and mask.shape == x.shape[:2] else None
    if kind == "cls":
        return _first(x, real).clone()
    if kind == "last":
        return _last(x, real).clone()
    patches = x[:, prefix_tokens:]
    if real is None:
        mean = patches.mean(1)
    else:
        kept = real[:, prefix_tokens:].bool().unsqueeze(-1)
        mean = patches.masked_fill(~kept, 0).sum(1) / kept.sum(1).clamp(min=1)  # padding may hold NaN
    return mean if kind == "mean" else torch.cat([_first(x, real), mean], dim=1)


def _first(x: Tensor, real: Tensor | None) -> Tensor:
    if real is None:
        return x[:, 0]
    return x[torch.arange(x.shape[0], device=x.device), real.bool().int().argmax(1)]


def _last(x: Tensor, real: Tensor | None) -> Tensor:
    if real is None:
        return x[:, -1]
    positions = torch.arange(x.shape[1], device=x.device).expand_as(real)
    last = positions.masked_fill(~real.bool(), -1).amax(1).clamp(min=0)
    return x[torch.arange(x.shape[0], device=x.device), last]
