"""One penalty a layer: banded ridge (Nunez-Elizalde, Huth and Gallant 2019; Dupré la Tour et al. 2022).

The penalties minimise the squared error of held-out parts of the training rows. Kernels make the search
cheap: with K = Σ w_l K_l the fit is (K + 1)⁻¹ T, whatever the widths of the layers, and the gradient in every
log w_l is exact and takes one product a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.probing.ridge import RELATIVE_ALPHAS, loo_residuals, standardize

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

_KERNEL_BYTES = 512 << 20
_PARTS = 4
_STEPS = 40
_RANGE = 14.0
"""Log weights stay this near to where they start: a factor of a million either way."""
NEGLIGIBLE = 1e-2
"""A layer with a smaller share of the total weight is left out."""


def choose_bands(parts: Sequence[Array], T: Float, *, seed: int = 0) -> Float:
    """Weights (layers,) of the layers' features `parts` (n, d) for targets `T` (n, k); they sum to 1.

    A layer's share of the variance that the fit may use; 0 where it is negligible. Only as many rows are
    used, drawn at random, as keep all kernels below 512 MiB together: 2,000 with 16 layers. Memory: that.
    """
    if len(parts) == 1:
        return np.ones(1)
    rng = np.random.default_rng(seed)
    n = min(len(T), int(np.sqrt(_KERNEL_BYTES / 8 / len(parts))))
    rows = np.sort(rng.permutation(len(T))[:n])
    centred = T[rows] - T[rows].mean(axis=0)
    kernels = np.empty((len(parts), n, n))
    for kernel, part in zip(kernels, parts, strict=True):
        Z, _, _ = standardize(part[rows])
        np.matmul(Z, Z.T, out=kernel)
        kernel /= max(np.trace(kernel) / n, np.finfo(float).tiny)
    held_out = rng.permutation(np.arange(n) % _PARTS)
    start = np.full(len(parts), np.log(_overall(kernels, centred) / len(parts)))
    logs = _minimise(start, kernels, centred, held_out)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    weights[weights < NEGLIGIBLE] = 0.0
    return np.asarray(weights / weights.sum())


def column_weights(parts: Sequence[Array], bands: Float) -> Float:
    """(sum of d,) multipliers of standardised features, so that layer l has the share ``bands[l]``."""
    return np.concatenate(
        [
            np.full(part.shape[1], np.sqrt(band / part.shape[1]))
            for part, band in zip(parts, bands, strict=True)
        ]
    )


def _overall(kernels: Float, T: Float) -> float:
    """The total weight to start from: that of one penalty for all layers, by leave-one-out."""
    n = len(T)
    values, Q = np.linalg.eigh(kernels.mean(axis=0))
    root = Q * np.sqrt(np.maximum(values, 0.0))
    alphas = RELATIVE_ALPHAS * n
    errors = [np.square(r).mean() for r in loo_residuals(root, T, alphas)]
    return float(1.0 / alphas[int(np.argmin(errors))])


def _minimise(start: Float, kernels: Float, T: Float, held_out: Array) -> Float:
    from scipy.optimize import minimize

    folds = [(np.flatnonzero(held_out != k), np.flatnonzero(held_out == k)) for k in range(_PARTS)]
    scale = np.square(T).sum()

    def loss(logs: Float) -> tuple[float, Float]:
        weights = np.exp(logs)
        total, gradient = 0.0, np.zeros_like(weights)
        whole = np.tensordot(weights, kernels, axes=1)
        for train, test in folds:
            error, slope = _held_out_error(whole, kernels, T, train, test)
            total, gradient = total + error, gradient + slope
        return total / scale, gradient * weights / scale

    bounds = [(value - _RANGE, value + _RANGE) for value in start]
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS, "ftol": 1e-6}
    )
    return np.asarray(found.x, dtype=np.float64)


def _held_out_error(whole: Float, kernels: Float, T: Float, train: Array, test: Array) -> tuple[float, Float]:
    """Squared error of the rows `test` for a fit on `train`, and its gradient in the weights."""
    from scipy.linalg import cho_factor, cho_solve

    system = cho_factor(whole[np.ix_(train, train)] + np.eye(len(train)), overwrite_a=True)
    dual = cho_solve(system, T[train])
    across = whole[np.ix_(test, train)]
    residual = across @ dual - T[test]
    adjoint = cho_solve(system, across.T @ residual)
    # d error / d w_l = 2 <residual, K_l[test, train] dual> - 2 <adjoint, K_l[train, train] dual>
    left = np.zeros((len(T), T.shape[1]))
    left[test], left[train] = residual, -adjoint
    right = np.zeros_like(left)
    right[train] = dual
    slope = np.array([2.0 * np.vdot(left, kernel @ right) for kernel in kernels])
    return float(np.square(residual).sum()), slope
