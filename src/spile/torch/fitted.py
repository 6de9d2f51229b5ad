"""A fitted downstream model as a module, for `spile.torch.whole`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from spile.plain import Array, Kernel, Linear, Nearest, PlainHead

_SPARE = 8
"""So many more neighbours are looked at closely, since the quick distances that find them lose digits."""


class FittedHead(nn.Module):
    """From the points' features, (n, d) each, to scores (n, c); what `PlainHead` computes, in float32."""

    mean: Tensor
    scale: Tensor
    signs: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, head: PlainHead) -> None:
        super().__init__()
        self._unit_rows, self._link, self._pairs = head.unit_rows, head.link, head.pairs
        self._calibrated = head.slope is not None
        _hold(self, mean=head.mean, scale=head.scale)
        if head.pairs:
            _hold(self, signs=head.signs)
        if head.slope is not None and head.offset is not None:
            _hold(self, slope=head.slope, offset=head.offset)
        self.model = _module(head.model)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Scores of a batch."""
        if self._unit_rows:
            parts = [_unit(part) for part in parts]
        values: Tensor = self.model((torch.cat(list(parts), dim=1) - self.mean) / self.scale)
        if self._pairs:
            votes = (values >= 0).float() @ self.signs + (self.signs < 0).float().sum(0)
            sums = values @ self.signs
            values = votes + sums / (3 * (sums.abs() + 1))
        if self._calibrated:
            values = values * self.slope + self.offset
        if self._link in ("none", "shares"):
            return values
        if self._link == "softmax":
            return values.softmax(1)
        values = values.sigmoid()
        return values / values.sum(1, keepdim=True) if self._link == "normalised" else values


def _module(model: Linear | Kernel | Nearest) -> nn.Module:
    if isinstance(model, Linear):
        return _Linear(model)
    return _Kernel(model) if isinstance(model, Kernel) else _Nearest(model)


class _Linear(nn.Module):
    coef: Tensor
    intercept: Tensor

    def __init__(self, model: Linear) -> None:
        super().__init__()
        _hold(self, coef=model.coef, intercept=model.intercept)

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.coef + self.intercept


class _Kernel(nn.Module):
    rows: Tensor
    lengths: Tensor
    coef: Tensor
    intercept: Tensor

    def __init__(self, model: Kernel) -> None:
        super().__init__()
        self._gamma = model.gamma
        _hold(self, rows=2 * model.gamma * model.rows.T, lengths=model.gamma * (model.rows**2).sum(axis=1))
        _hold(self, coef=model.coef, intercept=model.intercept)

    def forward(self, z: Tensor) -> Tensor:
        near = z @ self.rows - self.lengths - self._gamma * z.square().sum(1, keepdim=True)
        return near.exp() @ self.coef + self.intercept


class _Nearest(nn.Module):
    rows: Tensor
    lengths: Tensor
    values: Tensor

    def __init__(self, model: Nearest) -> None:
        super().__init__()
        self._k, self._by_distance = model.k, model.by_distance
        _hold(self, rows=model.rows, lengths=(model.rows**2).sum(axis=1), values=model.values)

    def forward(self, z: Tensor) -> Tensor:
        quick = 2 * z @ self.rows.T - self.lengths
        near = quick.topk(min(self._k + _SPARE, len(self.rows)), dim=1).indices
        away, order = (self.rows[near] - z.unsqueeze(1)).square().sum(2).topk(self._k, dim=1, largest=False)
        values = self.values[near.gather(1, order)]
        if not self._by_distance:
            return values.mean(1)
        same = away == 0
        weights = torch.where(same.any(1, keepdim=True), same.float(), away.where(~same, 1.0).rsqrt())
        return (weights.unsqueeze(2) * values).sum(1) / weights.sum(1, keepdim=True)


def _hold(module: nn.Module, **arrays: Array) -> None:
    for name, array in arrays.items():  # torch.export saves no transposed tensor whole
        module.register_buffer(name, torch.tensor(np.ascontiguousarray(array), dtype=torch.float32))


def _unit(part: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(part, dim=1, keepdim=True)
    return part / torch.where(length > 0, length, torch.ones_like(length))
