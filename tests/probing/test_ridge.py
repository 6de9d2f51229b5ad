from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spile.errors import ProbeError
from spile.probing.ridge import (
    RELATIVE_ALPHAS,
    Moments,
    cross_fit_moments,
    fit_moments,
    fit_ridge,
    loo_residuals,
    solve,
    standardize,
    targets,
)

RNG = np.random.default_rng(7)


def brute_force_loo(Z: np.ndarray, T: np.ndarray, alpha: float) -> np.ndarray:
    """Refit without each row, intercept included."""
    residuals = []
    for i in range(len(Z)):
        rest = np.arange(len(Z)) != i
        x, t = Z[rest].mean(axis=0), T[rest].mean(axis=0)
        coef = solve(Z[rest] - x, T[rest] - t, alpha)
        residuals.append(T[i] - t - (Z[i] - x) @ coef)
    return np.array(residuals)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("n", "d"), [(40, 200), (200, 40), (60, 60)])
@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_decision_values_are_those_of_scikit_learn(blobs, n, d, classes, alpha):
    X, y = blobs(n, d, classes=classes)
    X = X * RNG.uniform(0.1, 10, d) + RNG.normal(size=d) * 5
    new = X[:20] + RNG.normal(size=(20, d))
    ours = fit_ridge(X, y, classes=np.arange(classes), alphas=[alpha])
    theirs = make_pipeline(StandardScaler(), RidgeClassifier(alpha)).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(new), theirs.decision_function(new), atol=1e-6)
    assert ours.decision_function(new).shape == ((20,) if classes == 2 else (20, classes))
    assert (ours.predict(new) == theirs.predict(new)).all()
    assert ours.alpha == alpha
    assert not ours.at_edge


def test_regression_is_that_of_scikit_learn():
    X = RNG.normal(size=(50, 8))
    y = X @ RNG.normal(size=8) + 100
    theirs = make_pipeline(StandardScaler(), Ridge(2.0)).fit(X, y)
    np.testing.assert_allclose(fit_ridge(X, y, alphas=[2.0]).predict(X), theirs.predict(X), atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(25, 60), (25, 25), (60, 25), (26, 25)])
def test_leave_one_out_is_exact(blobs, n, d):
    X, y = blobs(n, d)
    Z, _, _ = standardize(X)
    T = targets(y, np.arange(3))
    alphas = np.array([1e-3, 1.0, 1e3])
    for alpha, residuals in zip(alphas, loo_residuals(Z, T, alphas), strict=True):
        np.testing.assert_allclose(residuals, brute_force_loo(Z, T, alpha), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(30, 80), (80, 30)])
def test_alpha_has_the_least_leave_one_out_error_of_the_grid(blobs, n, d):
    X, y = blobs(n, d, spread=0.7)
    Z, _, _ = standardize(X)
    T = targets(y, np.arange(3))
    grid = RELATIVE_ALPHAS * n * d
    errors = [np.square(brute_force_loo(Z, T, alpha)).sum() for alpha in grid]
    fit = fit_ridge(X, y, classes=np.arange(3))
    assert fit.alpha == pytest.approx(grid[np.argmin(errors)])
    assert not fit.at_edge


def test_alpha_at_the_edge_of_the_grid_is_flagged():
    X = RNG.normal(size=(100, 5))
    exact = X @ np.ones(5)
    assert fit_ridge(X, exact).at_edge
    assert fit_ridge(X, exact, alphas=[1.0, 10.0]).alpha == 1.0


def test_float16_activations_are_accumulated_in_float64():
    X = RNG.normal(20, 0.05, size=(2048, 6)).astype(np.float16)
    y = np.arange(2048) % 2
    T = targets(y, np.arange(2))
    assert np.isinf(np.einsum("ni,nj->ij", X, X, dtype=np.float16)).any()
    exact = X.astype(np.longdouble)
    exact -= exact.mean(axis=0)
    gram = (exact.T @ exact).astype(np.float64)
    moments = Moments.zeros(6, 1)
    for start in range(0, 2048, 300):
        moments = moments.update(X[start : start + 300], T[start : start + 300])
    np.testing.assert_allclose(moments.xx, gram, rtol=1e-8, atol=1e-8 * gram.max())
    reference = make_pipeline(StandardScaler(), RidgeClassifier(3.0)).fit(X.astype(np.float64), y)
    fit = fit_ridge(X, y, classes=np.arange(2), alphas=[3.0])
    np.testing.assert_allclose(
        fit.decision_function(X), reference.decision_function(X.astype(np.float64)), atol=1e-8
    )


def test_features_far_from_zero_keep_their_variance():
    X = 1e7 + RNG.normal(size=(500, 3))
    moments = Moments.of(X[:100], X[:100, :1]) + Moments.of(X[100:], X[100:, :1])
    centred = X - X.mean(axis=0)
    np.testing.assert_allclose(moments.xx, centred.T @ centred, rtol=1e-6)


def test_a_feature_that_does_not_vary_in_training_has_no_say(blobs):
    X, y = blobs(30, 10)
    X[:, 3], X[:, 4] = 0.1, 0.0
    fit = fit_ridge(X, y, classes=np.arange(3))
    wild = X.copy()
    wild[:, 3:5] = 1e6
    assert (fit.coef[3:5] == 0).all()
    assert (fit.decision_function(wild) == fit.decision_function(X)).all()
    assert np.isfinite(fit.predict_proba(np.zeros((2, 10)))).all()
    nothing = fit_ridge(np.ones((30, 4)), y, classes=np.arange(3))
    assert np.isfinite(nothing.predict_proba(np.zeros((2, 4)))).all()


def test_the_scale_of_a_feature_does_not_matter(blobs):
    X, y = blobs(60, 20)
    scaled = X * np.where(np.arange(20) < 10, 1e4, 1.0)
    fit, other = fit_ridge(X, y, classes=np.arange(3)), fit_ridge(scaled, y, classes=np.arange(3))
    np.testing.assert_allclose(fit.decision_function(X), other.decision_function(scaled), atol=1e-9)


def test_one_row_alone_is_predicted_as_in_a_batch(blobs):
    X, y = blobs(60, 20)
    fit = fit_ridge(X, y, classes=np.arange(3))
    alone = np.concatenate([fit.decision_function(row[None]) for row in X])
    np.testing.assert_allclose(alone, fit.decision_function(X), atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_agree_with_predictions(blobs, classes):
    X, y = blobs(40, 6, classes=classes, spread=0.5)
    names = np.array(["bee", "cow", "eel"])[:classes]
    fit = fit_ridge(X, names[y], classes=names)
    probability = fit.predict_proba(X)
    assert probability.shape == (40, classes)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert (names[probability.argmax(axis=1)] == fit.predict(X)).all()
    with pytest.raises(ProbeError, match="regression"):
        fit_ridge(X, X[:, 0]).predict_proba(X)


def test_a_class_without_rows_keeps_its_column(blobs):
    X, y = blobs(30, 5, classes=2)
    fit = fit_ridge(X, y * 2, classes=np.arange(3))
    assert fit.decision_function(X).shape == (30, 3)
    assert (fit.decision_function(X)[:, 1] == -1).all()
    assert 1 not in fit.predict(X)
    moments = fit_moments(
        [Moments.of(X[i::3], targets(y[i::3] * 2, np.arange(3))) for i in range(3)], classes=np.arange(3)
    )
    np.testing.assert_allclose(moments.decision_function(X)[:, 1], -1)


def test_moments_do_not_depend_on_how_rows_are_batched(blobs):
    X, y = blobs(100, 6)
    T = targets(y, np.arange(3))
    whole, parts = Moments.of(X, T), Moments.zeros(6, 3)
    for start, stop in ((0, 1), (1, 1), (1, 60), (60, 100)):
        before = parts.xx.copy()
        updated = parts.update(X[start:stop], T[start:stop])
        assert (parts.xx == before).all()
        parts = updated
    for name in ("count", "mean_x", "mean_y", "xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-9)


def fold_moments(X: np.ndarray, y: np.ndarray, held_out: np.ndarray, classes: np.ndarray) -> list[Moments]:
    folds = np.unique(held_out)
    return [Moments.of(X[held_out == k], targets(y[held_out == k], classes)) for k in folds]


def test_fit_from_moments_is_the_fit_with_the_best_k_fold_alpha(blobs):
    X, y = blobs(90, 12)
    classes, held_out = np.arange(3), np.arange(90) % 4
    errors = np.zeros(len(RELATIVE_ALPHAS))
    for k in range(4):
        train, test = held_out != k, held_out == k
        for i, relative in enumerate(RELATIVE_ALPHAS):
            fit = fit_ridge(X[train], y[train], classes=classes, alphas=[relative * train.sum() * 12])
            errors[i] += np.square(targets(y[test], classes) - fit.decision_function(X[test])).sum()
    fit = fit_moments(fold_moments(X, y, held_out, classes), classes=classes)
    assert fit.alpha == pytest.approx(RELATIVE_ALPHAS[np.argmin(errors)] * 90 * 12)
    same = fit_ridge(X, y, classes=classes, alphas=[fit.alpha])
    np.testing.assert_allclose(fit.decision_function(X), same.decision_function(X), atol=1e-9)


def test_cross_fit_is_the_fit_on_the_other_folds(blobs):
    X, y = blobs(90, 12)
    classes, held_out = np.arange(3), np.arange(90) % 5
    folds = fold_moments(X, y, held_out, classes)
    for k, fit in enumerate(cross_fit_moments(folds, classes=classes)):
        expected = fit_moments([fold for j, fold in enumerate(folds) if j != k], classes=classes)
        assert fit.alpha == pytest.approx(expected.alpha)
        np.testing.assert_allclose(fit.coef, expected.coef, atol=1e-10)


def test_held_out_rows_leave_no_trace_in_moments(blobs):
    X, y = blobs(80, 6)
    classes, held_out = np.arange(3), np.arange(80) % 4
    X[:, 2] = np.where(held_out == 1, RNG.normal(size=80) * 1e3, 5.0)
    fits = cross_fit_moments(fold_moments(X, y, held_out, classes), classes=classes)
    assert (fits[1].coef[2] == 0).all()
    wild = np.where((held_out == 1)[:, None], X * -1e5 + 77, X)
    again = cross_fit_moments(
        fold_moments(wild, np.where(held_out == 1, 0, y), held_out, classes), classes=classes
    )
    for name in ("mean", "scale", "coef", "intercept", "alpha"):
        assert np.array_equal(getattr(fits[1], name), getattr(again[1], name)), name
