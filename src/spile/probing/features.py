"""What a model is fitted on: the activations of one point, or of several side by side.

Of several, each row of each point is first divided by its length, so that no layer counts for more because
its activations are larger; of a single point where that is asked for. Standardisation is part of the model
that is fitted, since it looks at more than one row; this does not, so a row alone gives the same features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError
from spile.probing.folds import Index
from spile.probing.task import Column, FeatureStore, Point, Task

Array = npt.NDArray[Any]

_HELD_BYTES = 1 << 30
"""Columns are kept in memory up to this size together; further ones are read again each time."""


@dataclass(frozen=True)
class Candidate:
    """Points to fit one model on."""

    points: tuple[str, ...]
    banded: bool = False
    """Each point has its own penalty, chosen on the training rows of each fit."""


class Features:
    """Reads the features of candidates for the rows of a task, each column once if memory allows."""

    def __init__(self, store: FeatureStore, task: Task) -> None:
        self._store, self._rows, self._unit_rows = store, task.rows, task.unit_rows
        self._held: dict[str, Array] = {}

    def of(self, task: Task) -> Features:
        """The same for the rows of another task."""
        return Features(self._store, task)

    def parts(self, candidate: Candidate, rows: Index) -> list[Array]:
        """For each point (m, d) features of ascending store `rows`, which are among those of the task."""
        at = np.searchsorted(self._rows, rows)
        return prepared([self.column(point)[at] for point in candidate.points], unit_rows=self._unit_rows)

    def stream(
        self, candidate: Candidate, rows: Index, points: Sequence[str] | None = None
    ) -> Iterator[tuple[slice, Array]]:
        """Yield, batch by batch, the slice of `rows` that it holds and their features (m, d).

        Of `points` alone, if given: some of the candidate's, prepared as they are in it.
        """
        readers = [stream_rows(self._store[point], rows, point=point) for point in points or candidate.points]
        for pieces in zip(*readers, strict=True):
            parts = [X for _, X in pieces]
            if self._unit_rows or len(candidate.points) > 1:
                parts = [unit_length(part) for part in parts]
            yield pieces[0][0], parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def widths(self, candidate: Candidate) -> list[int]:
        """The numbers of features of its points."""
        return [width(self._store.points[point]) for point in candidate.points]

    def column(self, point: str) -> Array:
        """The activations (n, d) of a point for the rows of the task, as they are."""
        if point in self._held:
            return self._held[point]
        X = np.concatenate([X for _, X in stream_rows(self._store[point], self._rows, point=point)])
        if X.nbytes + sum(held.nbytes for held in self._held.values()) <= _HELD_BYTES:
            self._held[point] = X
        return X


def prepared(parts: Sequence[Array], *, unit_rows: bool = False) -> list[Array]:
    """The parts (n, d) as they are fitted on: with rows of length 1 if several, or with `unit_rows`."""
    if len(parts) == 1 and not unit_rows:
        return list(parts)
    return [unit_length(part) for part in parts]


def joined(parts: Sequence[Array], *, unit_rows: bool = False) -> Array:
    """The parts prepared and side by side, (n, sum of d)."""
    ready = prepared(parts, unit_rows=unit_rows)
    return ready[0] if len(ready) == 1 else np.concatenate(ready, axis=1)


def unit_length(X: Array) -> Array:
    """Rows (n, d) divided by their Euclidean length, float64; a row of zeros stays one."""
    X = np.asarray(X, dtype=np.float64)  # the squares of float16 activations overflow from 256 on
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(length > 0, length, 1.0))


def stream_rows(column: Column, rows: Index, *, point: str) -> Iterator[tuple[slice, Array]]:
    """Yield, batch by batch, the slice of ascending `rows` that it holds and these rows, flattened (m, d)."""
    start = 0
    for batch in column.batches():
        low, high = np.searchsorted(rows, [start, start + len(batch)])
        if low < high:
            X = batch[rows[low:high] - start].reshape(high - low, -1)
            if not np.isfinite(X).all():
                raise ProbeError(
                    f"{point!r} holds NaN or infinite activations: extract it again with dtype='float32'"
                )
            yield slice(int(low), int(high)), X
        start += len(batch)
        if high == len(rows):
            return


def is_ragged(point: Point) -> bool:
    """Rows differ in length (tokens that were not pooled)."""
    return any(not size or size < 0 for size in point.shape)


def width(point: Point) -> int:
    """The number of features of a row, flattened."""
    return prod(size or 0 for size in point.shape)
