"""Which points of a store are looked at, and a bounded number of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import StoreError, nearest
from spile.store import Column, Store

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.intp]

MOST_ROWS = 4096
"""Rows that are held in memory at a time, for what does not stream."""


def chosen_points(store: Store, points: Sequence[str] | None) -> list[str]:
    """The named points, or all that hold as many numbers for every sample, in the order of the forward pass.

    Raises `StoreError` for a name that the store lacks, a point of varying length, or where nothing is left.
    """
    if points is None:
        fixed = [name for name, spec in store.points.items() if not spec.variable]
        names = sorted(fixed, key=lambda name: depth(store, name))
    else:
        names = [points] if isinstance(points, str) else list(points)
        for name in names:
            if name not in store:
                raise StoreError(
                    f"The store has no point {name!r}. Nearest: {', '.join(nearest(str(name), store.points))}"
                )
    ragged = [name for name in names if store.points[name].variable]
    if ragged or not names:
        raise StoreError(
            f"{ragged[0]!r} holds samples of varying length. Extract it with a pool: pool='mean'"
            if ragged
            else "The store has no point with as many numbers for every sample. Extract it with a pool: "
            "pool='mean'"
        )
    return names


def depth(store: Store, point: str) -> tuple[bool, float]:
    """What sorts points by depth: the raw input first, then the order of the forward pass."""
    info = store.points[point].info
    return info.get("baseline") != "raw", info.get("order") or 0


def drawn(n: int, most: int, seed: int) -> Rows:
    """`most` of n rows at random without replacement, ascending; all where there are no more."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def flat(column: Column, rows: Rows) -> Array:
    """(m, d) float64: these rows, flattened."""
    return np.asarray(column.take(rows), np.float64).reshape(len(rows), -1)
