"""Search over points and combinations of points, on the folds of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spile.probing.features import Candidate, Features
from spile.probing.scoring import Evaluation, evaluate, mean_and_error, screen
from spile.probing.streaming import STREAM_FEATURES
from spile.probing.task import Task

Combine = Literal["single", "greedy", "banded"]

MOST_POINTS = 6
"""A greedy combination has no more points."""
_SCREENED = 3
"""So many of the screened points are evaluated in full."""
_GREEDY_ROWS = 4_000
"""Of more rows the greedy choice looks at so many only; what it chose is then evaluated on all."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with what cross-validation says of it."""

    candidate: Candidate
    evaluation: Evaluation


def search(
    features: Features, points: Sequence[str], task: Task, *, combine: Combine, widths: Mapping[str, int]
) -> list[Scored]:
    """Evaluate every point and the combinations that `combine` asks for.

    `points` may be chosen and combined; `widths` are their numbers of features.
    """
    found = [Scored(one, evaluate(features, one, task)) for one in map(_single, points)]
    if combine == "banded" and len(points) > 1:
        banded = Candidate(tuple(points), banded=True)
        found.append(Scored(banded, evaluate(features, banded, task)))
    if combine == "greedy":
        found += _greedy(features, found, task, widths)
    return found


def _single(point: str) -> Candidate:
    return Candidate((point,))


def _greedy(
    features: Features, singles: Sequence[Scored], task: Task, widths: Mapping[str, int]
) -> list[Scored]:
    """Add the point that helps most to the best one, again and again, until the gain is within its error.

    The gain is paired by fold, and its standard error is `mean_and_error`'s.
    """
    best = max(singles, key=lambda scored: float(np.mean(scored.evaluation.fold_scores)))
    order = [single.candidate.points[0] for single in singles]
    steps: list[Scored] = []
    while len(best.candidate.points) < MOST_POINTS:
        tried = [
            Scored(candidate, evaluate(features, candidate, task))
            for candidate in _promising(features, best, order, task, widths)
        ]
        if not tried:
            break
        better = max(tried, key=lambda scored: float(np.mean(scored.evaluation.fold_scores)))
        gains = np.subtract(better.evaluation.fold_scores, best.evaluation.fold_scores)
        gain, error = mean_and_error(gains.tolist(), task.n_folds)
        if gain <= error or gain <= 0:
            break
        best = better
        steps.append(best)
    return steps


def _promising(
    features: Features, best: Scored, order: Sequence[str], task: Task, widths: Mapping[str, int]
) -> list[Candidate]:
    """The extensions of the best candidate to evaluate in full: all, or those that a quick score favours."""
    chosen = best.candidate.points
    candidates = [
        Candidate(tuple(point for point in order if point in chosen or point == added))
        for added in order
        if added not in chosen
    ]
    if task.streams:
        candidates = [c for c in candidates if sum(widths[p] for p in c.points) <= STREAM_FEATURES]
    alpha = best.evaluation.alpha
    if len(candidates) <= _SCREENED or alpha is None:
        return candidates
    quick = task if len(task.rows) <= _GREEDY_ROWS else task.thinned(_GREEDY_ROWS)
    features = features if quick is task else features.of(quick)
    width = sum(widths[point] for point in best.candidate.points)
    training = len(task.rows) * (task.n_folds - 1) / task.n_folds
    relative = alpha / (training * width)
    quickly = [screen(features, candidate, quick, relative) for candidate in candidates]
    ranked = np.argsort(quickly, kind="stable")[::-1][:_SCREENED]
    return [candidates[i] for i in sorted(ranked)]
