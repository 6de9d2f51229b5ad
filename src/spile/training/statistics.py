"""What paired runs show: differences with their intervals, and how soon an accuracy is reached. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import stats

from spile.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of ``b - a`` over pairs, with its confidence interval by Student's t."""

    mean: float
    low: float
    high: float
    level: float
    pairs: int

    @property
    def sign(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below, else 0: no difference is shown."""
        return (self.low > 0) - (self.high < 0)


def paired_difference(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> Difference:
    """The mean of ``b - a`` and its t interval with ``len(a) - 1`` degrees of freedom.

    Raises `TrainingError` where there are fewer than two pairs, or a value is not finite.
    """
    differences = np.asarray(b, float) - np.asarray(a, float)
    if len(a) != len(b) or len(differences) < 2:
        raise TrainingError(
            f"{len(a)} and {len(b)} runs: an interval needs the same two or more seeds of both. "
            "Write seeds=2 or more"
        )
    if not np.isfinite(differences).all():
        raise TrainingError("a run ended with a score that is no number: did its loss overflow?")
    mean, error = float(differences.mean()), float(stats.sem(differences))
    half = float(stats.t.ppf(0.5 + level / 2, len(differences) - 1)) * error
    return Difference(mean=mean, low=mean - half, high=mean + half, level=level, pairs=len(differences))


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How soon an accuracy was reached: for each seed epochs and seconds, ``None`` where it never was."""

    epochs: tuple[float | None, ...]
    seconds: tuple[float | None, ...]

    @property
    def count(self) -> int:
        """Seeds that reached it."""
        return sum(epoch is not None for epoch in self.epochs)

    @property
    def mean_epochs(self) -> float | None:
        """Of the seeds that reached it."""
        return _mean(self.epochs)

    @property
    def mean_seconds(self) -> float | None:
        """Of the seeds that reached it."""
        return _mean(self.seconds)


def time_to(values: Sequence[float], at: Sequence[float], *, wanted: float) -> float | None:
    """The first of `at` (epochs, seconds) whose value is `wanted` or more; ``None`` where none is."""
    return next((when for value, when in zip(values, at, strict=True) if value >= wanted), None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
