"""What is asked of every point: which rows, which labels, which metric, which folds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError
from spile.probing.folds import Index, assign_folds, group_codes, possible_folds
from spile.probing.labels import check_estimator, encode, kind_of, labelled_rows, values_of
from spile.probing.metrics import Kind, Metric, Scorer, scorer_for

Array = npt.NDArray[Any]
Estimator = Any
"""``"ridge"``, another name of `spile.probing.heads`, or a scikit-learn estimator."""

STREAM_ROWS = 10_000
"""Up to this many rows are held in memory, alpha chosen by leave-one-out; beyond, by K-fold from moments."""
NESTED_ROWS = 500
"""Up to this many rows the nested estimate is made; it costs up to three times the search itself."""


class Column(Protocol):
    """The activations of one point, rows in sample order."""

    def batches(self, rows: int = ...) -> Iterable[Array]:
        """Yield the rows as arrays (m, *shape)."""
        ...


class Point(Protocol):
    """What is known of a column without reading it."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of one row."""
        ...

    @property
    def info(self) -> Mapping[str, Any]:
        """Where it comes from and what it costs: address, pool, macs, params, order, baseline."""
        ...


class FeatureStore(Protocol):
    """What probing needs of a store."""

    @property
    def points(self) -> Mapping[str, Point]:
        """The columns by name."""
        ...

    @property
    def ids(self) -> Sequence[str] | Array:
        """(n,) unique sample ids, in row order; likewise `labels`, `splits` and `groups`."""
        ...

    @property
    def labels(self) -> Sequence[Any] | Array | None:
        """``None`` where unlabelled."""
        ...

    @property
    def splits(self) -> Sequence[str | None] | Array | None:
        """Names such as ``"train"`` and ``"test"``."""
        ...

    @property
    def groups(self) -> Sequence[str | None] | Array | None:
        """Rows of one group are never on both sides of a split."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, point: str, /) -> Column: ...


@dataclass(frozen=True, eq=False)
class Task:
    """What is predicted from which rows, how it is scored, and the folds that all points share."""

    rows: Index
    """(n,) positions in the store, ascending."""
    y: Array
    """(n,) class numbers, (n, c) 0 and 1 where a row has several labels, or (n,) numbers to regress on."""
    classes: Array | None
    """(c,) the labels behind the class numbers; ``None`` for regression."""
    kind: Kind
    estimator: Estimator
    scorer: Scorer
    folds: Index
    """(repeats, n) the fold in which each row is held out."""
    inner: tuple[Index, ...] = ()
    """For each fold of the first repeat, the (repeats, m) folds of its training rows; or empty."""
    unit_rows: bool = False
    """Rows of single points are divided by their length too, see `spile.probing.features`."""

    def inside(self, fold: int) -> Task:
        """The same asked of the training rows of one fold of the first repeat, with folds of their own."""
        train = np.flatnonzero(self.folds[0] != fold)
        return replace(self, rows=self.rows[train], y=self.y[train], folds=self.inner[fold], inner=())

    def thinned(self, rows: int) -> Task:
        """The same on evenly spaced rows, about `rows` of them, with the folds of the first repeat."""
        step = -(-len(self.rows) // rows)
        return replace(self, rows=self.rows[::step], y=self.y[::step], folds=self.folds[:1, ::step], inner=())

    @property
    def n_folds(self) -> int:
        """Folds a repeat."""
        return int(self.folds[0].max()) + 1

    @property
    def codes(self) -> Array | None:
        """The class numbers, (c,)."""
        return None if self.classes is None else np.arange(len(self.classes))

    def score(self, at: Index, answers: Array) -> float:
        """The score of answers for the rows at the positions `at`; class numbers become labels for a user's
        own metric."""
        y = self.y[at]
        if self.scorer.function is not None and self.kind == "classes" and self.classes is not None:
            y, answers = self.classes[y], self.classes[answers]
        return self.scorer.score(y, answers, self.codes)

    @property
    def targets(self) -> Array:
        """What a model is fitted on so that it predicts labels: (n,) labels or numbers, or `y` itself."""
        named = self.kind == "classes" and self.classes is not None
        return self.classes[self.y] if named and self.classes is not None else self.y

    @property
    def streams(self) -> bool:
        """Too many rows to hold a point in memory."""
        return self.estimator == "ridge" and len(self.rows) > STREAM_ROWS


def make_task(
    store: FeatureStore,
    *,
    rows: Sequence[int] | Array | None,
    estimator: Estimator,
    metric: Metric,
    cv: int,
    repeats: int | Literal["auto"],
    seed: int,
    labels: Sequence[Any] | Array | None = None,
    groups: Sequence[Any] | Array | None = None,
    nested: bool | Literal["auto"] = "auto",
    unit_rows: bool = False,
) -> Task:
    """Settle rows, labels, metric and folds; `groups` take the place of the store's.

    Warns when the rows allow fewer than `cv` folds.
    """
    positions, given = labelled_rows(store, rows, labels)
    kind = kind_of(given, metric)
    scorer = scorer_for(metric, kind)
    check_estimator(estimator, kind)
    y, classes = encode(given, kind)
    named = values_of(store.groups if groups is None else groups, len(store))
    if len(named) != len(store):
        raise ProbeError(
            f"groups has {len(named)} entries, but the store has {len(store)} rows: one a row, or None"
        )
    codes = group_codes([named[i] for i in positions])
    stratify = kind == "classes"
    k = possible_folds(y, cv=cv, groups=codes, stratify=stratify)
    if k < 2:
        raise ProbeError(
            "the rows are of too few groups to hold some out: two are needed, for a regression four. "
            "Add rows of other groups"
        )
    if k < cv:
        warnings.warn(
            f"cv={cv} is more than the rows of a class, or the groups, allow: using {k}", stacklevel=3
        )
    times = max(1, min(10, 1000 // len(y))) if repeats == "auto" else repeats
    folds = assign_folds(y, folds=k, repeats=times, seed=seed, groups=codes, stratify=stratify)
    inner: tuple[Index, ...] = ()
    if nested is True or (nested == "auto" and len(y) <= NESTED_ROWS):
        inner = _inner_folds(y, folds, cv=cv, seed=seed, groups=codes, stratify=stratify)
    task = Task(positions, y, classes, kind, estimator, scorer, folds, inner, unit_rows)
    if task.streams and task.n_folds < 3:
        raise ProbeError(
            f"more than {STREAM_ROWS:,} rows need three folds or more, not {task.n_folds}. Type: cv=5"
        )
    return task


def _inner_folds(
    y: Array, folds: Index, *, cv: int, seed: int, groups: Array | None, stratify: bool
) -> tuple[Index, ...]:
    """The `Task.inner` of a task: none where the rows are too few to be split again."""
    parts = []
    for fold in range(int(folds[0].max()) + 1):
        train = folds[0] != fold
        mine = None if groups is None else groups[train]
        k = possible_folds(y[train], cv=cv, groups=mine, stratify=stratify)
        if k < 2:
            return ()
        repeats = max(1, len(folds) // 5)
        parts.append(
            assign_folds(y[train], folds=k, repeats=repeats, seed=seed, groups=mine, stratify=stratify)
        )
    return tuple(parts)
