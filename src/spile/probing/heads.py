"""Downstream models by name: what is fitted on the features once the layer is chosen, or in place of ridge.

Each stands behind a scaler that the training rows alone set, and its own penalty is chosen by
cross-validation inside the training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError, nearest
from spile.probing.metrics import Kind

Array = npt.NDArray[Any]

NAMES = ("ridge", "svm", "linear_svm", "logistic", "knn", "lda", "hist_gradient_boosting")
"""``svm`` has an RBF kernel. ``logistic`` and ``lda`` are for classes only."""

_CLASSES_ONLY = ("logistic", "lda")
_PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
_FEATURES = 100
"""Penalties of linear models are for so many features; they are divided by the width over this."""


def check_name(estimator: Any, kind: Kind | None = None) -> None:
    """Raise `ProbeError` where `estimator` is neither a name that fits nor a scikit-learn estimator."""
    if isinstance(estimator, str):
        allowed = [name for name in NAMES if kind != "numbers" or name not in _CLASSES_ONLY]
        if estimator not in allowed:
            guess = nearest(estimator, allowed, n=1)[0]
            what = " for numbers" if estimator in NAMES else ""
            raise ProbeError(
                f"unknown estimator {estimator!r}{what}. Allowed: {', '.join(map(repr, allowed))}, or a "
                f"scikit-learn estimator such as sklearn.svm.SVC(). Type: estimator={guess!r}"
            )
        return
    needed = ("fit", "predict", "get_params")
    if isinstance(estimator, type) or not all(hasattr(estimator, name) for name in needed):
        raise ProbeError(
            f"unknown estimator {estimator!r}. Type: estimator='ridge', or a scikit-learn estimator such as "
            "estimator=sklearn.svm.SVC()"
        )


def fit_head(estimator: Any, X: Array, y: Array, *, kind: Kind, calibrate: bool = False) -> Any:
    """Fit a named or a scikit-learn estimator on features `X` (n, d) behind a scaler: a pipeline.

    With `calibrate` (classes only) its probabilities are mapped by Platt's sigmoid, fitted on held-out parts
    of the rows; the model itself is fitted on all of them.
    """
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = X.astype(np.promote_types(X.dtype, np.float32), copy=False)
    scaler = StandardScaler().fit(X)
    Z = scaler.transform(X)
    model, grid = (
        _build(estimator, kind, X.shape[1]) if isinstance(estimator, str) else (clone(estimator), {})
    )
    parts = _parts(y, kind)
    if grid and parts > 1:
        model = _chosen(model, grid, Z, y, parts)
    if kind == "multilabel":
        from sklearn.multiclass import OneVsRestClassifier

        model = OneVsRestClassifier(model)
    elif calibrate and kind == "classes" and parts > 1:
        from sklearn.calibration import CalibratedClassifierCV

        model = CalibratedClassifierCV(model, method="sigmoid", cv=parts, ensemble=False)
    return make_pipeline(scaler, model.fit(Z, y))


def _parts(y: Array, kind: Kind) -> int:
    """Parts for choosing a penalty inside the training rows; less than two where there are too few."""
    if kind == "numbers":
        return min(3, len(y) // 2)
    if kind == "multilabel":
        return min(3, len(y))
    return min(3, int(np.unique(y, return_counts=True)[1].min()))


def _chosen(model: Any, grid: Mapping[str, Any], Z: Array, y: Array, parts: int) -> Any:
    """The model with the penalty that does best in cross-validation, not fitted."""
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    if y.ndim == 2:  # each label has its own estimator; the first that varies most decides for all
        y = y[:, int(np.argmin(np.abs(y.mean(axis=0) - 0.5)))]
        parts = min(parts, int(np.bincount(y, minlength=2).min()))
        if parts < 2:
            return model
    search = GridSearchCV(model, dict(grid), cv=parts, refit=False).fit(Z, y)
    return clone(model).set_params(**search.best_params_)


def _build(name: str, kind: Kind, width: int) -> tuple[Any, dict[str, Any]]:
    """The estimator of a name for features of a `width`, and the grid of what is chosen by validation."""
    from sklearn import discriminant_analysis, ensemble, linear_model, neighbors, svm

    numbers = kind == "numbers"
    linear = {"C": [c * _FEATURES / width for c in _PENALTIES]}
    kernel = {"C": [0.1, 1.0, 10.0, 100.0]}
    near = {"n_neighbors": [1, 3, 5, 9], "weights": ["distance"]}
    if name == "svm":
        # With ties broken the label is the largest score, which is what an exported file has.
        return (svm.SVR() if numbers else svm.SVC(break_ties=True)), kernel
    if name == "linear_svm":
        made = (
            svm.LinearSVR(loss="squared_epsilon_insensitive", dual="auto")
            if numbers
            else svm.LinearSVC(dual="auto")
        )
        return made.set_params(max_iter=5000), linear
    if name == "logistic":
        return linear_model.LogisticRegression(max_iter=1000), linear
    if name == "knn":
        # Without a search tree, whose indices a saved file could forge.
        made = neighbors.KNeighborsRegressor() if numbers else neighbors.KNeighborsClassifier()
        return made.set_params(algorithm="brute"), near
    if name == "lda":
        return discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), {}
    boosting = ensemble.HistGradientBoostingRegressor if numbers else ensemble.HistGradientBoostingClassifier
    return boosting(random_state=0), {}
