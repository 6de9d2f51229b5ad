"""Near-duplicates on both sides of a split make a score optimistic: they are looked for, and warned of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import StoreError
from spile.probing.features import Features
from spile.probing.rows import Split
from spile.probing.task import STREAM_ROWS, FeatureStore, Task
from spile.store import Store
from spile.store.duplicates import Held, crossing, deepest, near_pairs

Array = npt.NDArray[Any]

_SHARE = 0.01
"""Of the rows: fewer leaked ones move a score by less than its error, and a few may be alike by chance."""


def warn_of_folds(store: FeatureStore, features: Features, task: Task) -> None:
    """Warn of rows with a near-duplicate in another fold.

    Looked for at the deepest point, up to 10,000 rows; beyond, `Store.near_duplicates` tells.
    """
    point = _point(store)
    if point is None or task.streams:
        return
    _warn(store, point, features.column(point), task.rows, task.folds[0], "another fold")


def warn_of_split(store: Store, split: Split) -> None:
    """Warn of test rows with a near-duplicate among the training rows, as `warn_of_folds`."""
    point, n = _point(store), len(split.train) + len(split.test)
    if point is None or not len(split.test) or n > STREAM_ROWS:
        return
    rows = np.concatenate([split.train, split.test])
    order = np.argsort(rows)
    parts = np.repeat([0, 1], [len(split.train), len(split.test)])[order]
    X = store[point].take(rows[order])
    _warn(store, point, X.reshape(n, -1), rows[order], parts, "the other split")


def _point(store: FeatureStore) -> str | None:
    """Where to look; ``None`` where no point is fit to tell."""
    try:
        return deepest(store.points)
    except StoreError:
        return None


def _warn(store: FeatureStore, point: str, X: Array, rows: Array, parts: Array, where: str) -> None:
    pairs = near_pairs(Held(X)).rows
    leaked = crossing(pairs, parts)
    if len(leaked) <= _SHARE * len(rows):
        return
    a, b = next((a, b) for a, b in pairs if parts[a] != parts[b])
    warnings.warn(
        f"{len(leaked):,} of {len(rows):,} rows have a near-duplicate in {where}, by {point}, such as "
        f"{store.ids[rows[a]]!r} and {store.ids[rows[b]]!r}: the score is optimistic. Type: "
        "spile.probe(store, groups=store.near_duplicates().groups), spile.transfer(..., "
        "group_duplicates=True), or --group-duplicates",
        stacklevel=4,
    )
