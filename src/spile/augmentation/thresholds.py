"""Which part of an image counts as active: thresholds by rank, within bounds on the area. Pure.

A map's cells are put in order, the most active first; a threshold says how large a share of the picture the
active region has, and the region is the first cells of that order. So ties, flat maps and maps with one
active cell give regions of a proper size too. Equal cells are put in order by their neighbourhood (3 x 3
mean), then at random.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import AugmentationError

Array = npt.NDArray[Any]

BOUNDS = (0.05, 0.6)


@dataclass(frozen=True)
class Threshold(ABC):
    """Splits a map into levels.

    `bounds` are the least and the largest share of the picture that the most active region may have; they
    hold up to the size of one cell.
    """

    @property
    def splits(self) -> int:
        """How many; one more is the number of levels."""
        return 1

    @property
    def limits(self) -> tuple[float, float]:
        """The bounds."""
        found: tuple[float, float] = self.__dict__.get("bounds", BOUNDS)
        return found

    @abstractmethod
    def shares(self, values: Array, areas: Array) -> Array:
        """(splits,) shares of the picture above each split, the lowest split first.

        `values` (n,) are the cells' levels in 0..1, `areas` (n,) their shares of the picture.
        """


class _Levels(Threshold):
    """One or several numbers in rising order."""

    at: tuple[float, ...]

    def _take(self, at: tuple[float, ...], bounds: tuple[float, float], example: str) -> None:
        rising = all(a < b for a, b in pairwise(at))
        if not at or not rising or not all(0 < number < 1 for number in at):
            raise AugmentationError(
                f"{type(self).__name__}{at!r}: write one or several numbers between 0 and 1 in rising order, "
                f"e.g. {example}"
            )
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "bounds", checked_bounds(bounds))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is fixed: make another one")

    @property
    def splits(self) -> int:
        """How many numbers were given."""
        return len(self.at)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self.at))}, bounds={self.limits})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.at, self.limits))


class Quantile(_Levels):
    """The active region lies above these quantiles of the area: ``Quantile(0.85)`` is the top 15 %."""

    def __init__(self, *at: float, bounds: tuple[float, float] = BOUNDS) -> None:
        self._take(at, bounds, "Quantile(0.5, 0.85)")

    def shares(self, values: Array, areas: Array) -> Array:
        """One minus the quantiles."""
        return 1 - np.asarray(self.at)


class Absolute(_Levels):
    """The active region is what exceeds these levels of the map, scaled to 0..1: ``Absolute(0.5)``."""

    def __init__(self, *at: float, bounds: tuple[float, float] = BOUNDS) -> None:
        self._take(at, bounds, "Absolute(0.5)")

    def shares(self, values: Array, areas: Array) -> Array:
        """The area of the cells above."""
        return np.array([areas[values > level].sum() for level in self.at])


class Mass(_Levels):
    """The active region is the smallest that holds this share of the total activation: ``Mass(0.5)``."""

    def __init__(self, *at: float, bounds: tuple[float, float] = BOUNDS) -> None:
        self._take(at, bounds, "Mass(0.5)")

    def shares(self, values: Array, areas: Array) -> Array:
        """The area of the first cells that together reach it; larger shares of the mass come first."""
        order = np.argsort(-values, kind="stable")
        mass = np.cumsum(values[order] * areas[order])
        if mass[-1] <= 0:
            return np.sort(np.asarray(self.at))[::-1].astype(float)
        area: Array = np.cumsum(areas[order])
        wanted = np.asarray(self.at)[::-1] * mass[-1]
        found: Array = area[np.minimum(np.searchsorted(mass, wanted - 1e-12), len(area) - 1)]
        return found


@dataclass(frozen=True)
class Otsu(Threshold):
    """The split that parts a map's levels best: largest variance between the two parts (Otsu 1979)."""

    bounds: tuple[float, float] = BOUNDS

    def __post_init__(self) -> None:
        checked_bounds(self.bounds)

    def shares(self, values: Array, areas: Array) -> Array:
        """The area above the best split between two different levels; a flat map has none."""
        order = np.argsort(-values, kind="stable")
        levels, weights = values[order], areas[order]
        above = np.cumsum(weights)[:-1]
        total = weights.sum()
        sums = np.cumsum(weights * levels)
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = sums[:-1] / above - (sums[-1] - sums[:-1]) / (total - above)
            between = above * (total - above) * gap**2
        between = np.where((levels[:-1] > levels[1:]) & np.isfinite(between), between, -1.0)
        if not len(between) or between.max() < 0:
            return np.zeros(1)
        return above[[int(np.argmax(between))]]


def checked_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds themselves. Raises `AugmentationError` where they are none."""
    if len(bounds) != 2 or not 0 < bounds[0] < bounds[1] <= 1:
        raise AugmentationError(
            f"bounds={bounds!r}: write the least and the largest share of the picture that the active region "
            "may have, e.g. bounds=(0.05, 0.6)"
        )
    return bounds


def levels(values: Array, areas: Array, threshold: Threshold, keys: Array) -> Array:
    """The level of every cell of one map: 0 for the least active, up to ``threshold.splits``.

    `values` (h, w) are finite, `areas` (h, w) shares of the picture, `keys` (h, w) random numbers.
    """
    flat, shares = values.ravel().astype(np.float64), areas.ravel().astype(np.float64)
    order = np.lexsort((keys.ravel(), -_neighbourhood(values).ravel(), -flat))
    order = order[shares[order] > 0]
    found = np.zeros(flat.size, int)
    if not len(order):
        return found.reshape(values.shape)
    ends = np.cumsum(shares[order])
    wanted = threshold.shares(flat[shares > 0], shares[shares > 0])
    low, high = threshold.limits
    counts: list[int] = []
    for split in range(threshold.splits)[::-1]:  # the most active region first
        top = split == threshold.splits - 1
        ceiling = high if threshold.splits == 1 else max(high, 1 - low) if not top else high
        fewest = counts[-1] + 1 if counts else 1
        counts.append(_count(ends, float(wanted[split]), low if top else 0.0, ceiling, fewest))
    for count in counts:
        found[order[:count]] += 1
    return found.reshape(values.shape)


def _count(ends: Array, wanted: float, low: float, high: float, fewest: int) -> int:
    """How many first cells come nearest to the share `wanted`, within bounds where cells are fine enough."""
    wanted = min(max(wanted, low), high)
    count = int(np.abs(ends - wanted).argmin()) + 1
    if ends[count - 1] > high + 1e-9 and count > 1:
        count -= 1
    if ends[count - 1] < low - 1e-9:
        count += 1
    return min(max(count, fewest), max(len(ends) - 1, 1))


def _neighbourhood(values: Array) -> Array:
    """Means over 3 x 3 cells, fewer at the border."""
    padded = np.pad(values.astype(np.float64), 1)
    counts = np.pad(np.ones(values.shape), 1)
    h, w = values.shape

    def total(a: Array) -> Array:
        windows = [a[y : y + h, x : x + w] for y in range(3) for x in range(3)]
        return np.asarray(np.sum(windows, axis=0))

    mean: Array = total(padded) / total(counts)
    return mean
