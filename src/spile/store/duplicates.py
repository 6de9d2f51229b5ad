"""Near-duplicates at a point: every pair of samples nearer than a radius, in bounded memory.

The distance is the cosine one between rows from which the mean row was taken away, since activations share
a large common part that makes all of them look alike. The radius is relative to how near samples usually
are, so that one rule serves every layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from spile.errors import StoreError
from spile.store.arrays import Values
from spile.store.search import unit_rows

RATIO = 0.13
"""A pair is a near-duplicate when it is nearer than this share of the median distance to a nearest sample.

The rule and the number are those of cleanlab's ``Datalab``. Where samples fill m dimensions, a share of about
``0.7 * 0.13 ** (m / 2)`` of them is as near by chance.
"""
LEAST_WIDTH = 16
"""With fewer numbers a sample, different samples are as near as near-duplicates are."""

_FLOOR = 1e-6
"""Of the radius: two passes over one sample differ by rounding."""
_AXES = 64
_ROUNDING = 1e-5
"""More than a float32 product of `_AXES` terms can be off."""
_QUERIES = 256
_BLOCK_ROWS = 1024
_CHECKED_BYTES = 32 << 20
_MOST_PAIRS = 1_000_000


class Rows(Protocol):
    """A column of a store, or what reads like one."""

    def __len__(self) -> int: ...

    def batches(self) -> Iterable[Values]:
        """Yield (m, *shape) after (m, *shape), in order."""
        ...

    def take(self, rows: Values) -> Values:
        """(m, *shape): these rows, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """Rows (n, d) in memory."""

    values: Values

    def __len__(self) -> int:
        return len(self.values)

    def batches(self) -> Iterator[Values]:
        """Blocks of the rows."""
        for start in range(0, len(self.values), _BLOCK_ROWS):
            yield self.values[start : start + _BLOCK_ROWS]

    def take(self, rows: Values) -> Values:
        """These rows."""
        return self.values[rows]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of rows that are nearer than `radius`, the nearest first."""

    rows: Values
    """(m, 2) integers, the smaller first."""
    distances: Values
    """(m,) float64: ``1 - cos`` of the rows less their mean."""
    radius: float
    typical: float
    """The median distance of a row to its nearest other."""
    complete: bool
    """Whether these are all of them; the search ends at a million."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What of a store is there more than once, or nearly so."""

    point: str
    pairs: Pairs
    ids: Values
    """(m, 2) strings."""
    groups: Values
    """(n,) integers, one group for what is linked by near-duplicates or by the store's own groups.

    To be given to `spile.probe` as ``groups=``, which then holds them out together.
    """

    def __len__(self) -> int:
        return len(self.pairs.rows)

    def between(self, parts: Sequence[Any] | Values) -> dict[tuple[str, str], int]:
        """Pairs by the parts, such as ``store.splits``, that their samples are in; (a, b) with a before b."""
        names = ["no split" if part is None else str(part) for part in parts]
        found = Counter(tuple(sorted((names[a], names[b]))) for a, b in self.pairs.rows.tolist())
        return {(a, b): count for (a, b), count in sorted(found.items())}

    def leaked(self, parts: Sequence[Any] | Values) -> Values:
        """Rows, ascending, that have a near-duplicate in another part."""
        return crossing(self.pairs.rows, np.asarray([str(part) for part in parts]))


def near_pairs(rows: Rows, *, radius: float | None = None, seed: int = 0) -> Pairs:
    """Every pair of rows nearer than `radius`, by default `RATIO` of the median distance to a nearest row.

    By default their Euclidean distance must be as small too, by the same share of its own median. Where one
    direction takes most of the spread, as in untrained networks, rows far out in it have nearly one angle,
    and differ all the same.

    Unit rows are projected onto `_AXES` orthonormal axes, which makes no distance larger: near rows stay so.
    Those pairs are found by products of narrow float32 tiles, and each is then measured in full.
    Three passes over the rows; memory holds their projections and a few blocks, time goes with the square of
    the rows. `seed` draws the rows whose nearest tell the median.
    """
    n = len(rows)
    if n < 2:
        return Pairs(np.empty((0, 2), np.int64), np.empty(0), 0.0, 0.0, True)
    mean = sum(_flat(block).sum(axis=0) for block in _blocks(rows)) / n
    drawn = np.sort(np.random.default_rng(seed).choice(n, min(n, _QUERIES), replace=False))
    queries = _flat(rows.take(drawn)) - mean
    look = _look(rows, mean, drawn, queries, _axes(unit_rows(queries)))
    typical = float(np.median(look.nearest))
    wanted, gap = radius, np.inf
    if wanted is None:
        wanted = max(_FLOOR, RATIO * typical)
        gap = max(4 * _FLOOR * look.spread, RATIO * float(np.median(look.gaps)))
    found, distances, complete = _search(rows, mean, look.places, wanted, gap)
    order = np.lexsort((*found.T[::-1], distances))
    return Pairs(found[order], distances[order], wanted, typical, complete)


def crossing(pairs: Values, parts: Values) -> Values:
    """The rows, ascending, that are paired (m, 2) with a row of another of the parts (n,)."""
    apart = parts[pairs[:, 0]] != parts[pairs[:, 1]]
    rows: Values = np.unique(pairs[apart])
    return rows


def linked(n: int, pairs: Values, groups: Sequence[Any] | Values | None = None) -> Values:
    """(n,) group numbers: rows that pairs (m, 2) or common `groups` connect, also by others, share one.

    A row without a group (``None``) is connected by its pairs alone.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[Any, int] = {}
    of_groups = [
        (first.setdefault(group, row), row)
        for row, group in enumerate(groups if groups is not None else ())
        if group is not None
    ]
    edges = np.concatenate([pairs, np.asarray(of_groups, np.int64).reshape(-1, 2)])
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(n, n))
    labels: Values = connected_components(graph, directed=False)[1]
    return labels


def require_radius(radius: float | None) -> None:
    """Raise `StoreError` for a distance that no two different samples can have."""
    if radius is not None and not 0 < radius <= 2:
        raise StoreError(
            f"max_distance is {radius!r}. Allowed: above 0, up to 2 (1 - cosine); or None, relative to how "
            f"near samples usually are"
        )


def _flat(values: Values) -> Values:
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _axes(queries: Values) -> Values:
    """(d, k) orthonormal: the directions in which the queries (q, d) spread most."""
    _, strengths, directions = np.linalg.svd(queries, full_matrices=False)
    kept = min(_AXES, max(1, int((strengths > 1e-9 * max(strengths[0], 1e-300)).sum())))
    axes: Values = directions[:kept].T
    return axes


class _Look(NamedTuple):
    """What one pass over the rows tells."""

    places: Values
    """(n, k): the unit rows on the axes."""
    nearest: Values
    """(q,) the distance of each query to another row."""
    gaps: Values
    """(q,) half the squared Euclidean distance of each query to another row."""
    spread: float
    """Half the mean squared length of the rows."""


def _look(rows: Rows, mean: Values, drawn: Values, queries: Values, axes: Values) -> _Look:
    places, start, spread = [], 0, 0.0
    directions, lengths = unit_rows(queries), np.square(queries).sum(axis=1) / 2
    nearest, gaps = np.full(len(queries), np.inf), np.full(len(queries), np.inf)
    for batch in _blocks(rows):
        centred = _flat(batch) - mean
        unit, squares = unit_rows(centred), np.square(centred).sum(axis=1) / 2
        places.append(unit @ axes)
        distances = 1 - directions @ unit.T
        apart = lengths[:, None] + squares - queries @ centred.T
        own = np.flatnonzero((drawn >= start) & (drawn < start + len(unit)))
        distances[own, drawn[own] - start] = apart[own, drawn[own] - start] = np.inf
        nearest, gaps = np.minimum(nearest, distances.min(axis=1)), np.minimum(gaps, apart.min(axis=1))
        spread += float(squares.sum())
        start += len(unit)
    return _Look(np.concatenate(places), np.maximum(nearest, 0.0), np.maximum(gaps, 0.0), spread / start)


def _blocks(rows: Rows) -> Iterator[Values]:
    """The batches in blocks whose float64 copies stay small."""
    for batch in rows.batches():
        for start in range(0, len(batch), _BLOCK_ROWS):
            yield batch[start : start + _BLOCK_ROWS]


def _search(
    rows: Rows, mean: Values, places: Values, radius: float, gap: float
) -> tuple[Values, Values, bool]:
    """Pairs (m, 2), their distances (m,), and whether these are all."""
    kept: list[tuple[Values, Values]] = []
    total = 0
    for pairs in _chunks(_candidates(places, radius), size=max(1, _CHECKED_BYTES // (16 * len(mean)))):
        distances, gaps = _distances(rows, mean, pairs)
        close = (distances <= radius) & (gaps <= gap)
        kept.append((pairs[close], distances[close]))
        total += int(close.sum())
        if total >= _MOST_PAIRS:
            return *_joined(kept), False
    return *_joined(kept), True


def _candidates(places: Values, radius: float) -> Iterator[Values]:
    """Pairs (m, 2) whose places (n, k) are near, tile by tile of all pairs.

    In float32, by one matrix product a tile: ``p q - |p|²/2 - |q|²/2`` is ``-|p - q|²/2``, which is no less
    than minus the distance of the rows. What rounding could lose is let through.
    """
    ones, halves = np.ones((len(places), 1)), np.square(places).sum(axis=1, keepdims=True) / 2
    left = np.concatenate([places, -halves, ones], axis=1).astype(np.float32)
    right = np.concatenate([places, ones, -halves], axis=1).astype(np.float32)
    least = np.float32(-radius - _ROUNDING)
    for start in range(0, len(places), _BLOCK_ROWS):
        for other in range(start, len(places), 4 * _BLOCK_ROWS):
            near = left[start : start + _BLOCK_ROWS] @ right[other : other + 4 * _BLOCK_ROWS].T >= least
            pairs = np.argwhere(near) + np.array([start, other])
            yield pairs[pairs[:, 0] < pairs[:, 1]]


def _chunks(parts: Iterable[Values], *, size: int) -> Iterator[Values]:
    """The pairs of all parts, `size` at a time."""
    held = np.empty((0, 2), np.int64)
    for part in parts:
        held = np.concatenate([held, part])
        whole = len(held) // size * size
        for start in range(0, whole, size):
            yield held[start : start + size]
        held = held[whole:]
    if len(held):
        yield held


def _distances(rows: Rows, mean: Values, pairs: Values) -> tuple[Values, Values]:
    """(m,) ``1 - cos``, and half the squared distance; by differences, which lose no digits of near rows."""
    used, at = np.unique(pairs, return_inverse=True)
    centred = _flat(rows.take(used)) - mean
    at = at.reshape(pairs.shape)
    found = (
        np.square(values[at[:, 0]] - values[at[:, 1]]).sum(axis=1) / 2
        for values in (unit_rows(centred), centred)
    )
    return next(found), next(found)


def _joined(kept: list[tuple[Values, Values]]) -> tuple[Values, Values]:
    pairs = [np.empty((0, 2), np.int64), *(pair for pair, _ in kept)]
    return np.concatenate(pairs), np.concatenate([np.empty(0), *(distance for _, distance in kept)])


def deepest(points: Mapping[str, Any]) -> str:
    """The last point of the forward pass whose samples can be compared; of the raw input only if alone.

    Raises `StoreError` where there is none.
    """
    fit = [name for name, spec in points.items() if all(spec.shape) and prod(spec.shape) >= LEAST_WIDTH]
    if not fit:
        raise StoreError(
            f"None of the points {', '.join(map(repr, points))} holds {LEAST_WIDTH} numbers or more for "
            "every sample, so near-duplicates cannot be told. Add a layer with a pool: store.add(tap, data)"
        )

    def depth(name: str) -> tuple[bool, float]:
        info = points[name].info
        return info.get("baseline") != "raw", info.get("order") or 0

    return max(fit, key=depth)
