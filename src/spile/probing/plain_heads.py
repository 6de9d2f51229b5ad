"""Fitted heads as `PlainHead`, where they are made of what a network can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ModelError
from spile.plain import Kernel, Linear, Link, Nearest, PlainHead
from spile.probing.logits import Logits
from spile.probing.metrics import named
from spile.probing.ridge import RidgeFit

Array = npt.NDArray[Any]

_SOFTMAX = ("LogisticRegression", "LinearDiscriminantAnalysis")
_DECISIONS = ("LinearSVC", "RidgeClassifier", "RidgeClassifierCV", "SGDClassifier", "Perceptron")
_NEIGHBOURS = ("KNeighborsClassifier", "KNeighborsRegressor")
_REMEDY = "Type: head='ridge', or use the saved folder: spile.load('run')"


@dataclass(frozen=True, eq=False)
class _Raw:
    """What a fitted estimator computes on scaled features, before anything that depends on the use of it."""

    model: Linear | Kernel | Nearest
    link: Link
    """Of the columns, once there is one a class."""
    pairs: bool = False


def plain_head(head: Any, *, unit_rows: bool, classes: Sequence[Any] | None = None) -> PlainHead:
    """The head as plain arrays; it gives the probabilities that `head` gives, or else decision values.

    `unit_rows`: it was fitted on rows of length 1. `classes` are its labels where it knows only numbers.
    Raises `ModelError` for a head that a network cannot hold.
    """
    if isinstance(head, RidgeFit):
        return _from_ridge(head, unit_rows=unit_rows)
    if isinstance(head, Logits):
        zeros, ones = np.zeros(len(head.classes)), np.ones(len(head.classes))
        same = Linear(np.diag(ones), zeros)
        return PlainHead(zeros, ones, same, "softmax", tuple(head.classes.tolist()), False)
    scaler, model = (head[0], head[-1]) if hasattr(head, "__getitem__") and len(head) == 2 else (None, head)
    made = None if scaler is None or not hasattr(scaler, "mean_") else _converted(model)
    if scaler is None or made is None:
        raise ModelError(_refusal(named(head)))
    own = tuple(np.asarray(model.classes_).tolist()) if hasattr(model, "classes_") else None
    mean, scale = np.asarray(scaler.mean_, np.float64), np.asarray(scaler.scale_, np.float64)
    labels = tuple(classes) if made.several and classes is not None else own
    return replace(made, mean=mean, scale=scale, labels=labels, unit_rows=unit_rows)


def _refusal(name: str) -> str:
    if "GradientBoosting" in name or "Forest" in name or "Tree" in name:
        return (
            f"{name} cannot be written into a network: a tree jumps where a feature crosses a threshold, so "
            f"a last bit that another runtime rounds otherwise changes its answer. {_REMEDY}"
        )
    return (
        f"{name} cannot be written into a network; ridge, svm, linear_svm, logistic, lda and knn can, "
        f"calibrated or not. {_REMEDY}"
    )


def _from_ridge(head: RidgeFit, *, unit_rows: bool) -> PlainHead:
    coef, intercept = head.coef, head.intercept
    made = PlainHead(head.mean, head.scale, Linear(coef, intercept), "none", None, unit_rows)
    if head.classes is None:
        return made
    temperature = head.temperature or 1.0
    model: Linear | Kernel | Nearest = Linear(coef / temperature, intercept / temperature)
    labels = tuple(head.classes.tolist())
    if head.multilabel:
        return replace(made, model=model, link="logistic", labels=labels, several=True)
    if coef.shape[1] == 1:
        model = _both(model, 1.0)
    return replace(made, model=model, link="softmax", labels=labels)


def _converted(model: Any) -> PlainHead | None:
    """A head on features that are scaled already, without labels; ``None`` where it cannot be."""
    kind = type(model).__name__
    if kind == "CalibratedClassifierCV":
        return _calibrated(model)
    if kind == "OneVsRestClassifier":
        return _several(model)
    raw = _raw(model)
    if raw is None:
        return None
    if raw.pairs and not getattr(model, "break_ties", True):
        raise ModelError(
            f"{kind} settles ties between classes by their order, which its scores do not show. Type: "
            f"{kind}(break_ties=True), or head='svm'"
        )
    inner = raw.model
    if hasattr(model, "classes_") and not isinstance(inner, Nearest) and inner.coef.shape[1] == 1:
        inner = _both(inner, 0.5 if raw.link == "softmax" else 1.0)
    if isinstance(inner, Nearest) and hasattr(model, "classes_") and inner.values.shape[1] == 1:
        inner = replace(inner, values=np.concatenate([1 - inner.values, inner.values], axis=1))
    return _head(inner, raw.link, pairs=raw.pairs)


def _head(model: Linear | Kernel | Nearest, link: Link, **more: Any) -> PlainHead:
    nothing = np.empty(0)
    return PlainHead(nothing, nothing, model, link, None, False, **more)


def _both(model: Linear | Kernel | Nearest, half: float) -> Linear | Kernel | Nearest:
    """Two columns, -v and v times `half`, of the one column that tells two classes apart.

    The softmax of (-v/2, v/2) is the sigmoid of v.
    """
    if isinstance(model, Nearest):
        return replace(model, values=half * np.concatenate([-model.values, model.values], axis=1))
    coef, intercept = model.coef, model.intercept
    both = np.concatenate([-intercept, intercept])
    return replace(model, coef=half * np.concatenate([-coef, coef], axis=1), intercept=half * both)


def _raw(model: Any) -> _Raw | None:
    """One column of two classes, one a class of more or (`pairs`) one a pair of them; or numbers."""
    kind = type(model).__name__
    if kind in _NEIGHBOURS:
        return _neighbours(model)
    if kind in ("SVC", "SVR"):
        return _machine(model)
    if not hasattr(model, "coef_") or np.ndim(model.coef_) > 2:
        return None
    if hasattr(model, "classes_") and kind not in (*_SOFTMAX, *_DECISIONS):
        return None
    return _Raw(_linear(model), "softmax" if kind in _SOFTMAX else "none")


def _linear(model: Any) -> Linear:
    coef = np.atleast_2d(np.asarray(model.coef_, np.float64)).T
    intercept = np.broadcast_to(np.asarray(model.intercept_, np.float64).reshape(-1), coef.shape[1:])
    return Linear(coef, intercept)


def _machine(model: Any) -> _Raw | None:
    """A support vector machine: of more than two classes one decision value a pair, as libsvm has them."""
    counts = np.asarray(model.n_support_) if hasattr(model, "classes_") else np.empty(0, int)
    pairs = len(counts) > 2
    if pairs and model.decision_function_shape != "ovr":
        return None
    if model.kernel == "linear":
        return _Raw(_linear(model), "none", pairs)
    if model.kernel != "rbf" or not isinstance(model.support_vectors_, np.ndarray):
        return None
    dual = np.asarray(model.dual_coef_, np.float64)
    coef = _of_pairs(dual, counts) if pairs else dual.T
    rows = np.asarray(model.support_vectors_, np.float64)
    intercept = np.asarray(model.intercept_, np.float64).reshape(-1)
    return _Raw(Kernel(rows, float(model._gamma), coef, intercept), "none", pairs)


def _of_pairs(dual: Array, counts: Array) -> Array:
    """(vectors, pairs) coefficients from libsvm's (classes - 1, vectors), whose rows pairs share."""
    ends = np.cumsum(counts)
    mine = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    columns = []
    for first in range(len(counts)):
        for second in range(first + 1, len(counts)):
            column = np.zeros(dual.shape[1])
            column[mine[first]] = dual[second - 1, mine[first]]
            column[mine[second]] = dual[first, mine[second]]
            columns.append(column)
    return np.stack(columns, axis=1)


def _neighbours(model: Any) -> _Raw | None:
    plain = model.weights in ("uniform", "distance") and model.effective_metric_ == "euclidean"
    if not plain or not isinstance(model._fit_X, np.ndarray) or np.ndim(model._y) > 1:
        return None
    values = np.asarray(model._y, np.float64)[:, None]
    if hasattr(model, "classes_"):
        columns = np.arange(len(model.classes_)) if len(model.classes_) > 2 else np.array([1])
        values = (values == columns).astype(np.float64)
    rows = np.asarray(model._fit_X, np.float64)
    return _Raw(Nearest(rows, values, int(model.n_neighbors), model.weights == "distance"), "shares")


def _calibrated(model: Any) -> PlainHead | None:
    """Platt's sigmoid of the decision value of each class, scaled to sum to 1."""
    if len(model.calibrated_classifiers_) != 1:
        return None
    calibrated = model.calibrated_classifiers_[0]
    raw = _raw(calibrated.estimator)
    if raw is None or any(not hasattr(one, "a_") for one in calibrated.calibrators):
        return None
    slope = -np.array([float(one.a_) for one in calibrated.calibrators])
    offset = -np.array([float(one.b_) for one in calibrated.calibrators])
    if len(slope) > 1:
        return _head(raw.model, "normalised", pairs=raw.pairs, slope=slope, offset=offset)
    shift = 0.5 * np.concatenate([-offset, offset])
    return _head(_both(raw.model, 0.5), "softmax", slope=np.repeat(slope, 2), offset=shift)


def _several(model: Any) -> PlainHead | None:
    """One estimator a label, all of one kind, as one model with a column a label."""
    raws = [raw for raw in map(_raw, model.estimators_) if raw is not None and not raw.pairs]
    if not model.multilabel_ or len(raws) < len(model.estimators_):
        return None
    joined = _beside([raw.model for raw in raws])
    link: Link = "logistic" if raws[0].link == "softmax" else raws[0].link
    return None if joined is None else _head(joined, link, several=True)


def _beside(models: Sequence[Linear | Kernel | Nearest]) -> Linear | Kernel | Nearest | None:
    if all(isinstance(one, Linear) for one in models):
        coef = np.concatenate([one.coef for one in models if isinstance(one, Linear)], axis=1)
        return Linear(coef, np.concatenate([one.intercept for one in models if isinstance(one, Linear)]))
    kernels = [one for one in models if isinstance(one, Kernel)]
    if len(kernels) == len(models) and len({one.gamma for one in kernels}) == 1:
        rows, at = np.unique(np.concatenate([one.rows for one in kernels]), axis=0, return_inverse=True)
        coef, start = np.zeros((len(rows), len(kernels))), 0
        for column, one in enumerate(kernels):  # labels share most of their vectors
            mine = at.reshape(-1)[start : start + len(one.rows)]
            np.add.at(coef[:, column], mine, one.coef[:, 0])
            start += len(one.rows)
        return Kernel(rows, kernels[0].gamma, coef, np.concatenate([one.intercept for one in kernels]))
    near = [one for one in models if isinstance(one, Nearest)]
    if len(near) == len(models) and len({(one.k, one.by_distance) for one in near}) == 1:
        return replace(near[0], values=np.concatenate([one.values for one in near], axis=1))
    return None
