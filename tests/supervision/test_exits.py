"""Temperatures, thresholds and what they do, on logits made up for the purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from spile.errors import SupervisionError
from spile.supervision import exits
from spile.supervision.exits import (
    ExitPolicy,
    Way,
    compared,
    confidences,
    fit_policy,
    fit_temperature,
    measure,
    taken,
)

COSTS = (1.0, 4.0, 10.0)
EVEN = (1.0, 1.0, 1.0)


@pytest.fixture
def data() -> tuple[Any, Any]:
    """Three exits, each better than the one before; half of the samples are easy for all."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 600)
    easy = random.random(600) < 0.5
    logits = []
    for skill in (1.0, 2.0, 5.0):
        scale = np.where(easy, 8.0, skill)[:, None]
        logits.append(scale * np.eye(5)[labels] + random.normal(size=(600, 5)))
    return np.stack(logits), labels


def test_the_temperature_undoes_a_known_one() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 4)) * 2
    labels = (softmax(logits, -1).cumsum(1) > random.random((20_000, 1))).argmax(1)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, rel=0.05)
    assert fit_temperature(3.0 * logits, labels) == pytest.approx(3.0, rel=0.05)


def test_samples_leave_at_the_first_exit_that_is_sure() -> None:
    confidence = np.array([[0.9, 0.5, 0.2], [0.1, 0.8, 0.3], [0.1, 0.1, 0.1]])
    assert taken(confidence, (0.9, 0.7, 0.0)).tolist() == [0, 1, 2]
    assert taken(confidence, (np.inf, np.inf, 0.99)).tolist() == [2, 2, 2]  # the last takes what is left


def test_confidence_is_tempered() -> None:
    logits = np.array([[[2.0, 0.0]], [[2.0, 0.0]]])
    hot, cold = confidences(logits, (2.0, 0.5))[:, 0]
    assert hot == pytest.approx(softmax([1.0, 0.0])[0])
    assert cold == pytest.approx(softmax([4.0, 0.0])[0])


def test_a_policy_keeps_the_accuracy_it_was_asked_for_at_less_cost(data: Any) -> None:
    logits, labels = data
    whole = float((logits[-1].argmax(1) == labels).mean())
    policy = fit_policy(logits, labels, COSTS, temperatures=EVEN)
    found = measure(logits, labels, COSTS, policy)
    assert found.accuracy >= whole
    assert found.macs < 0.8 * COSTS[-1]
    assert sum(found.shares) == pytest.approx(1)
    cheaper = measure(
        logits, labels, COSTS, fit_policy(logits, labels, COSTS, temperatures=EVEN, accuracy=0.8)
    )
    assert cheaper.accuracy >= 0.8
    assert cheaper.macs < found.macs


def test_a_policy_keeps_its_budget(data: Any) -> None:
    logits, labels = data
    for budget in (2.0, 5.0, 20.0):
        policy = fit_policy(logits, labels, COSTS, temperatures=EVEN, budget=budget)
        assert measure(logits, labels, COSTS, policy).macs <= budget


def test_goals_out_of_reach(data: Any) -> None:
    logits, labels = data
    with pytest.raises(SupervisionError, match=r"budget=0\.5 MACs cannot be met"):
        fit_policy(logits, labels, COSTS, temperatures=EVEN, budget=0.5)
    with pytest.raises(SupervisionError, match="accuracy=1 is above"):
        fit_policy(-logits, labels, COSTS, temperatures=EVEN, accuracy=1.0)
    with pytest.raises(SupervisionError, match="accuracy= or budget=, not both"):
        fit_policy(logits, labels, COSTS, temperatures=EVEN, accuracy=0.5, budget=5.0)


def test_measuring_by_hand() -> None:
    logits = np.array([[[5.0, 0.0], [0.1, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])
    policy = ExitPolicy(temperatures=(1.0, 1.0), thresholds=(0.9, 0.0))
    found = measure(logits, np.array([0, 0]), (1.0, 3.0), policy)
    assert (found.accuracy, found.macs, found.shares) == (0.5, 2.0, (0.5, 0.5))


def test_ways_are_timed_in_turns_and_the_first_turn_only_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = [0.0], []
    monkeypatch.setattr(exits.time, "perf_counter", lambda: now[0])

    def way(name: str, factor: float) -> Way:
        def run(number: int) -> None:
            seen.append((name, number))
            now[0] += factor * (9.0 if len(seen) <= 2 else 0.001 * (1 + number))

        return Way(accuracy=0.5, macs=7.0, run=run)

    found = compared({"slow": way("slow", 2), "fast": way("fast", 1)}, shares=(1.0,), samples=3, rounds=6)
    assert seen == [(name, row) for row in (0, 0, 1, 2, 0, 1, 2) for name in ("slow", "fast")]
    times = [1.0, 2.0, 3.0] * 2
    for name, factor in (("slow", 2), ("fast", 1)):
        row = found[name]
        assert row.p50 == pytest.approx(factor * np.quantile(times, 0.5))
        assert row.p95 == pytest.approx(factor * np.quantile(times, 0.95))
