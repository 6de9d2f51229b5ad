"""Gradients that are scaled or zero on their way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Tied(Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, *unused: Tensor) -> Tensor:
        ctx.unused = [(t.shape, t.dtype, t.device) for t in unused]
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.unused)
        return gradients[0], *zeros


def tied(total: Tensor, unused: list[Tensor]) -> Tensor:
    """`total`, with a gradient of exactly 0 to `unused`: processes wait for a gradient of every weight."""
    result: Tensor = _Tied.apply(total, *unused)
    return result


class _Scaled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def scaled(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient is multiplied with `factor` on the way back; 0 cuts it."""
    if factor == 1:
        return x
    if factor == 0:
        return x.detach()
    result: Tensor = _Scaled.apply(x, factor)
    return result
