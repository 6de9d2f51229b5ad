"""Word counts as the baseline of text: a tf-idf classifier on the folds of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError
from spile.probing.result import ProbeRow
from spile.probing.scoring import evaluate_fitted, mean_and_error
from spile.probing.task import Task

Array = npt.NDArray[Any]

POINT = "tf-idf"
_PENALTIES = (1.0, 10.0, 100.0)


def tfidf_row(texts: Sequence[str], task: Task, *, rows: int) -> ProbeRow:
    """The row of the table; `texts` has one a row of the store, of which there are `rows`."""
    if len(texts) != rows:
        raise ProbeError(f"texts has {len(texts)} entries, but the store has {rows} rows: one a row")
    evaluation = evaluate_fitted(
        task, as_array([texts[i] for i in task.rows]), lambda X, y: fit_tfidf(X, y, task)
    )
    score, stderr = mean_and_error(evaluation.fold_scores, task.n_folds)
    return ProbeRow(
        point=POINT,
        score=score,
        stderr=stderr,
        fold_scores=evaluation.fold_scores,
        baseline="tfidf",
        note="words and pairs of words, no network",
    )


def fit_tfidf(texts: Array, y: Array, task: Task) -> Any:
    """Words and pairs of words, weighted, into a linear model whose penalty the given rows choose.

    Vocabulary and weights are those of these texts alone.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    if task.kind == "numbers":
        return make_pipeline(words, RidgeCV(np.logspace(-2, 2, 9))).fit(texts, y)
    if task.kind == "multilabel":
        return make_pipeline(words, OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1000))).fit(
            texts, y
        )
    model = make_pipeline(words, LogisticRegression(max_iter=1000))
    parts = min(3, int(np.unique(y, return_counts=True)[1].min()))
    if parts < 2:
        return model.set_params(logisticregression__C=10.0).fit(texts, y)
    grid = {"logisticregression__C": list(_PENALTIES)}
    return GridSearchCV(model, grid, cv=parts).fit(texts, y).best_estimator_


def as_array(texts: Sequence[str]) -> Array:
    """(n,) of objects, so that rows can be picked."""
    return np.array(list(texts), dtype=object)
