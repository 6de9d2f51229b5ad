"""The batch size that is chosen, and batches that are computed at the same time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torch import nn

import spile
from spile.pipeline import BATCH_SIZE, automatic_batch_size, several_at_once


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


def test_several_are_computed_at_the_same_time_and_come_in_order() -> None:
    together = threading.Barrier(2, timeout=20)  # passes only when two wait for each other

    def compute(item: int) -> int:
        if item in (2, 3):
            together.wait()
        return item * item

    assert list(several_at_once(range(6), compute, lambda: 2)) == [(i, i * i) for i in range(6)]


def test_how_many_may_be_known_after_the_first() -> None:
    threads: list[str] = []

    def compute(item: int) -> int:
        threads.append(threading.current_thread().name)
        return item

    found = list(several_at_once(range(4), compute, lambda: 1 if not threads else 2))
    assert [item for item, _ in found] == [0, 1, 2, 3]
    assert threads[0] == threading.current_thread().name not in threads[1:]


@pytest.mark.parametrize("at_once", [1, 2])
def test_what_came_before_an_error_is_kept(at_once: int) -> None:
    kept = []
    with pytest.raises(ZeroDivisionError):
        for item, _ in several_at_once([4, 2, 1, 0, 5], lambda item: 1 // item, lambda: at_once):
            kept.append(item)
    assert kept == [4, 2, 1]


def test_no_more_is_read_ahead_than_is_computed() -> None:
    read: list[int] = []
    given = several_at_once((read.append(i) or i for i in range(100)), lambda item: item, lambda: 2)
    next(given)
    assert len(read) <= 3
    given.close()  # type: ignore[attr-defined]
