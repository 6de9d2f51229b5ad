"""What is asked of every point: which rows, which labels, which metric, which folds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError
from spile.probing.folds import Index, assign_folds, group_codes, possible_folds, selection_rows

Array = npt.NDArray[Any]
Estimator = Any
"""``"ridge"`` or a scikit-learn estimator."""
Metric = Literal["accuracy", "balanced_accuracy", "r2"]

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
    """(n,) class numbers, or numbers to regress on."""
    classes: Array | None
    """(c,) the labels behind the class numbers; ``None`` for regression."""
    estimator: Estimator
    metric: Metric
    folds: Index
    """(repeats, n) the fold in which each row is held out."""
    inner: tuple[Index, ...] = ()
    """For each fold of the first repeat, the (repeats, m) folds of its training rows; or empty."""

    @property
    def n_folds(self) -> int:
        """Folds a repeat."""
        return int(self.folds[0].max()) + 1

    @property
    def codes(self) -> Array | None:
        """The class numbers, (c,)."""
        return None if self.classes is None else np.arange(len(self.classes))

    @property
    def streams(self) -> bool:
        """Too many rows to hold a point in memory."""
        return isinstance(self.estimator, str) and len(self.rows) > STREAM_ROWS


def make_task(
    store: FeatureStore,
    *,
    rows: Sequence[int] | Array | None,
    estimator: Estimator,
    metric: Metric | Literal["auto"],
    cv: int,
    repeats: int | Literal["auto"],
    seed: int,
) -> Task:
    """Settle rows, labels, metric and folds. Warns when the rows allow fewer than `cv` folds."""
    positions, labels = _labelled(store, rows)
    resolved = _metric(labels, metric, estimator)
    y, classes = _encode(labels, resolved)
    named = _values(store.groups, len(store))
    groups = group_codes([named[i] for i in positions])
    stratify = classes is not None
    k = possible_folds(y, cv=cv, groups=groups, stratify=stratify)
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
    folds = assign_folds(y, folds=k, repeats=times, seed=seed, groups=groups, stratify=stratify)
    inner = _inner_folds(y, folds, cv=cv, seed=seed, groups=groups, stratify=stratify)
    task = Task(positions, y, classes, estimator, resolved, folds, inner)
    if task.streams and task.n_folds < 3:
        raise ProbeError(
            f"more than {STREAM_ROWS:,} rows need three folds or more, not {task.n_folds}. Type: cv=5"
        )
    return task


def _inner_folds(
    y: Array, folds: Index, *, cv: int, seed: int, groups: Array | None, stratify: bool
) -> tuple[Index, ...]:
    """The `Task.inner` of a task: none where the rows are too many, or too few to be split again."""
    if len(y) > NESTED_ROWS:
        return ()
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


def _labelled(store: FeatureStore, rows: Sequence[int] | Array | None) -> tuple[Index, list[Any]]:
    """The ascending positions of the rows to use, and their labels."""
    labels = _values(store.labels, len(store))
    if all(map(_is_missing, labels)):
        raise ProbeError(
            "no row of this store has a label, and a probe learns from labels. Extract data with labels, "
            "e.g. a folder of class folders: spile.extract(tap, 'folder/')"
        )
    if rows is None:
        splits = _values(store.splits, len(store))
        positions = selection_rows(splits)
        chosen = np.array([i for i in positions if not _is_missing(labels[i])], dtype=np.intp)
        if not len(chosen):
            names = ", ".join(sorted({repr(str(split)) for split in splits if split is not None}))
            raise ProbeError(
                f"no labelled row to choose by: the splits are {names}, and only 'train' may be looked at, "
                "or rows without a split. Type: spile.probe(store, rows=[...])"
            )
        return chosen, [labels[i] for i in chosen]
    chosen = _positions(rows, len(labels))
    unlabelled = [int(i) for i in chosen if _is_missing(labels[i])]
    if unlabelled:
        raise ProbeError(
            f"{len(unlabelled)} of the {len(chosen)} rows have no label, the first is row {unlabelled[0]}. "
            "Leave them out of rows="
        )
    return chosen, [labels[i] for i in chosen]


def _values(column: Sequence[Any] | Array | None, n: int) -> list[Any]:
    return [None] * n if column is None else list(column)


def _positions(rows: Sequence[int] | Array, n: int) -> Index:
    given = np.asarray(rows)
    if given.dtype == bool and given.shape == (n,):
        given = np.flatnonzero(given)
    if (
        given.ndim != 1
        or not len(given)
        or given.dtype.kind not in "iu"
        or given.min() < 0
        or given.max() >= n
    ):
        raise ProbeError(
            f"rows must be positions from 0 to {n - 1} or a mask of {n} booleans. Type: rows=range({n})"
        )
    return np.unique(given).astype(np.intp)


def _is_missing(label: Any) -> bool:
    return label is None or label != label


def _metric(labels: list[Any], metric: Metric | Literal["auto"], estimator: Estimator) -> Metric:
    numbers = all(isinstance(label, float | np.floating) for label in labels)
    resolved: Metric = metric if metric != "auto" else "r2" if numbers else "accuracy"
    if resolved == "r2" and not all(isinstance(label, int | float | np.number) for label in labels):
        raise ProbeError(f"metric='r2' needs numbers as labels, not {labels[0]!r}. Type: metric='accuracy'")
    if not isinstance(estimator, str):
        from sklearn.base import is_classifier, is_regressor

        if is_regressor(estimator) if resolved != "r2" else is_classifier(estimator):
            wanted = "a regressor" if resolved == "r2" else "a classifier"
            raise ProbeError(
                f"metric={resolved!r} needs {wanted}, not {type(estimator).__name__}. "
                f"Type: estimator='ridge', or metric={'accuracy' if resolved == 'r2' else 'r2'!r}"
            )
    return resolved


def _encode(labels: list[Any], metric: Metric) -> tuple[Array, Array | None]:
    """Class numbers and the classes behind them, or numbers and ``None``."""
    if metric == "r2":
        numbers = np.asarray(labels, dtype=np.float64)
        low, high = numbers.min(), numbers.max()
        if len(numbers) < 4 or low == high:
            raise ProbeError(
                f"a regression needs four rows with labels that differ, not {len(numbers)} from {low:g} to "
                f"{high:g}. Add rows"
            )
        return numbers, None
    if len({isinstance(label, str) for label in labels}) > 1:
        raise ProbeError("some labels are text and some are numbers; make them all text")
    classes, y, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ProbeError(
            f"all {len(y)} rows have the label {classes[0].item()!r}: a classifier needs two classes. "
            "Add rows of another class"
        )
    rare = [label.item() for label in classes[counts < 2]]
    if rare:
        raise ProbeError(
            f"{len(rare)} of {len(classes)} classes have one row only, such as {rare[0]!r}: one to train and "
            "one to score are needed. Add rows, or leave these out with rows="
        )
    return y.astype(np.intp), classes
