"""What several processes that train one model must agree on."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def several() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gathered(rows: Tensor) -> Tensor:
    """The rows of every process, in one order everywhere, so that running averages stay the same in all."""
    if not several():
        return rows
    world = distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    distributed.all_gather(counts, torch.full((1,), len(rows), dtype=torch.long, device=rows.device))
    most = int(max(counts))
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(found, padded)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])
