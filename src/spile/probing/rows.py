"""Which rows of a store choose and fit, and which only measure."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError
from spile.probing.folds import assign_folds, group_codes, possible_folds, selection_rows, split_names
from spile.probing.labels import check_finite

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.intp]

_TEST_SPLITS = ("test", "val")
_PARTS = 5
"""One part in so many is set aside where the data has no test split."""


class Labelled(Protocol):
    """What a store, or data that is not extracted, says of its rows."""

    @property
    def labels(self) -> Any:
        """One a row, or ``None``."""
        ...

    @property
    def splits(self) -> Any:
        """One a row, or ``None``."""
        ...

    @property
    def groups(self) -> Any:
        """One a row, or ``None``."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of rows, disjoint."""

    train: Rows
    test: Rows


def split_rows(store: Labelled, *, shots: int | None, seed: int, groups: Any = None) -> Split:
    """Training and test rows: as the data's own splits say, else a fifth set aside, stratified, whole groups.

    With `shots`, that many rows of every class are drawn for training; where the data has no test split, the
    others test, less those of a drawn row's group. `groups`, one a row, take the place of the
    store's. Training rows of a group that has test rows are left out; a warning says so where both are as the
    data has them. Where a row has several labels nothing is stratified. Raises `ProbeError` where there are
    no labels or a class has too few rows.
    """
    labelled = _labelled(store)
    named = store.groups if groups is None else groups
    codes = None if named is None else group_codes(list(named))
    splits = [None] * len(store) if store.splits is None else list(store.splits)
    train = np.intersect1d(labelled, selection_rows(splits))
    if not len(train):
        names = ", ".join(sorted({repr(name) for name in splits if name is not None}))
        raise ProbeError(
            f"no labelled row to fit on: the splits are {names}, but rows of 'train' or without a split are "
            "needed"
        )
    test = _first_test_split(labelled, splits)
    if codes is not None:
        train = _apart(train, test, codes, named, warn=groups is None)
    if shots is not None:
        if _several(np.asarray(store.labels)[train]):
            raise ProbeError(
                f"shots={shots} counts the rows of a class, and these rows have several labels each. Leave "
                "shots= out, and mark the rows to learn from in a split column"
            )
        drawn = draw(labels_of(store, train), train, shots, seed)
        return Split(drawn, test if len(test) else _others(train, drawn, codes))
    if len(test):
        return Split(train, test)
    return _set_aside(store, train, seed, codes)


def labels_of(store: Labelled, rows: Rows) -> Array:
    """The labels of `rows`, all of which have one: (n,) strings, integers, floats, or sets as objects."""
    found = np.asarray(store.labels)[rows]
    return found if _several(found) else np.asarray(found.tolist())


def check_labels(labels: Iterable[Any]) -> None:
    """Raise `ProbeError` where all samples have the same label, before any work is done."""
    known: set[Any] = set()
    for label in labels:
        if label is None or label != label or isinstance(label, float):
            return
        known.add(label)
        if len(known) > 1:
            return
    if known:
        raise ProbeError(
            f"all samples have the label {known.pop()!r}: a classifier needs two classes. Add samples of "
            "another class"
        )


def _labelled(store: Labelled) -> Rows:
    values: list[Any] = [] if store.labels is None else list(store.labels)
    known = [i for i, label in enumerate(values) if label is not None and label == label]
    if not known:
        raise ProbeError(
            "the data has no labels: put images into one folder a class, or give a manifest with a label "
            "column"
        )
    check_finite(values)
    return np.asarray(known, dtype=np.intp)


def _first_test_split(labelled: Rows, splits: list[Any]) -> Rows:
    own = np.asarray(split_names(splits), dtype=object)[labelled]
    found = (labelled[own == name] for name in _TEST_SPLITS)
    return next((rows for rows in found if len(rows)), np.empty(0, np.intp))


def _apart(train: Rows, test: Rows, codes: Rows, groups: Any, *, warn: bool) -> Rows:
    """The training rows whose group has no test row."""
    torn = np.isin(codes[train], codes[test])
    if not torn.any():
        return train
    example = str(groups[train[torn][0]])
    if torn.all():
        raise ProbeError(
            f"every training row is of a group that has test rows too, such as {example!r}: no row is left "
            "to fit on. Give all rows of a group the same split"
        )
    if warn:
        warnings.warn(
            f"{torn.sum():,} of {len(train):,} training rows are left out, for their groups have test rows "
            f"too, such as {example!r}: a group is not parted between training and testing. Give all rows of "
            "a group the same split",
            stacklevel=4,
        )
    return train[~torn]


def draw(labels: Array, rows: Rows, shots: int, seed: int) -> Rows:
    """So many of `rows` of every class, at random; `labels` are theirs."""
    if shots < 2:
        raise ProbeError(f"shots={shots} is too few to cross-validate: write shots=2 or more")
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = rng.permutation(rows[labels == label])
        if len(members) < shots:
            raise ProbeError(
                f"class {label.item()!r} has {len(members)} training rows, fewer than shots={shots}: write "
                f"shots={max(2, len(members))}, or add rows"
            )
        drawn.append(members[:shots])
    return np.sort(np.concatenate(drawn))


def _others(rows: Rows, drawn: Rows, groups: Rows | None) -> Rows:
    others = np.setdiff1d(rows, drawn)
    return others if groups is None else others[~np.isin(groups[others], groups[drawn])]


def _set_aside(store: Labelled, rows: Rows, seed: int, groups: Rows | None) -> Split:
    """The first fifth that leaves two rows of every class to fit on."""
    labels = labels_of(store, rows)
    mine = None if groups is None else groups[rows]
    if _several(labels):
        return _set_aside_several(labels, rows, mine, seed)
    regression = labels.dtype.kind == "f"
    classes, y, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not regression and counts.min() < 2:
        raise ProbeError(
            f"class {classes[counts.argmin()].item()!r} has one row only: add rows of it, or leave it out"
        )
    parts = possible_folds(y, cv=_PARTS, groups=mine, stratify=not regression)
    if len(rows) < _PARTS or parts < 2:
        units = "labelled rows" if mine is None else "groups of labelled rows"
        raise ProbeError(f"too few {units} to fit and to measure: add rows, or give a split column")
    (folds,) = assign_folds(y, folds=parts, seed=seed, groups=mine, stratify=not regression)
    for part in range(int(folds.max()) + 1):
        kept = folds != part
        if regression or np.bincount(y[kept], minlength=len(classes)).min() >= 2:
            return Split(rows[kept], rows[~kept])
    raise ProbeError(
        "every fifth that could be set aside to measure leaves a class with less than two rows to fit on: "
        "add rows of the rare classes, in other groups, or give a split column"
    )


def _set_aside_several(labels: Array, rows: Rows, groups: Rows | None, seed: int) -> Split:
    """The first fifth that leaves two rows with and two without every label to fit on."""
    names = sorted(frozenset().union(*labels))
    holds = np.array([[name in row for name in names] for row in labels])
    parts = possible_folds(holds, cv=_PARTS, groups=groups, stratify=False)
    if len(rows) < _PARTS or parts < 2:
        raise ProbeError("too few labelled rows to fit and to measure: add rows, or give a split column")
    (folds,) = assign_folds(holds, folds=parts, seed=seed, groups=groups, stratify=False)
    for part in range(int(folds.max()) + 1):
        kept = holds[folds != part]
        if min(kept.sum(axis=0).min(), (~kept).sum(axis=0).min()) >= 2:
            return Split(rows[folds != part], rows[folds == part])
    rare = names[int(np.minimum(holds.sum(axis=0), (~holds).sum(axis=0)).argmin())]
    raise ProbeError(
        "every fifth that could be set aside to measure leaves less than two rows with, or without, "
        f"{rare!r}: add rows, leave the label out, or give a split column"
    )


def _several(labels: Array) -> bool:
    """Whether rows have any number of labels each."""
    return len(labels) > 0 and isinstance(labels[0], frozenset)
