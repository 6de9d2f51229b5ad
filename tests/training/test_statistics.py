import numpy as np
import pytest
from scipy import stats

from spile.errors import TrainingError
from spile.training.statistics import Reached, paired_difference, time_to


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("pairs", [2, 5, 40])
def test_the_interval_is_that_of_scipys_paired_t_test(pairs: int, level: float) -> None:
    rng = np.random.default_rng(pairs)
    a = rng.normal(0.8, 0.05, pairs)
    b = a + rng.normal(0.02, 0.03, pairs)
    expected = stats.ttest_rel(b, a).confidence_interval(level)
    found = paired_difference(a.tolist(), b.tolist(), level=level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((b - a).mean())


def test_pairs_are_kept_together() -> None:
    """Seeds that differ much, a gain that does not: seen when paired, lost when not."""
    a = [0.5, 0.7, 0.9]
    b = [0.511, 0.709, 0.91]
    assert paired_difference(a, b).sign == 1
    assert paired_difference(a, b[::-1]).sign == 0
    assert paired_difference(b, a).sign == -1


def test_no_spread_at_all() -> None:
    found = paired_difference([0.5, 0.6], [0.5, 0.6])
    assert (found.mean, found.low, found.high, found.sign) == (0, 0, 0, 0)


@pytest.mark.parametrize("a, b", [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_too_few_pairs_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(TrainingError, match="seeds=2 or more"):
        paired_difference(a, b)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(TrainingError, match="no number"):
        paired_difference([0.5, float("nan")], [0.5, 0.6])


def test_the_first_time_an_accuracy_is_reached() -> None:
    assert time_to([0.1, 0.8, 0.7, 0.9], [1, 2, 3, 4], wanted=0.8) == 2
    assert time_to([0.1, 0.2], [1, 2], wanted=0.8) is None


def test_the_mean_is_of_seeds_that_reached_it() -> None:
    found = Reached(epochs=(2, None, 4), seconds=(1.0, None, 2.0))
    assert (found.count, found.mean_epochs, found.mean_seconds) == (2, 3, 1.5)
    assert Reached(epochs=(None,), seconds=(None,)).mean_epochs is None
