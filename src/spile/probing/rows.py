"""Which rows of a store choose and fit, and which only measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError
from spile.store import Store

Rows = npt.NDArray[np.intp]

_TEST_SPLITS = ("test", "val", "valid", "validation")
_PARTS = 5
"""One part in so many is set aside where the data has no test split."""


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of rows in the store, disjoint."""

    train: Rows
    test: Rows


def split_rows(store: Store, *, shots: int | None, seed: int) -> Split:
    """Training and test rows: as the data's own splits say, else a fifth set aside, stratified and by whole groups.

    With `shots`, that many rows of every class are drawn for training; where the data has no test split, all others test.
    Raises `ProbeError` where there are no labels or a class has too few rows.
    """
    labelled = _labelled(store)
    own = np.asarray(store.splits if store.splits is not None else [None] * len(store), dtype=object)
    train = labelled[own[labelled] == "train"]
    test = next(
        (rows for name in _TEST_SPLITS if len(rows := labelled[own[labelled] == name])), np.empty(0, np.intp)
    )
    if not len(train):
        train = np.setdiff1d(labelled, test)
    if shots is not None:
        drawn = _draw(store, train, shots, seed)
        return Split(drawn, test if len(test) else np.setdiff1d(train, drawn))
    if len(test):
        return Split(train, test)
    return _set_aside(store, train, seed)


def _labelled(store: Store) -> Rows:
    labels = store.labels
    known = (
        []
        if labels is None
        else [i for i, label in enumerate(labels) if label is not None and label == label]
    )
    if not known:
        raise ProbeError(
            "the data has no labels: put images into one folder a class, or give a manifest with a label column"
        )
    return np.asarray(known, dtype=np.intp)


def _draw(store: Store, rows: Rows, shots: int, seed: int) -> Rows:
    if shots < 2:
        raise ProbeError(f"shots={shots} is too few to cross-validate: write shots=2 or more")
    labels = np.asarray(store.labels)[rows]
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = rng.permutation(rows[labels == label])
        if len(members) < shots:
            raise ProbeError(
                f"class {label!r} has {len(members)} training rows, fewer than shots={shots}: write shots={len(members)}"
            )
        drawn.append(members[:shots])
    return np.sort(np.concatenate(drawn))


def _set_aside(store: Store, rows: Rows, seed: int) -> Split:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    labels = np.asarray(store.labels)[rows]
    groups = (
        None
        if store.groups is None
        else np.asarray([g if g is not None else f"\0{i}" for i, g in enumerate(store.groups)])[rows]
    )
    classes, counts = np.unique(labels, return_counts=True)
    regression = labels.dtype.kind == "f"
    if not regression and counts.min() < 2:
        raise ProbeError(
            f"class {classes[counts.argmin()]!r} has one row only: at least 2 are needed to fit and to measure"
        )
    if len(rows) < _PARTS:
        raise ProbeError(
            f"{len(rows)} labelled rows are too few to fit and to measure: at least {_PARTS} are needed"
        )
    folder: Any
    if groups is not None:
        folder = (
            GroupKFold(_PARTS)
            if regression
            else StratifiedGroupKFold(_PARTS, shuffle=True, random_state=seed)
        )
    elif regression:
        folder = KFold(_PARTS, shuffle=True, random_state=seed)
    else:
        folder = StratifiedKFold(min(_PARTS, int(counts.min())), shuffle=True, random_state=seed)
    train, test = next(iter(folder.split(rows, labels, groups)))
    return Split(rows[train], rows[test])
