"""The batch size that is chosen."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import spile
from spile.pipeline import BATCH_SIZE, automatic_batch_size


def tapped(model: nn.Module, shape: tuple[int, ...] | None, **options: Any) -> Any:
    return spile.tap(model, "0", example=shape, **options)


@pytest.mark.parametrize(
    ("model", "shape", "pool", "expected"),
    [
        (nn.Sequential(nn.Linear(4, 4)), (1, 4), "auto", 256),  # cheap: many
        (nn.Sequential(nn.Conv2d(64, 64, 3)), (1, 64, 50, 50), "avg", 32),  # 85 million MACs
        (nn.Sequential(nn.Conv2d(512, 512, 3)), (1, 512, 64, 64), "avg", 32),  # dear: not fewer
        (nn.Sequential(nn.Conv2d(3, 64, 1)), (1, 3, 256, 256), None, 8),  # 16 MiB a sample are kept
        (nn.Sequential(nn.Conv2d(3, 64, 1)), (1, 3, 256, 256), "avg", 256),  # 256 bytes are
        (nn.Sequential(nn.Conv2d(3, 64, 1)), (1, 3, 2048, 2048), None, 1),  # 1 GiB a sample is kept
    ],
)
def test_it_goes_by_the_cost_and_by_what_is_kept(model: Any, shape: Any, pool: Any, expected: int) -> None:
    assert automatic_batch_size(tapped(model, shape, pool=pool)) == expected


def test_points_that_are_yet_to_be_learnt() -> None:
    assert automatic_batch_size(tapped(nn.Sequential(nn.Linear(4, 4)), None)) == BATCH_SIZE
