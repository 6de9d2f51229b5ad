"""Fitted heads as `LinearHead`, where they are linear."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ModelError
from spile.linear import LinearHead, Link
from spile.probing.logits import Logits
from spile.probing.metrics import named
from spile.probing.ridge import RidgeFit

Array = npt.NDArray[Any]

_SOFTMAX = ("LogisticRegression", "LinearDiscriminantAnalysis")
_DECISIONS = ("LinearSVC", "RidgeClassifier", "RidgeClassifierCV", "SGDClassifier", "Perceptron")


def linear_head(head: Any, *, points: int) -> LinearHead:
    """The head as plain arrays; it gives the probabilities that `head` gives, or else decision values.

    `points` is how many points it was fitted on. Raises `ModelError` for a head that is not linear.
    """
    if isinstance(head, RidgeFit):
        return _from_ridge(head, unit_rows=points > 1)
    if isinstance(head, Logits):
        zeros, ones, count = np.zeros(len(head.classes)), np.ones(len(head.classes)), len(head.classes)
        return LinearHead(zeros, ones, np.eye(count), zeros, "softmax", tuple(head.classes.tolist()), False)
    scaler, model = (head[0], head[-1]) if hasattr(head, "__getitem__") and len(head) == 2 else (None, head)
    mean, scale = (None, None) if scaler is None else (scaler.mean_, scaler.scale_)
    columns = _columns(model)
    if columns is None or mean is None:
        raise ModelError(
            f"{named(head)} cannot be written into a network; ridge, logistic, linear_svm and lda can, "
            "calibrated or not. Type: head='ridge', or use the saved folder: spile.load('run')"
        )
    coef, intercept, link = columns
    labels = tuple(np.asarray(model.classes_).tolist()) if hasattr(model, "classes_") else None
    return LinearHead(
        np.asarray(mean, np.float64),
        np.asarray(scale, np.float64),
        coef,
        intercept,
        link,
        labels,
        points > 1,
    )


def _from_ridge(head: RidgeFit, *, unit_rows: bool) -> LinearHead:
    coef, intercept = head.coef, head.intercept
    if head.classes is None:
        return LinearHead(head.mean, head.scale, coef, intercept, "none", None, unit_rows)
    temperature = head.temperature or 1.0
    coef, intercept = coef / temperature, intercept / temperature
    if coef.shape[1] == 1 and not head.multilabel:
        coef, intercept = np.concatenate([-coef, coef], axis=1), np.concatenate([-intercept, intercept])
    labels = tuple(head.classes.tolist())
    link: Link = "logistic" if head.multilabel else "softmax"
    return LinearHead(head.mean, head.scale, coef, intercept, link, labels, unit_rows)


def _columns(model: Any) -> tuple[Array, Array, Link] | None:
    """Coefficients (d, c), intercepts (c,) and the link; ``None`` where the model is not linear."""
    kind = type(model).__name__
    if kind == "CalibratedClassifierCV":
        return _calibrated(model)
    if not hasattr(model, "coef_") or np.ndim(model.coef_) > 2:
        return None
    coef = np.atleast_2d(np.asarray(model.coef_, np.float64)).T
    intercept = np.broadcast_to(np.asarray(model.intercept_, np.float64).reshape(-1), coef.shape[1:])
    if not hasattr(model, "classes_"):
        return coef, intercept, "none"
    if kind not in (*_SOFTMAX, *_DECISIONS):
        return None
    if coef.shape[1] == 1:
        # Of two classes, sigmoid(v) is the softmax of (-v/2, v/2).
        half = 0.5 if kind in _SOFTMAX else 1.0
        coef, intercept = half * np.concatenate([-coef, coef], axis=1), half * np.r_[-intercept, intercept]
    return coef, intercept, "softmax" if kind in _SOFTMAX else "none"


def _calibrated(model: Any) -> tuple[Array, Array, Link] | None:
    """Platt's sigmoid of the decision value of each class, scaled to sum to 1."""
    if len(model.calibrated_classifiers_) != 1:
        return None
    calibrated = model.calibrated_classifiers_[0]
    inner = calibrated.estimator
    if not hasattr(inner, "coef_") or any(not hasattr(c, "a_") for c in calibrated.calibrators):
        return None
    a = np.array([c.a_ for c in calibrated.calibrators])
    b = np.array([c.b_ for c in calibrated.calibrators])
    coef = -a * np.asarray(inner.coef_, np.float64).T
    intercept = -a * np.asarray(inner.intercept_, np.float64).reshape(-1) - b
    if coef.shape[1] == 1:
        half = 0.5
        return half * np.concatenate([-coef, coef], axis=1), half * np.r_[-intercept, intercept], "softmax"
    return coef, intercept, "normalised"
