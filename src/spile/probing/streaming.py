"""Ridge on more rows than are held in memory: moments of every fold, streamed once a fit.

Memory: about ``(folds + 4) * 8 * d**2`` bytes for `d` features, whatever the number of rows.

Of several layers with a penalty each the penalties are found on 2,000 of the training rows, evenly spaced,
and the layers of the largest shares are kept, up to 4,096 features; the model itself is fitted on all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.probing.banding import choose_bands, column_weights
from spile.probing.features import Candidate, Features
from spile.probing.folds import Index
from spile.probing.ridge import (
    Moments,
    RidgeFit,
    cross_fit_moments,
    find_temperature,
    fit_alpha,
    fit_moments,
    targets,
)
from spile.probing.task import Task

Array = npt.NDArray[Any]
Fit = tuple[tuple[str, ...], RidgeFit]
"""The points whose features a model takes, and the model."""

STREAM_FEATURES = 4096
"""The widest point that is fitted from moments; one (d, d) matrix of it takes 128 MiB."""
_BAND_ROWS = 2_000
_CALIBRATION_ROWS = 10_000
"""A temperature is found from so many rows at most."""


def fold_moments(
    features: Features,
    candidate: Candidate,
    task: Task,
    held_out: Index,
    points: Sequence[str] | None = None,
) -> list[Moments]:
    """The moments of every fold; of some `points` of the candidate alone, if given."""
    folds: dict[int, Moments] = {}
    for at, X in features.stream(candidate, task.rows, points):
        T = targets(task.y[at], task.codes)
        for fold in range(int(held_out.max()) + 1):
            mine = held_out[at] == fold
            before = folds.get(fold) or Moments.zeros(X.shape[1], T.shape[1])
            folds[fold] = before.update(X[mine], T[mine])
    return [folds[fold] for fold in sorted(folds)]


def cross_fit(folds: Sequence[Moments], task: Task) -> list[RidgeFit]:
    """For each fold the fit on all others, in class numbers."""
    several = task.kind == "multilabel"
    return [replace(fit, multilabel=several) for fit in cross_fit_moments(folds, classes=task.codes)]


def fold_fits(
    features: Features, candidate: Candidate, task: Task, held_out: Index, *, calibrate: bool = False
) -> list[Fit]:
    """For each fold the fit on all others, in class numbers.

    With `calibrate` each has a temperature: that of a model with its penalty fitted without the next fold as
    well, on the rows of that fold. Held-out rows leave no trace in it.
    """
    fits: list[Fit] = []
    inner: list[Fit] = []
    for fold, (points, model, folds, weights) in enumerate(_fits(features, candidate, task, held_out)):
        fits.append((points, model))
        if calibrate:
            inner.append((points, _without_next(folds, fold, model, task, weights)))
    if not calibrate:
        return fits
    chosen = np.where(_calibrating(task), (held_out - 1) % len(fits), -1)
    values, T = _held_out_values(features, candidate, task, chosen, inner)
    several = task.kind == "multilabel"
    return [
        (points, replace(model, temperature=find_temperature(values[at], T[at], multilabel=several)))
        for (points, model), at in zip(fits, (chosen == fold for fold in range(len(fits))), strict=True)
    ]


def held_out_rows(
    features: Features, candidate: Candidate, task: Task, held_out: Index, fits: Sequence[Fit]
) -> Iterator[tuple[int, Index, RidgeFit, Array]]:
    """Yield fold, positions, model and features of rows that the model has not seen.

    One pass for each set of points. `held_out` is -1 for rows that are passed over.
    """
    for points in dict.fromkeys(points for points, _ in fits):
        for at, X in features.stream(candidate, task.rows, points):
            for fold, (taken, model) in enumerate(fits):
                mine = np.flatnonzero(held_out[at] == fold)
                if taken == points and len(mine):
                    yield fold, at.start + mine, model, X[mine]


def fit_streamed(features: Features, candidate: Candidate, task: Task, *, calibrate: bool) -> RidgeFit:
    """The fit on all rows of the task, for the features of all points of the candidate."""
    held_out = task.folds[0]
    several = task.kind == "multilabel"
    calibrate = calibrate or task.scorer.needs == "probabilities"
    if candidate.banded:
        points, weights = _weighted(features, candidate, task, np.arange(len(task.rows)))
        folds = fold_moments(features, candidate, task, held_out, points)
        fit = replace(fit_moments(folds, classes=task.classes, weights=weights), multilabel=several)
        taken = np.array([point in points for point in candidate.points])
        fit = widened(fit, features.widths(candidate), taken)
    else:
        folds = fold_moments(features, candidate, task, held_out)
        fit = replace(fit_moments(folds, classes=task.classes), multilabel=several)
    if not calibrate or task.codes is None:
        return fit
    if candidate.banded:
        fits = fold_fits(features, candidate, task, held_out)
    else:
        fits = [(candidate.points, model) for model in cross_fit(folds, task)]
    return replace(fit, temperature=_temperature(features, candidate, task, fits))


def widened(fit: RidgeFit, widths: Sequence[int], taken: Array) -> RidgeFit:
    """The fit for all parts of the `widths`: those that are not `taken` get coefficients of 0."""
    kept = np.repeat(taken, widths)
    coef = np.zeros((len(kept), fit.coef.shape[1]))
    mean, scale = np.zeros(len(kept)), np.ones(len(kept))
    coef[kept], mean[kept], scale[kept] = fit.coef, fit.mean, fit.scale
    return replace(fit, coef=coef, mean=mean, scale=scale)


def _fits(
    features: Features, candidate: Candidate, task: Task, held_out: Index
) -> Iterator[tuple[tuple[str, ...], RidgeFit, list[Moments], Array | None]]:
    """For each fold the points, the fit on all others, the moments of all folds and the weights."""
    if not candidate.banded:
        folds = fold_moments(features, candidate, task, held_out)
        yield from ((candidate.points, model, folds, None) for model in cross_fit(folds, task))
        return
    made: dict[tuple[str, ...], list[Moments]] = {}
    for fold in range(int(held_out.max()) + 1):
        points, weights = _weighted(features, candidate, task, np.flatnonzero(held_out != fold))
        if points not in made:
            made.clear()  # the moments of one set of layers at a time
            made[points] = fold_moments(features, candidate, task, held_out, points)
        others = [moments for k, moments in enumerate(made[points]) if k != fold]
        fit = fit_moments(others, classes=task.codes, weights=weights)
        yield points, replace(fit, multilabel=task.kind == "multilabel"), made[points], weights


def _without_next(
    folds: Sequence[Moments], fold: int, fit: RidgeFit, task: Task, weights: Array | None
) -> RidgeFit:
    """What `fit`, on all but the fold, is without the next fold as well: penalties go with the rows."""
    others = [moments for k, moments in enumerate(folds) if k != fold]
    kept = [moments for k, moments in enumerate(folds) if k not in (fold, (fold + 1) % len(folds))]
    share = sum(moments.count for moments in kept) / sum(moments.count for moments in others)
    inner = fit_alpha(kept, fit.alpha * share, classes=task.codes, weights=weights)
    return replace(inner, multilabel=fit.multilabel)


def _weighted(
    features: Features, candidate: Candidate, task: Task, at: Index
) -> tuple[tuple[str, ...], Array]:
    """The points to keep and the weights of their columns, found on some of the rows at `at`."""
    few = at[:: -(-len(at) // _BAND_ROWS)]
    some = replace(task, rows=task.rows[few], y=task.y[few], inner=())
    parts = features.of(some).parts(candidate, some.rows)
    bands = choose_bands(parts, targets(some.y, some.codes))
    width = 0
    kept: list[int] = []
    for index in np.argsort(-bands, kind="stable"):
        if bands[index] > 0 and (not kept or width + parts[index].shape[1] <= STREAM_FEATURES):
            kept.append(int(index))
            width += parts[index].shape[1]
    kept.sort()
    weights = column_weights([parts[i] for i in kept], bands[kept])
    return tuple(candidate.points[i] for i in kept), weights


def _temperature(features: Features, candidate: Candidate, task: Task, fits: Sequence[Fit]) -> float:
    """Found on rows that models fitted on the other folds have not seen."""
    chosen = np.where(_calibrating(task), task.folds[0], -1)
    values, T = _held_out_values(features, candidate, task, chosen, fits)
    kept = chosen >= 0
    return find_temperature(values[kept], T[kept], multilabel=task.kind == "multilabel")


def _calibrating(task: Task) -> Array:
    """(n,) which rows a temperature is found from, evenly spaced."""
    step = -(-len(task.rows) // _CALIBRATION_ROWS)
    at: Array = np.arange(len(task.rows)) % step == 0
    return at


def _held_out_values(
    features: Features, candidate: Candidate, task: Task, chosen: Index, fits: Sequence[Fit]
) -> tuple[Array, Array]:
    """(n, k) decision values of the model that each row is `chosen` for, and targets; -1 is for none."""
    T = targets(task.y, task.codes)
    values = np.zeros(T.shape)
    for _, at, model, X in held_out_rows(features, candidate, task, chosen, fits):
        values[at] = model.decision_function(X).reshape(len(at), T.shape[1])
    return values, T
