"""The labels that a probe learns from: which rows have one, what kind they are, and their numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spile.data.samples import to_numpy
from spile.errors import ProbeError
from spile.probing.folds import Index, selection_rows
from spile.probing.metrics import Kind, Metric

if TYPE_CHECKING:
    from spile.probing.task import FeatureStore

Array = npt.NDArray[Any]


def labelled_rows(
    store: FeatureStore, rows: Sequence[int] | Array | None, labels: Sequence[Any] | Array | None
) -> tuple[Index, list[Any]]:
    """The ascending positions of the rows to use, and their labels: `labels`, or else the store's."""
    if labels is not None and len(labels) != len(store):
        raise ProbeError(f"labels has {len(labels)} entries, but the store has {len(store)} rows: one a row")
    labels = values_of(store.labels if labels is None else labels, len(store))
    if all(map(_is_missing, labels)):
        raise ProbeError(
            "no row of this store has a label, and a probe learns from labels. Extract data with labels, "
            "e.g. a folder of class folders: spile.extract(tap, 'folder/')"
        )
    if rows is None:
        splits = values_of(store.splits, len(store))
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


def values_of(column: Sequence[Any] | Array | None, n: int) -> list[Any]:
    """The values as a list; ``None`` n times where there is no column.

    Tensors, the column itself or its values, become what NumPy has for them: they hash by identity.
    """
    if column is None:
        return [None] * n
    held = to_numpy(column) if _is_tensor(column) else column
    return [to_numpy(value)[()] if _is_tensor(value) else value for value in held]


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") or hasattr(value, "numpy")


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
    """``None`` or NaN; a set or a row of 0 and 1 is a label."""
    if isinstance(label, Collection) and not isinstance(label, str | bytes):
        return False
    return label is None or label != label


def kind_of(labels: Sequence[Any], metric: Metric) -> Kind:
    """What kind of labels these are: floats are numbers, sets and rows of 0 and 1 are several labels."""
    if metric == "r2":
        if not all(isinstance(label, int | float | np.number) for label in labels):
            raise ProbeError(
                f"metric='r2' needs numbers as labels, not {labels[0]!r}. Type: metric='accuracy'"
            )
        return "numbers"
    if all(isinstance(label, Collection) and not isinstance(label, str | bytes) for label in labels):
        return "multilabel"
    numbers = all(isinstance(label, float | np.floating) for label in labels)
    return "numbers" if numbers and (metric == "auto" or callable(metric)) else "classes"


def check_estimator(estimator: Any, kind: Kind) -> None:
    """Raise `ProbeError` for a regressor on classes, or a classifier on numbers."""
    if isinstance(estimator, str):
        return
    from sklearn.base import is_classifier, is_regressor

    if is_classifier(estimator) if kind == "numbers" else is_regressor(estimator):
        wanted, metric = ("a regressor", "accuracy") if kind == "numbers" else ("a classifier", "r2")
        raise ProbeError(
            f"these labels need {wanted}, not {type(estimator).__name__}. "
            f"Type: estimator='ridge', or metric={metric!r}"
        )


def encode(labels: list[Any], kind: Kind) -> tuple[Array, Array | None]:
    """Class numbers (n,), a matrix (n, c) of 0 and 1, or numbers (n,); and the (c,) classes, if any."""
    if kind == "numbers":
        return _numbers(labels), None
    if kind == "multilabel":
        return _indicators(labels)
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


def check_finite(labels: Iterable[Any]) -> None:
    """Raise `ProbeError` where a label is infinite; NaN is no label."""
    odd = [label for label in labels if isinstance(label, float | np.floating) and np.isinf(label)]
    if odd:
        raise ProbeError(
            f"labels must be finite, and {len(odd):,} are not, such as {float(odd[0])}. Correct them, or "
            "leave these rows unlabelled, by None or NaN"
        )


def _numbers(labels: list[Any]) -> Array:
    numbers = np.asarray(labels, dtype=np.float64)
    check_finite(labels)
    low, high = numbers.min(), numbers.max()
    if len(numbers) < 4 or low == high:
        raise ProbeError(
            f"a regression needs four rows with labels that differ, not {len(numbers)} from {low:g} to "
            f"{high:g}. Add rows"
        )
    return numbers


def truths(labels: Array, kind: Kind, classes: Array | None) -> Array:
    """Labels of rows that only measure, as predictions are: (n, c) 0 and 1 for sets, of `classes` alone."""
    if kind != "multilabel" or classes is None:
        return labels
    return np.array([[name in row for name in classes.tolist()] for row in labels], dtype=np.intp)


def _indicators(labels: list[Any]) -> tuple[Array, Array]:
    """From sets of names, or from rows of 0 and 1, whose classes are the numbers of their columns."""
    if isinstance(labels[0], set | frozenset):
        names = sorted(set().union(*labels))
        y = np.array([[name in row for name in names] for row in labels], dtype=np.intp)
        classes = np.asarray(names)
    else:
        if len({len(row) for row in labels}) > 1 or not np.isin(np.asarray(labels), (0, 1)).all():
            raise ProbeError(
                "several labels a row are sets of names, or rows of 0 and 1 of one length, not "
                f"{labels[0]!r}. Type: labels=[{{'cat', 'dog'}}, {{'dog'}}, set(), ...]"
            )
        y = np.asarray(labels).astype(np.intp)
        classes = np.arange(y.shape[1])
    rare = classes[np.minimum(y.sum(axis=0), len(y) - y.sum(axis=0)) < 2] if len(classes) else []
    if not len(classes) or len(rare):
        which = f"{rare[0].item()!r} has" if len(rare) else "there are"
        raise ProbeError(
            f"every label needs two rows with it and two without; {which} fewer. Leave such labels out"
        )
    return y, classes
