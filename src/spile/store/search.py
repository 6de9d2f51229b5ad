"""Nearest samples at a point: exact in one pass over the column, or from a Lance index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from spile.errors import StoreError
from spile.store.arrays import Values
from spile.store.lance_io import one_line_errors

if TYPE_CHECKING:
    from spile.store.reading import Column

Metric = Literal["cosine", "l2"]

_SCAN_BYTES = 32 << 20
_CANDIDATES = 4
"""An index is asked for this many times `k`; the exact distance of each then decides."""


@dataclass(frozen=True)
class Neighbors:
    """For each of q queries its k nearest samples, nearest first."""

    ids: Values
    """(q, k) strings."""
    rows: Values
    """(q, k) integers: rows of the store."""
    distances: Values
    """(q, k) float64."""


def find_neighbors(
    column: Column, query: Any, k: int, metric: Metric, positions: Values
) -> tuple[Values, Values]:
    """Rows and distances, both (q, k), nearest first."""
    queries = _queries(column, query)
    _require_metric(metric)
    if k < 1:
        raise StoreError(f"k is {k}. Allowed: 1 or more")
    k = min(k, len(column))
    if k and _has_index(column, metric):
        candidates = [_from_index(column, q, k, metric, positions) for q in queries]
    else:
        candidates = list(_scan(column, queries, k, metric))
    ranked = [_rank(column, q, rows, k, metric) for q, rows in zip(queries, candidates, strict=True)]
    return np.stack([rows for rows, _ in ranked]), np.stack([distances for _, distances in ranked])


def build_index(column: Column, metric: Metric, kind: str, options: Mapping[str, Any]) -> None:
    """Build a Lance index whose name tells its metric, so that `find_neighbors` never uses one of another."""
    _require_metric(metric)
    require_vectors(column)
    with one_line_errors("index", column.dataset.uri):
        column.dataset.create_index(
            column.arrow_name, kind, name=_index_name(column, metric), metric=metric, replace=True, **options
        )


def _queries(column: Column, query: Any) -> Values:
    require_vectors(column)
    values = np.asarray(query, dtype=np.float64)
    shape, width = column.spec.shape, column.spec.width
    allowed = (shape, (width,))
    if not (values.shape in allowed or values.shape[1:] in allowed):
        raise StoreError(
            f"A query for the point {column.spec.name!r} has shape {values.shape}. "
            f"Allowed: {shape}, or (queries, {width})"
        )
    if not np.isfinite(values).all():
        raise StoreError("A query holds values that are not finite")
    return values.reshape(-1, width)


def _require_metric(metric: str) -> None:
    if metric not in get_args(Metric):
        raise StoreError(f"The metric is {metric!r}. Allowed: {', '.join(map(repr, get_args(Metric)))}")


def require_vectors(column: Column) -> None:
    """Raise `StoreError` for a point whose samples have no distance."""
    if column.spec.variable:
        raise StoreError(
            f"The point {column.spec.name!r} holds sequences of varying length, which have no distance. "
            f"Pool it, e.g. pool='mean'"
        )


def _scan(column: Column, queries: Values, k: int, metric: Metric) -> Values:
    """(q, candidates) rows, each query's true neighbors among them: one pass, a few blocks in memory."""
    wanted = _CANDIDATES * k
    distances: Values = np.empty((len(queries), 0))
    rows: Values = np.empty((len(queries), 0), np.int64)
    start = 0
    for block in column.batches(max(1, _SCAN_BYTES // (8 * column.spec.width))):
        vectors = block.reshape(len(block), -1).astype(np.float64)
        here = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        distances = np.concatenate([distances, _pairwise(queries, vectors, metric)], axis=1)
        rows = np.concatenate([rows, here], axis=1)
        if distances.shape[1] > wanted:
            nearest = np.argpartition(distances, wanted - 1, axis=1)[:, :wanted]
            distances, rows = (np.take_along_axis(a, nearest, axis=1) for a in (distances, rows))
        start += len(block)
    return rows


def _pairwise(queries: Values, vectors: Values, metric: Metric) -> Values:
    """(q, m) values that order as the distances do, by one matrix product."""
    if metric == "cosine":
        return -unit_rows(queries) @ unit_rows(vectors).T
    squares: Values = (vectors**2).sum(axis=1) - 2 * queries @ vectors.T
    return squares


def _rank(column: Column, query: Values, rows: Values, k: int, metric: Metric) -> tuple[Values, Values]:
    """The `k` nearest of the candidates `rows`, by distances computed without cancellation."""
    vectors = column.take(rows).reshape(len(rows), column.spec.width).astype(np.float64)
    if metric == "cosine":
        distances = np.clip(1 - unit_rows(vectors) @ unit_rows(query[None])[0], 0, 2)
    else:
        distances = np.linalg.norm(vectors - query, axis=1)
    order = np.lexsort((rows, distances))[:k]
    return rows[order], distances[order]


def unit_rows(vectors: Values) -> Values:
    """Rows (n, d) divided by their Euclidean length; a row of zeros stays one."""
    norms: Values = np.linalg.norm(vectors, axis=1, keepdims=True)
    norms[norms == 0] = 1
    unit: Values = vectors / norms
    return unit


def _index_name(column: Column, metric: Metric) -> str:
    return f"{column.arrow_name}:{metric}"


def _has_index(column: Column, metric: Metric) -> bool:
    describe = getattr(column.dataset, "describe_indices", None)
    return describe is not None and any(index.name == _index_name(column, metric) for index in describe())


def _from_index(column: Column, query: Values, k: int, metric: Metric, positions: Values) -> Values:
    found = column.dataset.to_table(
        columns=["position", "_distance"],
        nearest={
            "column": column.arrow_name,
            "q": query.astype(np.float32),
            "k": min(_CANDIDATES * k, len(column)),
            "metric": metric,
        },
    )["position"].to_numpy()
    if len(found) < k:  # a graph index may not reach every sample
        rows: Values = _scan(column, query[None], k, metric)[0]
        return rows
    by_position: Values = np.searchsorted(positions, found)
    return by_position
