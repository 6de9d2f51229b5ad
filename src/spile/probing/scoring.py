"""The cross-validated score of one point: every choice is made inside the training rows of each fold.

Up to 10,000 rows (`task.STREAM_ROWS`) the point's rows are held in memory. Beyond, ridge streams them twice,
keeping one `Moments` a fold: about ``(folds + 4) * 8 * d**2`` bytes for `d` features, whatever the number of
rows. A scikit-learn estimator always gets its rows in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError
from spile.probing.folds import Index
from spile.probing.ridge import Moments, RidgeFit, cross_fit_moments, fit_moments, fit_ridge, targets
from spile.probing.task import Column, Estimator, Metric, Point, Task

Array = npt.NDArray[Any]
STREAM_FEATURES = 4096
"""The widest point that is fitted from moments; one (d, d) matrix of it takes 128 MiB."""

_SHARED_FROM = 500
"""Rows from which linear algebra is shared by threads."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What cross-validation says of one point."""

    fold_scores: tuple[float, ...]
    """One a fold, repeat after repeat."""
    alpha: float | None
    """The median over the folds; ``None`` for a scikit-learn estimator."""
    at_edge: bool
    """In at least half of the folds alpha was the smallest or largest tried."""
    predicted: Array
    """(n,) out-of-fold predictions of the first repeat."""
    probability: Array | None
    """(n,) the highest class probability, uncalibrated; ``None`` where the estimator gives none."""
    inner: tuple[tuple[float, float], ...] = ()
    """For each fold of the first repeat: score and standard error, cross-validated in its training rows."""


def small_systems(rows: int) -> AbstractContextManager[Any]:
    """Solve with one thread while the block runs, where the systems are too small to share.

    On two busy cores the search over 50 rows took 48 s with two threads and 4 s with one.
    """
    if rows > _SHARED_FROM:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def evaluate(column: Column, task: Task, *, point: str) -> Evaluation:
    """Cross-validate one point; `point` is its name, for messages."""
    if task.streams:
        return _evaluate_stream(column, task, point)
    X = read_rows(column, task.rows, point=point)
    inner = tuple(
        mean_and_error(
            _cross_validate(X[train], task.y[train], folds, task).fold_scores, int(folds.max()) + 1
        )
        for train, folds in zip(_training_rows(task.folds[0]), task.inner, strict=False)
    )
    outer = _cross_validate(X, task.y, task.folds, task)
    return Evaluation(
        outer.fold_scores, outer.alpha, outer.at_edge, outer.predicted, outer.probability, inner
    )


def fit_point(column: Column, task: Task, *, point: str) -> Any:
    """Fit on all rows of the task: a `RidgeFit`, or a scikit-learn pipeline; both predict labels."""
    if task.streams:
        folds = _fold_moments(column, task, task.folds[0], point)
        return fit_moments(folds, classes=task.classes)
    y = task.y if task.classes is None else task.classes[task.y]
    return _fit(read_rows(column, task.rows, point=point), y, task.estimator, task.classes)


def mean_and_error(fold_scores: Sequence[float], folds: int) -> tuple[float, float]:
    """The mean of fold scores and its standard error, corrected for training sets that overlap.

    Nadeau and Bengio 2003: the variance over folds times ``1 / len(fold_scores) + 1 / (folds - 1)``, the
    second term being held-out rows over training rows. Without it, repeating alone would shrink the error
    without end.
    """
    scores = np.asarray(fold_scores)
    error = sqrt(scores.var(ddof=1) * (1 / len(scores) + 1 / (folds - 1)))
    return float(scores.mean()), error


def read_rows(column: Column, rows: Index, *, point: str) -> Array:
    """The flattened features (n, d) of ascending `rows`, in the stored type. Memory: these and one batch."""
    return np.concatenate([X for _, X in _stream(column, rows, point)])


def is_ragged(point: Point) -> bool:
    """Rows differ in length (tokens that were not pooled)."""
    return any(not size or size < 0 for size in point.shape)


def width(point: Point) -> int:
    """The number of features of a row, flattened."""
    return prod(size or 0 for size in point.shape)


def _stream(column: Column, rows: Index, point: str) -> Iterator[tuple[slice, Array]]:
    """Yield, batch by batch, the slice of `rows` that it holds and these rows (m, d)."""
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


def _training_rows(folds: Index) -> list[Index]:
    return [np.flatnonzero(folds != fold) for fold in range(int(folds.max()) + 1)]


def _cross_validate(X: Array, y: Array, folds: Index, task: Task) -> Evaluation:
    scores: list[float] = []
    fits: list[Any] = []
    predicted = np.empty_like(y)
    probability = np.empty(len(y)) if task.classes is not None else None
    for repeat, held_out in enumerate(folds):
        for fold, train in enumerate(_training_rows(held_out)):
            test = np.flatnonzero(held_out == fold)
            fit = _fit(X[train], y[train], task.estimator, task.codes)
            answer = fit.predict(X[test])
            scores.append(score_predictions(task.metric, y[test], answer))
            fits.append(fit)
            if repeat == 0:
                predicted[test] = answer
                probability = _fill_confidence(probability, test, fit, X[test])
    return _evaluation(scores, fits, predicted, probability)


def _evaluate_stream(column: Column, task: Task, point: str) -> Evaluation:
    scores: list[float] = []
    fits: list[Any] = []
    out_of_fold: list[tuple[Array, Array | None]] = []
    for held_out in task.folds:
        models = cross_fit_moments(_fold_moments(column, task, held_out, point), classes=task.codes)
        predicted = np.empty_like(task.y)
        probability = np.empty(len(task.y)) if task.classes is not None else None
        for at, X in _stream(column, task.rows, point):
            for fold, model in enumerate(models):
                mine = np.flatnonzero(held_out[at] == fold)
                if len(mine):
                    predicted[at.start + mine] = model.predict(X[mine])
                    probability = _fill_confidence(probability, at.start + mine, model, X[mine])
        parts = [held_out == fold for fold in range(len(models))]
        scores += [score_predictions(task.metric, task.y[part], predicted[part]) for part in parts]
        fits += models
        out_of_fold.append((predicted, probability))
    return _evaluation(scores, fits, *out_of_fold[0])


def _fold_moments(column: Column, task: Task, held_out: Index, point: str) -> list[Moments]:
    folds: dict[int, Moments] = {}
    for at, X in _stream(column, task.rows, point):
        T = targets(task.y[at], task.codes)
        for fold in range(int(held_out.max()) + 1):
            mine = held_out[at] == fold
            before = folds.get(fold) or Moments.zeros(X.shape[1], T.shape[1])
            folds[fold] = before.update(X[mine], T[mine])
    return [folds[fold] for fold in sorted(folds)]


def _evaluation(
    scores: list[float], fits: Sequence[Any], predicted: Array, probability: Array | None
) -> Evaluation:
    ridges = [fit for fit in fits if isinstance(fit, RidgeFit)]
    alpha = float(np.median([fit.alpha for fit in ridges])) if ridges else None
    at_edge = 2 * sum(fit.at_edge for fit in ridges) >= max(1, len(ridges))
    return Evaluation(tuple(scores), alpha, at_edge, predicted, probability)


def _fit(X: Array, y: Array, estimator: Estimator, classes: Array | None) -> Any:
    if isinstance(estimator, str):
        return fit_ridge(X, y, classes=classes)
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = X.astype(np.promote_types(X.dtype, np.float32), copy=False)
    return make_pipeline(StandardScaler(), clone(estimator)).fit(X, y)


def _fill_confidence(probability: Array | None, at: Index, fit: Any, X: Array) -> Array | None:
    if probability is None or not hasattr(fit, "predict_proba"):
        return None
    probability[at] = fit.predict_proba(X).max(axis=1)
    return probability


def score_predictions(metric: Metric, y: Array, predicted: Array) -> float:
    """The score of predictions (n,) for labels, or class numbers, `y` (n,)."""
    if metric == "accuracy":  # in a search over few rows, scikit-learn's checks would cost more than the fits
        return float(np.mean(np.asarray(y) == np.asarray(predicted)))
    from sklearn import metrics

    scorers = {
        # what balanced_accuracy_score is, without its warning about classes that are only predicted
        "balanced_accuracy": partial(metrics.recall_score, labels=np.unique(y), average="macro"),
        "r2": metrics.r2_score,
    }
    return float(scorers[metric](y, predicted))
