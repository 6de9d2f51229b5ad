"""Effective rank: in how many directions the activations of a point spread.

Roy and Vetterli 2007, "The effective rank", definition 1: the exponential of the entropy of the singular
values, made to sum to 1. The matrix is that of the centred activations, so that a common offset is no
direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import StoreError
from spile.inspection.reading import MOST_ROWS, chosen_points, drawn, flat
from spile.probing.ridge import Moments
from spile.store import Column, Store

Array = npt.NDArray[Any]

STREAM_WIDTH = 4096
"""Up to this width every row counts, by a (d, d) matrix (128 MiB); beyond, `MOST_ROWS` drawn ones."""

_BLOCK_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The effective rank of one point, between 1 and the smaller of `dims` and ``rows - 1``."""

    point: str
    rank: float
    """0 where nothing varies."""
    dims: int
    rows: int
    """How many rows were looked at."""


def effective_rank(store: Store, *, points: Sequence[str] | None = None, seed: int = 0) -> tuple[Rank, ...]:
    """The effective rank of each point, by default of all with as many numbers for every sample.

    Streams all rows of points of up to `STREAM_WIDTH` numbers; of wider ones `seed` draws `MOST_ROWS` rows.
    Raises `StoreError` for a store of less than two rows.
    """
    if len(store) < 2:
        raise StoreError(f"an effective rank needs two samples or more, not {len(store)}")
    ranks = []
    for name in chosen_points(store, points):
        column = store[name]
        if column.spec.width <= min(STREAM_WIDTH, len(store)):
            rows, variances = len(store), _streamed(column)
        else:
            chosen = drawn(len(store), MOST_ROWS, seed)
            x = flat(column, chosen)
            x -= x.mean(axis=0)
            rows, variances = len(chosen), np.linalg.eigvalsh(x @ x.T)
        found = rank_of(np.sqrt(np.maximum(variances, 0.0)))
        ranks.append(Rank(point=name, rank=found, dims=column.spec.width, rows=rows))
    return tuple(ranks)


def rank_of(singular_values: Array) -> float:
    """The effective rank of a matrix with these singular values; 0 where all are 0.

    What is below rounding, relative to the largest, counts as 0.
    """
    s = np.asarray(singular_values, np.float64)
    s = s[s > np.sqrt(len(s) * np.finfo(np.float64).eps) * s.max(initial=0.0)]
    if not len(s):
        return 0.0
    p = s / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def _streamed(column: Column) -> Array:
    """The eigenvalues of the scatter matrix."""
    total = Moments.zeros(column.spec.width, 0)
    for batch in column.batches(_BLOCK_ROWS):
        total = total.update(batch.reshape(len(batch), -1), np.empty((len(batch), 0)))
    return np.asarray(np.linalg.eigvalsh(total.xx))
