"""LogME and H-score: cheap guesses at which layer transfers. Hints, never what chooses.

They barely beat the plain depth of a layer as a ranking, where a cross-validated ridge costs milliseconds:
choose by `spile.probe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.inspection.reading import chosen_points, drawn, flat
from spile.probing.labels import encode, kind_of, labelled_rows
from spile.store import Store

Array = npt.NDArray[Any]

HINT_ROWS = 1000
"""Drawn at most: a hint is not worth more."""

_STEPS = 100
_STEADY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Hint:
    """Two numbers for one point, comparable between points of the same rows and labels only."""

    point: str
    logme: float
    """Log evidence a row of a Bayesian linear model, mean over the classes."""
    h_score: float | None
    """Spread between classes over spread in all, shrunk; ``None`` for regression."""
    rows: int


def hints(
    store: Store,
    *,
    points: Sequence[str] | None = None,
    rows: Sequence[int] | Array | None = None,
    seed: int = 0,
) -> tuple[Hint, ...]:
    """LogME and H-score of each point, on the rows that `spile.probe` would look at, up to `HINT_ROWS` drawn.

    Raises `ProbeError` where there are no labels that a probe could learn from.
    """
    positions, labels = labelled_rows(store, rows, None)
    kept = drawn(len(positions), HINT_ROWS, seed)
    chosen, given = positions[kept], [labels[i] for i in kept]
    kind = kind_of(given, "auto")
    y, classes = encode(given, kind)
    found = []
    for name in chosen_points(store, points):
        x = flat(store[name], chosen)
        score = h_score(x, y) if kind == "classes" else None
        found.append(Hint(point=name, logme=logme(x, y, classes), h_score=score, rows=len(chosen)))
    return tuple(found)


def logme(x: Array, y: Array, classes: Array | None = None) -> float:
    """LogME of features (n, d) for class numbers, 0 and 1 for each of several labels (n, c), or numbers (n,).

    You et al. 2021, algorithm 1: the log evidence of ``y = f(x) + noise`` with its two precisions chosen to
    maximise it, over n, averaged over one-vs-rest targets.
    """
    x = np.asarray(x, np.float64)
    if y.ndim == 2:
        targets = y.astype(np.float64)
    elif classes is None:
        targets = np.asarray(y, np.float64)[:, None]
    else:
        targets = (y[:, None] == np.arange(len(classes))).astype(np.float64)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return float(np.mean([_evidence(s**2, (u.T @ t) ** 2, float(t @ t), len(x)) for t in targets.T]))


def _evidence(variances: Array, explained: Array, total: float, n: int) -> float:
    """The largest log evidence over n, by MacKay's fixed point in the precisions `alpha` and `beta`."""
    beyond = max(total - float(explained.sum()), 0.0)
    alpha = beta = 1.0
    floor = 1e-12 * (variances.max(initial=0.0) or 1.0)  # a perfect fit, or nothing to fit with
    for _ in range(_STEPS):
        ratio = max(alpha / beta, floor)
        effective = (variances / (variances + ratio)).sum()
        size = (variances * explained / (variances + ratio) ** 2).sum()
        residual = (explained / (1 + variances / ratio) ** 2).sum() + beyond
        alpha, beta = effective / (size + 1e-12), (n - effective) / (residual + 1e-12)
        if abs(alpha / beta - ratio) <= _STEADY * ratio:
            break
    ratio = max(alpha / beta, floor)
    size = (variances * explained / (variances + ratio) ** 2).sum()
    residual = (explained / (1 + variances / ratio) ** 2).sum() + beyond
    fit = n * np.log(beta) - np.log1p(variances / ratio).sum() - n * np.log(2 * np.pi)
    return float(fit - beta * residual - alpha * size) / (2 * n)


def h_score(x: Array, y: Array) -> float:
    """The H-score of features (n, d) for class numbers (n,), with a shrunk covariance.

    Bao et al. 2019: the trace of the inverse covariance times the covariance of the class means. With fewer
    rows than features that is the number of classes less one whatever the layer; hence the Ledoit-Wolf
    shrinkage of Ibrahim et al. 2021, section 4.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0)
    shrinkage = ledoit_wolf_shrinkage(x, assume_centered=True)
    codes, counts = np.unique(y, return_counts=True)
    means = np.stack([x[y == code].mean(axis=0) for code in codes]) * np.sqrt(counts / len(x))[:, None]
    # The means lie in the span of the rows, where the shrunk covariance is diagonal in the singular vectors.
    _, s, directions = np.linalg.svd(x, full_matrices=False)
    variances = (1 - shrinkage) * s**2 / len(x) + shrinkage * np.square(x).sum() / x.size
    kept = s > 1e-9 * s[0]
    between = np.square(means @ directions[kept].T).sum(axis=0)
    return float((1 - shrinkage) * (between / variances[kept]).sum())
