"""How predictions are scored. Of every metric, higher is better; names are scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError, nearest

Array = npt.NDArray[Any]
Kind = Literal["classes", "multilabel", "numbers"]
"""What is predicted: one class of several, any number of labels, or a number."""
Metric = str | Callable[[Array, Array], float]
"""A name, or a function of true and predicted labels, higher is better."""

NAMES: dict[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "balanced_accuracy", "roc_auc", "neg_log_loss"),
    "multilabel": ("average_precision", "roc_auc", "accuracy"),
    "numbers": ("r2",),
}
"""The metrics for each kind of label, the default first."""
ALL = tuple(dict.fromkeys(name for names in NAMES.values() for name in names))

_LEAST = 1e-15
"""Probabilities of 0 are taken as this, else one of them would make the log loss infinite."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """A metric. `classes` are always the (c,) sorted labels, or class numbers, that the columns stand for."""

    name: str
    function: Callable[[Array, Array], float] | None = None
    """A user's own, of true and predicted labels."""

    @property
    def needs(self) -> Literal["labels", "scores", "probabilities"]:
        """What of a fitted model the metric is computed from."""
        if self.function is None and self.name == "neg_log_loss":
            return "probabilities"
        ranks = self.function is None and self.name in ("roc_auc", "average_precision")
        return "scores" if ranks else "labels"

    def answers(self, fit: Any, X: Array, classes: Array | None) -> Array:
        """What the metric needs of a model for rows (n, d): (n,) labels or numbers, or (n, c) scores.

        A class that the model has never seen keeps its column.
        """
        if self.needs == "labels":
            return np.asarray(fit.predict(X))
        gives = hasattr(fit, "predict_proba")
        if self.needs == "probabilities" and not gives:
            raise ProbeError(
                f"metric='neg_log_loss' needs probabilities, which {named(fit)} does not give. Type: "
                "metric='roc_auc', or estimator='logistic'"
            )
        values = np.asarray((fit.predict_proba if gives else fit.decision_function)(X), dtype=np.float64)
        if values.ndim == 1:
            values = np.stack([-values, values], axis=1)
        assert classes is not None
        if values.shape[1] == len(classes):
            return values
        filled = np.full((len(values), len(classes)), 0.0 if gives else values.min(initial=0.0))
        filled[:, np.searchsorted(classes, fit.classes_)] = values
        return filled

    def score(self, y: Array, answers: Array, classes: Array | None) -> float:
        """The score of `answers` for labels `y`: (n,), or (n, c) of 0 and 1 where a row has several."""
        if self.function is not None:
            return float(self.function(y, answers))
        if self.name == "accuracy":  # over few rows, scikit-learn's checks would cost more than the fits
            same = np.asarray(y) == np.asarray(answers)
            return float(same.mean() if same.ndim == 1 else same.all(axis=1).mean())
        if self.needs == "scores":
            return self._mean_over_columns(y, answers, classes)
        from sklearn import metrics

        if self.name == "balanced_accuracy":
            # what balanced_accuracy_score is, without its warning about classes that are only predicted
            return float(metrics.recall_score(y, answers, labels=np.unique(y), average="macro"))
        if self.name == "neg_log_loss":
            given = np.where(_membership(y, classes), answers, 0.0).sum(axis=1)
            return float(np.log(np.maximum(given, _LEAST)).mean())
        return float(metrics.r2_score(y, answers))

    def _mean_over_columns(self, y: Array, scores: Array, classes: Array | None) -> float:
        """Each class against the rest, averaged over those that have rows on both sides; 0.5 if none has."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        function = roc_auc_score if self.name == "roc_auc" else average_precision_score
        truth: Array = y > 0 if y.ndim == 2 else _membership(y, classes)
        both = np.asarray(truth.any(axis=0) & ~truth.all(axis=0))
        if scores.shape[1] == 2 and y.ndim == 1:
            both[0] = False
        found = [function(truth[:, column], scores[:, column]) for column in np.flatnonzero(both)]
        return float(np.mean(found)) if found else 0.5


def named(fit: Any) -> str:
    """The name of a fitted estimator, of a pipeline that of its last step."""
    return type(fit[-1] if hasattr(fit, "__getitem__") else fit).__name__


def _membership(y: Array, classes: Array | None) -> Array:
    """(n, c) whether a row is of a class; all false for a class that is not among them."""
    member: Array = np.asarray(y)[:, None] == np.asarray(classes)[None, :]
    return member


def scorer_for(metric: Metric, kind: Kind) -> Scorer:
    """The scorer of a metric for a kind of labels; ``"auto"`` is the first of `NAMES`.

    Raises `ProbeError` for a metric that is unknown or that does not fit the labels.
    """
    if callable(metric):
        return Scorer(getattr(metric, "__name__", type(metric).__name__), metric)
    if metric == "auto":
        return Scorer(NAMES[kind][0])
    if metric not in ALL:
        choices = ", ".join(map(repr, ("auto", *ALL)))
        guess = nearest(str(metric), ALL, n=1)[0]
        raise ProbeError(
            f"unknown metric {metric!r}. Allowed: {choices}, or a function of true and predicted labels. "
            f"Type: metric={guess!r}"
        )
    if metric not in NAMES[kind]:
        what = {"classes": "classes", "multilabel": "several labels a row", "numbers": "numbers"}[kind]
        allowed = ", ".join(map(repr, NAMES[kind]))
        raise ProbeError(f"metric={metric!r} is not for {what}. Allowed: {allowed}. Type: metric='auto'")
    return Scorer(metric)
