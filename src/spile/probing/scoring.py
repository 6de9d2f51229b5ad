"""The cross-validated score of one candidate: every choice is made inside the training rows of each fold.

Up to 10,000 rows (`task.STREAM_ROWS`) the rows are held in memory. Beyond, ridge streams them twice, keeping
one `Moments` a fold: about ``(folds + 4) * 8 * d**2`` bytes for `d` features, whatever the number of rows. A
scikit-learn estimator always gets its rows in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.probing.banding import choose_bands, column_weights
from spile.probing.features import Candidate, Features
from spile.probing.folds import Index
from spile.probing.heads import fit_head
from spile.probing.ridge import RidgeFit, fit_ridge, solve, standardize, targets
from spile.probing.streaming import fit_streamed, fold_fits, held_out_rows, widened
from spile.probing.task import Estimator, Task

Array = npt.NDArray[Any]

_SHARED_FROM = 500
"""Rows from which linear algebra is shared by threads."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What cross-validation says of one candidate."""

    fold_scores: tuple[float, ...]
    """One a fold, repeat after repeat."""
    alpha: float | None
    """The median over the folds; ``None`` for a scikit-learn estimator."""
    at_edge: bool
    """In at least half of the folds alpha was the smallest or largest tried."""
    predicted: Array
    """(n,) or (n, c) out-of-fold predictions of the first repeat, in class numbers."""
    probability: Array | None
    """(n,) the highest class probability; ``None`` where the estimator gives none."""
    answers: Array
    """What the metric was computed from, out of fold, of the last repeat: (n,) labels, or (n, c) scores."""


def small_systems(rows: int) -> AbstractContextManager[Any]:
    """Solve with one thread while the block runs, where the systems are too small to share.

    On two busy cores the search over 50 rows took 48 s with two threads and 4 s with one.
    """
    if rows > _SHARED_FROM:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def evaluate(features: Features, candidate: Candidate, task: Task) -> Evaluation:
    """Cross-validate one candidate."""
    if task.streams:
        return _evaluate_stream(features, candidate, task)
    parts = features.parts(candidate, task.rows)
    collected = _Collected(task)
    for repeat, held_out in enumerate(task.folds):
        for fold in range(int(held_out.max()) + 1):
            train, test = np.flatnonzero(held_out != fold), np.flatnonzero(held_out == fold)
            fit = fit_parts([part[train] for part in parts], task.y[train], candidate, task)
            collected.add(fit, test, _beside([part[test] for part in parts]), first=repeat == 0)
    return collected.evaluation()


def evaluate_fitted(task: Task, X: Array, fit: Callable[[Array, Array], Any]) -> Evaluation:
    """Cross-validate what ``fit(X, y)`` makes of rows `X` (n, ...) of any kind, such as texts."""
    collected = _Collected(task)
    for repeat, held_out in enumerate(task.folds):
        for fold in range(int(held_out.max()) + 1):
            train, test = np.flatnonzero(held_out != fold), np.flatnonzero(held_out == fold)
            collected.add(fit(X[train], task.y[train]), test, X[test], first=repeat == 0)
    return collected.evaluation()


def score_outside(features: Features, candidate: Candidate, task: Task, fold: int) -> float:
    """The score of one held-out fold of the first repeat, for a fit on the rows of all others."""
    held_out = task.folds[0]
    train, test = np.flatnonzero(held_out != fold), np.flatnonzero(held_out == fold)
    parts = features.parts(candidate, task.rows)
    fit = fit_parts([part[train] for part in parts], task.y[train], candidate, task)
    collected = _Collected(task)
    collected.add(fit, test, _beside([part[test] for part in parts]))
    return collected.scores[0]


def screen(features: Features, candidate: Candidate, task: Task, relative_alpha: float) -> float:
    """A quick score: ridge on the folds of the first repeat with a given penalty.

    `relative_alpha` is a multiple of the scatter of the standardised training rows. Twenty times cheaper than
    `evaluate`, as one linear system a fold takes the place of an eigendecomposition.
    """
    X = _beside(features.parts(candidate, task.rows))
    collected = _Collected(task)
    for fold in range(task.n_folds):
        train, test = np.flatnonzero(task.folds[0] != fold), np.flatnonzero(task.folds[0] == fold)
        Z, mean, scale = standardize(X[train])
        T = targets(task.y[train], task.codes)
        alpha = relative_alpha * max(float(np.vdot(Z, Z)), 1.0)
        coef = solve(Z, T - T.mean(axis=0), alpha)
        several = task.kind == "multilabel"
        fit = RidgeFit(mean, scale, coef, T.mean(axis=0), alpha, task.codes, multilabel=several)
        collected.add(fit, test, X[test])
    return float(np.mean(collected.scores))


def fit_all(
    features: Features, candidate: Candidate, task: Task, *, estimator: Estimator = None, calibrate: bool
) -> Any:
    """Fit on all rows of the task: a `RidgeFit`, or a scikit-learn pipeline; both predict labels.

    `estimator` is by default the one of the task; `calibrate` makes its probabilities honest.
    """
    if estimator is not None:
        task = replace(task, estimator=estimator)
    if task.streams:
        return fit_streamed(features, candidate, task, calibrate=calibrate)
    parts = features.parts(candidate, task.rows)
    return fit_parts(parts, task.targets, candidate, task, labels=True, calibrate=calibrate)


def fit_parts(
    parts: Sequence[Array],
    y: Array,
    candidate: Candidate,
    task: Task,
    *,
    labels: bool = False,
    calibrate: bool = False,
) -> Any:
    """Fit the task's estimator on prepared parts (n, d) with class numbers, or `labels`, `y`."""
    classes = task.classes if labels else task.codes
    calibrate = calibrate or task.scorer.needs == "probabilities"
    if task.estimator != "ridge":
        return fit_head(task.estimator, _beside(parts), y, kind=task.kind, calibrate=calibrate)
    weights = None
    if candidate.banded:
        bands = choose_bands(parts, targets(y, classes))
        kept = [part for part, band in zip(parts, bands, strict=True) if band > 0]
        fit = fit_ridge(
            _beside(kept),
            y,
            classes=classes,
            weights=column_weights(kept, bands[bands > 0]),
            calibrate=calibrate,
        )
        return widened(fit, [part.shape[1] for part in parts], bands > 0)
    return fit_ridge(_beside(parts), y, classes=classes, weights=weights, calibrate=calibrate)


def mean_and_error(fold_scores: Sequence[float], folds: int) -> tuple[float, float]:
    """The mean of fold scores and its standard error, corrected for training sets that overlap.

    Nadeau and Bengio 2003: the variance over folds times ``1 / len(fold_scores) + 1 / (folds - 1)``, the
    second term being held-out rows over training rows. Without it, repeating alone would shrink the error
    without end.
    """
    scores = np.asarray(fold_scores)
    error = sqrt(scores.var(ddof=1) * (1 / len(scores) + 1 / (folds - 1)))
    return float(scores.mean()), error


def _beside(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class _Collected:
    """Answers for rows that a fit had not seen, scores by fold, and the first repeat's predictions."""

    def __init__(self, task: Task) -> None:
        self.scores: list[float] = []
        self._task = task
        self._fits: list[Any] = []
        self._answers: Array = np.empty(0)
        self._predicted = np.zeros_like(task.y)
        self._probability = np.zeros(len(task.y)) if task.kind == "classes" else None

    def record(self, fit: Any, at: Index, X: Array, *, first: bool) -> None:
        """Answer for rows at the positions `at` of the task."""
        scorer, codes = self._task.scorer, self._task.codes
        answers = scorer.answers(fit, X, codes)
        if not len(self._answers):
            self._answers = np.zeros((len(self._task.y), *answers.shape[1:]), answers.dtype)
        self._answers[at] = answers
        if not first:
            return
        self._predicted[at] = answers if scorer.needs == "labels" else fit.predict(X)
        if self._probability is not None and hasattr(fit, "predict_proba"):
            self._probability[at] = fit.predict_proba(X).max(axis=1)
        else:
            self._probability = None

    def close(self, fit: Any, at: Index) -> None:
        """Score the answers of one fold."""
        self.scores.append(self._task.score(at, self._answers[at]))
        self._fits.append(fit)

    def add(self, fit: Any, at: Index, X: Array, *, first: bool = False) -> None:
        self.record(fit, at, X, first=first)
        self.close(fit, at)

    def evaluation(self) -> Evaluation:
        ridges = [fit for fit in self._fits if isinstance(fit, RidgeFit)]
        alpha = float(np.median([fit.alpha for fit in ridges])) if ridges else None
        at_edge = 2 * sum(fit.at_edge for fit in ridges) >= max(1, len(ridges))
        return Evaluation(
            tuple(self.scores), alpha, at_edge, self._predicted, self._probability, self._answers
        )


def _evaluate_stream(features: Features, candidate: Candidate, task: Task) -> Evaluation:
    collected = _Collected(task)
    for repeat in range(len(task.folds)):
        held_out = task.folds[repeat]
        calibrate = task.scorer.needs == "probabilities"
        fits = fold_fits(features, candidate, task, held_out, calibrate=calibrate)
        for _, at, model, X in held_out_rows(features, candidate, task, held_out, fits):
            collected.record(model, at, X, first=repeat == 0)
        for fold, (_, model) in enumerate(fits):
            collected.close(model, np.flatnonzero(held_out == fold))
    return collected.evaluation()
