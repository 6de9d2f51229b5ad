"""Fitted heads as plain arrays say what the fits say: the reference for what is written into a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC

from spile.errors import ModelError
from spile.probing.heads import fit_head
from spile.probing.plain_heads import plain_head
from spile.probing.ridge import fit_ridge

NAMES = ("svm", "linear_svm", "logistic", "lda", "knn")


def fitted(estimator: Any, X: Any, y: Any, *, kind: Any = "classes", calibrate: bool = False) -> Any:
    if estimator == "ridge":
        classes = {"numbers": None, "multilabel": np.arange(3)}.get(kind, np.unique(y))
        return fit_ridge(X, y, classes=classes, calibrate=calibrate)
    return fit_head(estimator, X, y, kind=kind, calibrate=calibrate)


def expected_scores(fit: Any, X: Any) -> Any:
    """Probabilities where the fit gives them, else its decision values with a column a class."""
    if hasattr(fit, "predict_proba"):
        return fit.predict_proba(X)
    values = np.asarray(fit.decision_function(X))
    return np.stack([-values, values], axis=1) if values.ndim == 1 else values


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("name", ["ridge", *NAMES, SVC(kernel="linear", break_ties=True)])
def test_classes(blobs: Any, name: Any, classes: int, calibrate: bool) -> None:
    X, y = blobs(120, 6, classes=classes, spread=1.2)
    fit = fitted(name, X, np.array(["ant", "bee", "cow", "dog"])[y], calibrate=calibrate)
    new = blobs(200, 6, classes=classes, spread=1.2, seed=9)[0]
    plain = plain_head(fit, unit_rows=False)
    scores = plain(new)
    assert scores.shape == (200, classes)
    np.testing.assert_array_equal(plain.answers(scores), fit.predict(new))
    np.testing.assert_allclose(scores, expected_scores(fit, new), atol=1e-6)
    assert (plain.link == "none") == (not hasattr(fit, "predict_proba"))


@pytest.mark.parametrize("name", ["ridge", *NAMES])
def test_several_labels_a_row(name: str) -> None:
    rng = np.random.default_rng(0)
    Y = rng.integers(0, 2, (100, 3))
    X = rng.normal(size=(100, 6))
    X[:, :3] += 1.5 * Y
    fit = fitted(name, X, Y, kind="multilabel")
    plain = plain_head(fit, unit_rows=False, classes=("a", "b", "c"))
    new = rng.normal(size=(150, 6)) + 0.7
    scores = plain(new)
    assert plain.several
    assert plain.labels == (("a", "b", "c") if name != "ridge" else (0, 1, 2))
    np.testing.assert_array_equal(plain.answers(scores), fit.predict(new))
    np.testing.assert_allclose(scores, expected_scores(fit, new), atol=1e-6)


@pytest.mark.parametrize("name", ["ridge", "svm", "linear_svm", "knn", KNeighborsRegressor(4)])
def test_numbers(name: Any) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4))
    y = X[:, 0] * 2 + rng.normal(size=80) * 0.1
    fit = fitted(name, X, y, kind="numbers")
    new = rng.normal(size=(50, 4))
    plain = plain_head(fit, unit_rows=False)
    assert plain.labels is None
    np.testing.assert_allclose(plain.answers(plain(new)), fit.predict(new), atol=1e-6)


def test_a_sample_that_is_one_of_the_neighbours_has_its_label() -> None:
    """Distance 0 has a weight without bound: one over it would be NaN."""
    X = np.repeat(np.random.default_rng(0).normal(size=(10, 3)), 2, axis=0)
    y = np.arange(20) % 2
    y[:4] = [0, 0, 1, 1]
    fit = fit_head(KNeighborsClassifier(4, weights="distance"), X, y, kind="classes")
    plain = plain_head(fit, unit_rows=False)
    np.testing.assert_allclose(plain(X), fit.predict_proba(X))
    np.testing.assert_allclose(plain(X[:4]), [[1, 0], [1, 0], [0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            HistGradientBoostingClassifier(max_iter=3),
            r"a tree jumps where a feature crosses a threshold.*Type: head='ridge'",
        ),
        (SVC(), r"settles ties between classes by their order.*Type: SVC\(break_ties=True\), or head='svm'"),
        (SVC(kernel="poly"), r"SVC cannot be written into a network; ridge, svm, .*spile.load\('run'\)"),
        (KNeighborsClassifier(metric="cosine"), r"KNeighborsClassifier cannot be written into a network"),
    ],
)
def test_what_a_network_cannot_hold(blobs: Any, estimator: Any, message: str) -> None:
    X, y = blobs(60, 4)
    with pytest.raises(ModelError, match=message):
        plain_head(fit_head(estimator, X, y, kind="classes"), unit_rows=False)
