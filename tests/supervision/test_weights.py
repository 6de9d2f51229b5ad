"""Schedules over the progress of training."""

from __future__ import annotations

import math
from typing import Any

import pytest

from spile.errors import SupervisionError
from spile.supervision import Constant, CosineDecay, DepthRamp, LinearDecay, Schedule, Uncertainty
from spile.supervision.weights import checked, shares_of, weighting_of

SCHEDULES = [Constant(0.4), LinearDecay(0.4), CosineDecay(0.4), DepthRamp(0.4)]
named = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@named
def test_the_weights_begin_with_the_total_shared_evenly(schedule: Schedule) -> None:
    assert schedule.weights(0, 4) == pytest.approx([0.1] * 4)


@named
def test_weights_never_rise_and_are_never_negative(schedule: Schedule) -> None:
    rows = [schedule.weights(step / 50, 3) for step in range(51)]
    for before, after in zip(rows, rows[1:], strict=False):
        assert all(0 <= b <= a for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("schedule", [LinearDecay(0.4, end=0.5), CosineDecay(0.4, end=0.5)])
def test_decays_end_when_they_are_told_to(schedule: Schedule) -> None:
    assert sum(schedule.weights(0.25, 2)) == pytest.approx(0.2)
    assert min(schedule.weights(0.49, 2)) > 0
    for progress in (0.5, 0.75, 1.0):
        assert schedule.weights(progress, 2) == pytest.approx((0, 0), abs=1e-12)


def test_the_default_cosine_is_over_at_seven_tenths() -> None:
    schedule = CosineDecay(0.4)
    assert sum(schedule.weights(0.35, 3)) == pytest.approx(0.2)
    assert sum(schedule.weights(0.175, 1)) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert schedule.weights(0.7, 1) == (0.0,)


def test_shallow_heads_of_a_ramp_end_first() -> None:
    schedule = DepthRamp(3.0, end=0.9)
    assert schedule.weights(0.3, 3) == pytest.approx((0, 0.5, 2 / 3))
    assert schedule.weights(0.6, 3) == pytest.approx((0, 0, 1 / 3))
    assert schedule.weights(0.9, 3) == pytest.approx((0, 0, 0))


def test_halving_towards_the_input() -> None:
    assert shares_of("halving", 3) == pytest.approx((1 / 7, 2 / 7, 4 / 7))
    assert Constant(7.0, share="halving").weights(0.5, 3) == pytest.approx((1, 2, 4))


def test_shares_of_ones_own() -> None:
    assert Constant(1.0, share=[3, 1]).weights(0, 2) == pytest.approx((0.75, 0.25))
    for share in ([1, 2, 3], [0, 0], [-1, 2]):
        with pytest.raises(SupervisionError, match="does not fit 2 heads: write 2 numbers"):
            shares_of(share, 2)
    assert shares_of("even", 0) == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Constant(-0.1), r"total=-0.1 is no weight: .* e.g. Constant\(0.4\)"),
        (lambda: CosineDecay(math.nan), "total=nan"),
        (lambda: LinearDecay(end=0), "end=0 is no share of training"),
        (lambda: LinearDecay(end=1.1), "end=1.1"),
        (lambda: Constant(share="halfing"), "unknown share 'halfing'"),
        (lambda: weighting_of(True), "weight=True is no weighting"),
        (lambda: weighting_of("cosine"), "weight='cosine' is no weighting"),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(make: Any, said: str) -> None:
    with pytest.raises(SupervisionError, match=said):
        make()


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan, 40])
def test_a_step_count_is_no_progress(progress: float) -> None:
    with pytest.raises(SupervisionError, match="pass the share of training that is done, step / total_steps"):
        checked(progress)
    with pytest.raises(SupervisionError):
        Constant().weights(progress, 2)


def test_a_number_is_a_constant() -> None:
    assert weighting_of(0.3) == weighting_of(Constant(0.3)) == Constant(0.3)
    assert weighting_of(1) == Constant(1.0)
    assert isinstance(weighting_of(Uncertainty()), Uncertainty)
