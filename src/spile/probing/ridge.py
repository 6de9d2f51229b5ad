"""Ridge regression and classification in closed form: plain numpy, everything accumulated in float64.

The model is scikit-learn's ``RidgeClassifier`` behind a ``StandardScaler``: one-vs-rest targets of -1 and +1
(one column for two classes), squared error plus ``alpha * |coef|²``, an intercept that is not penalised. Two
ways lead to it:

- `fit_ridge` has the rows in memory and chooses alpha by exact leave-one-out from one eigendecomposition.
- `fit_moments` has one `Moments` per fold, streamed, and chooses alpha by K-fold from these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

RELATIVE_ALPHAS: Float = np.logspace(-10, 2, 25)
"""The penalties that are tried, as multiples of the total scatter of the standardised training rows.

That scatter is the number of rows times the number of features that vary. Relative, so that one grid serves
every layer width and sample size: the low end is least squares, the high end shrinks every direction at least
a hundredfold.
"""


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A fitted ridge model of `d` features and `k` outputs (`k` is 1 for two classes and for regression)."""

    mean: Float
    """(d,) of the training rows."""
    scale: Float
    """(d,) standard deviation of the training rows; 1 where a feature does not vary."""
    coef: Float
    """(d, k), on standardised features; 0 where a feature does not vary."""
    intercept: Float
    """(k,)"""
    alpha: float
    """The penalty, on scikit-learn's scale."""
    classes: Array | None = None
    """(c,) sorted labels; ``None`` for regression."""
    at_edge: bool = False
    """The chosen alpha was the smallest or the largest tried: the best one may lie outside the grid."""
    multilabel: bool = False
    """Any number of the classes may hold for a row, one output each."""
    temperature: float | None = None
    """What decision values are divided by to become log-odds; ``None`` where they were not calibrated."""

    def decision_function(self, X: Array) -> Float:
        """Map (n, d) features to (n, k) decision values; to (n,) for two classes and for regression."""
        values = ((_float64(X) - self.mean) / self.scale) @ self.coef + self.intercept
        return values[:, 0] if values.shape[1] == 1 else values

    def predict(self, X: Array) -> Array:
        """Predict (n,) labels, or numbers for regression."""
        values = self.decision_function(X)
        if self.classes is None:
            return values
        if self.multilabel:
            return (values.reshape(len(X), self.coef.shape[1]) > 0).astype(np.intp)
        columns = (values > 0).astype(np.intp) if values.ndim == 1 else values.argmax(axis=1)
        labels: Array = self.classes[columns]
        return labels

    def predict_proba(self, X: Array) -> Float:
        """Softmax of the decision values over the temperature, (n, c), columns as `classes`.

        Where a row has several labels, the logistic function of each. Without a temperature it ranks only.
        """
        if self.classes is None:
            raise ProbeError("predict_proba needs classes, and this is a regression. Type: fit.predict(X)")
        values = self.decision_function(X).reshape(len(X), self.coef.shape[1])
        return probabilities(values, self.temperature or 1.0, multilabel=self.multilabel)


@dataclass(frozen=True, eq=False)
class Moments:
    """What ridge needs of a set of rows, whatever their number: count, means and centred second moments.

    Centred, because raw sums of squares lose the variance of features far from zero. There is no subtraction:
    the moments of a training set are the sum of the other folds' moments, so held-out rows leave no trace in
    them, not even rounding.
    """

    count: int
    mean_x: Float
    """(d,)"""
    mean_y: Float
    """(k,)"""
    xx: Float
    """(d, d) sum of (x - mean_x)(x - mean_x)ᵀ"""
    xy: Float
    """(d, k)"""
    yy: Float
    """(k,) sum of (y - mean_y)²"""

    @classmethod
    def zeros(cls, d: int, k: int) -> Moments:
        """The moments of no rows."""
        return cls(0, np.zeros(d), np.zeros(k), np.zeros((d, d)), np.zeros((d, k)), np.zeros(k))

    @classmethod
    def of(cls, x: Array, y: Array) -> Moments:
        """The moments of rows `x` (n, d), of any float type, with targets `y` (n, k)."""
        x, y = _float64(x), _float64(y)
        if not len(x):
            return cls.zeros(x.shape[1], y.shape[1])
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        x, y = x - mean_x, y - mean_y
        return cls(len(x), mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum(axis=0))

    def update(self, x: Array, y: Array) -> Moments:
        """These moments and those of more rows; `self` is left as it is."""
        return self + Moments.of(x, y)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not self.count or not other.count:
            return other if not self.count else self
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        share, weight = other.count / count, self.count * other.count / count
        return Moments(
            count,
            self.mean_x + share * dx,
            self.mean_y + share * dy,
            self.xx + other.xx + weight * np.outer(dx, dx),
            self.xy + other.xy + weight * np.outer(dx, dy),
            self.yy + other.yy + weight * dy * dy,
        )


def targets(y: Array, classes: Array | None) -> Float:
    """Targets (n, k) for labels `y` (n,): -1 and +1 per class, one column for two classes; `y` itself for
    regression.

    A class that has no row keeps its column, all -1. Of several labels a row, `y` is (n, c) of 0 and 1.
    """
    if classes is None:
        return _float64(y)[:, None]
    y = np.asarray(y)
    if y.ndim == 2:
        return np.where(y > 0, 1.0, -1.0)
    columns = classes[1:] if len(classes) == 2 else classes
    return np.where(y[:, None] == columns[None, :], 1.0, -1.0)


def fit_ridge(
    X: Array,
    y: Array,
    *,
    classes: Array | None = None,
    alphas: Sequence[float] | Float | None = None,
    weights: Float | None = None,
    calibrate: bool = False,
) -> RidgeFit:
    """Fit ridge on rows `X` (n, d) with labels `y` (n,), alpha chosen by exact leave-one-out squared error.

    `classes` are the sorted labels (also ones that `y` lacks); ``None`` is regression; of several labels a
    row, `y` is (n, c) of 0 and 1. `alphas` are absolute, by default `RELATIVE_ALPHAS` times the total
    scatter. `weights` (d,), positive, multiply the standardised features: the penalty of a feature is alpha
    over its weight squared. The intercept is re-estimated without each left-out row; the mean and scale of
    the standardisation are those of all `n` rows. `calibrate` finds the temperature from the exact
    leave-one-out decision values.
    """
    Z, mean, scale = standardize(X)
    if weights is not None:
        Z *= weights
        scale = scale / weights
    T = targets(y, classes)
    grid = (
        np.asarray(alphas, dtype=np.float64)
        if alphas is not None
        else RELATIVE_ALPHAS * _positive(np.vdot(Z, Z))
    )
    several = len(grid) > 1
    best = int(np.argmin([np.square(r).mean() for r in loo_residuals(Z, T, grid)])) if several else 0
    coef = solve(Z, T - T.mean(axis=0), float(grid[best]))
    multilabel = classes is not None and np.ndim(y) == 2
    temperature = None
    if calibrate and classes is not None:
        (residuals,) = loo_residuals(Z, T, grid[best : best + 1])
        temperature = find_temperature(T - residuals, T, multilabel=multilabel)
    return RidgeFit(
        mean,
        scale,
        coef,
        T.mean(axis=0),
        float(grid[best]),
        classes,
        _at_edge(best, len(grid)),
        multilabel,
        temperature,
    )


def probabilities(values: Float, temperature: float, *, multilabel: bool) -> Float:
    """Decision values (n, k) as probabilities (n, c): a softmax, or a logistic function of each column."""
    values = values / temperature
    if multilabel:
        chances: Float = 0.5 * (1.0 + np.tanh(0.5 * values))
        return chances
    if values.shape[1] == 1:
        values = np.concatenate([-values, values], axis=1)
    odds: Float = np.exp(values - values.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    return odds


def find_temperature(values: Float, T: Float, *, multilabel: bool) -> float:
    """The temperature of least log loss for decision values (n, k) of rows that the fit left out.

    `T` (n, k) are the targets. Guo et al. 2017, section 4.2: one number, so that it does not overfit, and no
    label changes.
    """
    from scipy.optimize import minimize_scalar

    truth = T > 0 if multilabel or T.shape[1] > 1 else np.concatenate([T < 0, T > 0], axis=1)

    def loss(log_temperature: float) -> float:
        chances = probabilities(values, np.exp(log_temperature), multilabel=multilabel)
        if multilabel:
            chances = np.where(truth, chances, 1 - chances)
        else:
            chances = np.where(truth, chances, 0.0).sum(axis=1)
        return float(-np.log(np.maximum(chances, 1e-15)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-7.0, 3.0), method="bounded").x))


def standardize(X: Array) -> tuple[Float, Float, Float]:
    """Return the rows (n, d) with mean 0 and variance 1, the mean (d,) and the scale (d,).

    A feature that does not vary becomes 0 with scale 1.
    """
    X = _float64(X)
    mean = X.mean(axis=0)
    Z = X - mean
    scale, varies = _scale(np.square(Z).mean(axis=0), mean, len(X))
    Z *= varies / scale
    return Z, mean, scale


def loo_residuals(Z: Float, T: Float, alphas: Float) -> Iterator[Float]:
    """Yield, for each alpha, the exact leave-one-out residuals (n, k) of targets `T` (n, k) on centred rows
    `Z` (n, d).

    The residual of row i is that of a fit with its own intercept on the other rows: the fitted residual over
    one minus the leverage. One eigendecomposition serves all alphas, of the smaller of ZZᵀ and ZᵀZ.
    """
    n, d = Z.shape
    T = T - T.mean(axis=0)
    if n <= d:
        # The constant vector spans the intercept. Lifted above all others it comes last and is left out.
        gram = Z @ Z.T
        values, Q = np.linalg.eigh(gram + 2 * _positive(np.trace(gram)) / n)
        values, Q = np.maximum(values[:-1], 0), Q[:, :-1]
        projected, squared = Q.T @ T, Q * Q
        for alpha in alphas:
            kept = alpha / (values + alpha)
            yield (Q @ (kept[:, None] * projected)) / (squared @ kept)[:, None]
    else:
        values, V = np.linalg.eigh(Z.T @ Z)
        values, P = np.maximum(values, 0), Z @ V
        projected, squared = P.T @ T, P * P
        for alpha in alphas:
            inverse = 1 / (values + alpha)
            complement = np.maximum(1 - 1 / n - squared @ inverse, np.finfo(np.float64).tiny)
            yield (T - P @ (inverse[:, None] * projected)) / complement[:, None]


def solve(Z: Float, T: Float, alpha: float) -> Float:
    """Ridge coefficients (d, k) of centred targets (n, k) on centred rows (n, d), by the smaller system."""
    n, d = Z.shape
    if n <= d:
        coef = Z.T @ np.linalg.solve(Z @ Z.T + alpha * np.eye(n), T)
    else:
        coef = np.linalg.solve(Z.T @ Z + alpha * np.eye(d), Z.T @ T)
    return np.asarray(coef, dtype=np.float64)


def fit_alpha(
    folds: Sequence[Moments], alpha: float, *, classes: Array | None = None, weights: Float | None = None
) -> RidgeFit:
    """Fit ridge on the rows of all `folds` with a given penalty; `weights` (d,) are those of `fit_ridge`."""
    moments = _union(folds)
    scale, varies, xx, xy = _standardised(moments, weights)
    xx[np.diag_indices_from(xx)] += alpha
    coef: Float = np.asarray(np.linalg.solve(xx, xy), dtype=np.float64)
    coef[~varies] = 0.0
    return RidgeFit(moments.mean_x, scale, coef, moments.mean_y, alpha, classes)


def fit_moments(
    folds: Sequence[Moments], *, classes: Array | None = None, weights: Float | None = None
) -> RidgeFit:
    """Fit ridge on the rows of all `folds` (at least two), alpha chosen by K-fold squared error over them.

    Everything, the standardisation of each training part included, comes from sums of the other folds'
    moments.
    Memory: about ``(len(folds) + 4) * 8 * d**2`` bytes. Alpha is chosen relative to the size of the training
    part. `weights` (d,) are those of `fit_ridge`.
    """
    errors = sum(_System.of(_union(folds, k), weights).errors(fold) for k, fold in enumerate(folds))
    return _System.of(_union(folds), weights).fit(int(np.argmin(errors)), classes)


def cross_fit_moments(folds: Sequence[Moments], *, classes: Array | None = None) -> list[RidgeFit]:
    """For each of three or more `folds`, the fit by `fit_moments` on all the others."""
    errors = np.zeros((len(folds), len(RELATIVE_ALPHAS)))
    for i, j in combinations(range(len(folds)), 2):  # one decomposition serves both: i is held out, then j
        system = _System.of(_union(folds, i, j))
        errors[i] += system.errors(folds[j])
        errors[j] += system.errors(folds[i])
    return [_System.of(_union(folds, k)).fit(int(np.argmin(errors[k])), classes) for k in range(len(folds))]


@dataclass(frozen=True, eq=False)
class _System:
    """The standardised normal equations of one training set, decomposed once for every alpha."""

    moments: Moments
    scale: Float
    varies: npt.NDArray[np.bool_]
    values: Float
    vectors: Float
    projected: Float
    alphas: Float

    @classmethod
    def of(cls, moments: Moments, weights: Float | None = None) -> _System:
        scale, varies, xx, xy = _standardised(moments, weights)
        alphas = RELATIVE_ALPHAS * _positive(np.trace(xx))
        values, vectors = np.linalg.eigh(xx)
        projected = vectors.T @ xy
        return cls(moments, scale, varies, np.maximum(values, 0), vectors, projected, alphas)

    def coef(self, alpha: float) -> Float:
        coef: Float = self.vectors @ (self.projected / (self.values + alpha)[:, None])
        coef[~self.varies] = 0.0  # an eigenvector leaves rounding there
        return coef

    def errors(self, held_out: Moments) -> Float:
        """Sum of squared residuals over the rows behind `held_out`, for every alpha."""
        return np.array(
            [self._error(self.coef(alpha) / self.scale[:, None], held_out) for alpha in self.alphas]
        )

    def _error(self, w: Float, held_out: Moments) -> float:
        shift = held_out.mean_y - self.moments.mean_y - (held_out.mean_x - self.moments.mean_x) @ w
        spread = held_out.yy.sum() - 2 * np.vdot(w, held_out.xy) + np.vdot(w, held_out.xx @ w)
        return float(spread + held_out.count * np.vdot(shift, shift))

    def fit(self, index: int, classes: Array | None) -> RidgeFit:
        alpha = float(self.alphas[index])
        at_edge = _at_edge(index, len(self.alphas))
        m = self.moments
        return RidgeFit(m.mean_x, self.scale, self.coef(alpha), m.mean_y, alpha, classes, at_edge)


def _standardised(
    moments: Moments, weights: Float | None
) -> tuple[Float, npt.NDArray[np.bool_], Float, Float]:
    """The scale and which features vary, (d,) each; the normal equations (d, d) and (d, k)."""
    scale, varies = _scale(np.diagonal(moments.xx) / moments.count, moments.mean_x, moments.count)
    if weights is not None:
        scale = scale / weights
    weight = varies / scale
    xx = moments.xx * weight[:, None]
    xx *= weight
    return scale, varies, xx, moments.xy * weight[:, None]


def _union(folds: Sequence[Moments], *without: int) -> Moments:
    return reduce(add, (fold for k, fold in enumerate(folds) if k not in without))


def _scale(variance: Float, mean: Float, n: int) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Standard deviations with 1 for features that vary by no more than rounding, and which ones vary."""
    eps = np.finfo(np.float64).eps
    varies = variance > n * eps * variance + np.square(n * mean * eps)
    return np.sqrt(np.where(varies, variance, 1.0)), varies


def _positive(scatter: Any) -> float:
    return float(scatter) or 1.0


def _at_edge(index: int, count: int) -> bool:
    return count > 1 and index in (0, count - 1)


def _float64(x: Array) -> Float:
    return np.asarray(x, dtype=np.float64)
