"""Downstream models by name, metrics of every kind, calibration and several labels a row."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from sklearn.svm import LinearSVC

from spile.errors import ProbeError
from spile.probing import heads, probe, task
from spile.probing.metrics import Scorer
from spile.probing.ridge import fit_ridge


@pytest.fixture
def store(make_store, blobs):
    X, y = blobs(90, 10, spread=2.0)
    names = np.array(["ant", "bee", "cow"])[y]
    return make_store({"good": X, "noise": np.random.default_rng(0).normal(size=(90, 6))}, names)


@pytest.mark.parametrize("name", heads.NAMES)
def test_every_name_is_fitted_on_what_was_extracted_already(store, name):
    result = probe(store, repeats=1, nested=False)
    fit = result.fit(estimator=name)
    assert (fit.predict(store.values["good"]) == store.labels).mean() > 0.85
    assert set(fit.predict(store.values["good"])) <= {"ant", "bee", "cow"}


@pytest.mark.parametrize("name", ["linear_svm", "logistic", "lda"])
def test_a_name_may_search_too(store, name):
    result = probe(store, estimator=name, repeats=1, nested=False)
    assert result.best.point == "good"
    assert result.best.score > 0.8


@pytest.mark.parametrize("name", ["ridge", "svm", "linear_svm", "knn", "hist_gradient_boosting"])
def test_names_for_numbers(make_store, name):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    y = X[:, 0] * 2 + rng.normal(size=120) * 0.1
    result = probe(make_store({"a": X}, y), repeats=1, nested=False)
    assert np.corrcoef(result.fit(estimator=name).predict(X), y)[0, 1] > 0.8
    with pytest.raises(ProbeError, match=r"unknown estimator 'lda' for numbers"):
        result.fit(estimator="lda")


def test_calibrated_probabilities_are_honest(make_store, blobs):
    """Log loss on new rows: the temperature beats the plain softmax of ridge's compressed decision values."""
    X, y = blobs(600, 10, spread=1.6, classes=4)
    train, test = np.arange(600) < 200, np.arange(600) >= 200
    result = probe(make_store({"a": X}, y), rows=train, repeats=1, nested=False)
    plain, honest = result.fit(), result.fit(calibrate=True)
    np.testing.assert_array_equal(plain.predict(X), honest.predict(X))
    losses = [log_loss(y[test], fit.predict_proba(X[test])) for fit in (plain, honest)]
    assert losses[1] < losses[0] - 0.1
    sure = honest.predict_proba(X[test]).max(axis=1)
    right = honest.predict(X[test]) == y[test]
    assert abs(sure.mean() - right.mean()) < 0.06
    svm = result.fit(estimator="linear_svm", calibrate=True)
    assert log_loss(y[test], svm.predict_proba(X[test])) < losses[0]


def test_a_streamed_fit_is_calibrated_alike(make_store, blobs, monkeypatch):
    X, y = blobs(300, 6, spread=1.6)
    store = make_store({"a": X}, y)
    memory = probe(store, nested=False, repeats=1).fit(calibrate=True)
    monkeypatch.setattr(task, "STREAM_ROWS", 10)
    streamed = probe(store, nested=False, repeats=1).fit(calibrate=True)
    assert streamed.temperature == pytest.approx(memory.temperature, rel=0.2)


def test_the_temperature_comes_from_rows_that_were_left_out():
    """With more features than rows ridge fits its rows perfectly; their own values would make it sure."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 200)), np.arange(60) % 3
    fit = fit_ridge(X, y, classes=np.arange(3), alphas=[1e-3], calibrate=True)
    assert (fit.predict(X) == y).all()
    assert fit.predict_proba(rng.normal(size=(50, 200))).max(axis=1).mean() < 0.5


@pytest.mark.parametrize("metric", ["roc_auc", "neg_log_loss", "balanced_accuracy"])
@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
def test_metrics_of_classes_choose_the_informative_layer(store, metric, estimator):
    result = probe(store, metric=metric, estimator=estimator, repeats=1, nested=False)
    assert result.metric == metric
    assert result.best.point == "good"
    scores = {row.point: row.score for row in result.table if row.score is not None}
    assert scores["good"] > scores["noise"] + 0.1
    assert (result.out_of_fold.predicted == store.labels).mean() > 0.8


def test_scores_equal_scikit_learns():
    rng = np.random.default_rng(0)
    y, classes = np.arange(30) % 3, np.arange(3)
    p = rng.dirichlet(np.ones(3), 30)
    assert Scorer("neg_log_loss").score(y, p, classes) == pytest.approx(-log_loss(y, p))
    assert Scorer("roc_auc").score(y, p, classes) == pytest.approx(roc_auc_score(y, p, multi_class="ovr"))
    two, q = y % 2, rng.random((30, 2))
    assert Scorer("roc_auc").score(two, q, np.arange(2)) == pytest.approx(roc_auc_score(two, q[:, 1]))
    Y = rng.integers(0, 2, (30, 3))
    assert Scorer("average_precision").score(Y, p, classes) == pytest.approx(average_precision_score(Y, p))
    assert Scorer("accuracy").score(Y, Y ^ (np.arange(30)[:, None] < 6), classes) == pytest.approx(0.8)


def test_a_class_that_the_training_rows_lack_keeps_its_column():
    X = np.random.default_rng(0).normal(size=(20, 3))
    fit = heads.fit_head("logistic", X, np.arange(20) % 2 * 2, kind="classes")
    answers = Scorer("neg_log_loss").answers(fit, X, np.arange(4))
    assert answers.shape == (20, 4)
    assert (answers[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(answers.sum(axis=1), 1)


def test_a_users_metric_is_given_labels(store):
    seen = []

    def cows_found(true, predicted):
        seen.append(set(true) | set(predicted))
        return float((predicted[true == "cow"] == "cow").mean())

    result = probe(store, metric=cows_found, repeats=1, nested=False)
    assert result.metric == "cows_found"
    assert result.best.point == "good"
    assert set().union(*seen) == {"ant", "bee", "cow"}


def test_what_gives_no_probabilities_says_so(store):
    with pytest.raises(ProbeError, match=r"metric='neg_log_loss' needs probabilities, which LinearSVC"):
        Scorer("neg_log_loss").answers(LinearSVC(), np.ones((2, 2)), np.arange(2))
    with pytest.raises(ProbeError, match=r"metric='r2' needs numbers"):
        probe(store, metric="r2")
    with pytest.raises(ProbeError, match=r"metric='average_precision' is not for classes"):
        probe(store, metric="average_precision")


@pytest.mark.parametrize("given", ["sets", "matrix"])
@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
def test_several_labels_a_row(make_store, given, estimator):
    rng = np.random.default_rng(0)
    Y = rng.integers(0, 2, (100, 3))
    names = np.array(["cat", "dog", "owl"])
    points = {"noise": rng.normal(size=(100, 4)), "good": rng.normal(size=(100, 8))}
    points["good"][:, :3] += 3 * Y
    labels = [set(names[row > 0]) for row in Y] if given == "sets" else Y
    result = probe(make_store(points, None), labels=labels, estimator=estimator, repeats=1, nested=False)
    assert result.metric == "average_precision"
    assert result.best.point == "good"
    assert result.classes == (("cat", "dog", "owl") if given == "sets" else (0, 1, 2))
    assert result.out_of_fold.predicted.shape == (100, 3)
    fit = result.fit(calibrate=True)
    assert (fit.predict(points["good"]) == Y).mean() > 0.9
    if estimator == "ridge":
        chances = fit.predict_proba(points["good"])
        assert np.abs(chances.mean(axis=0) - Y.mean(axis=0)).max() < 0.1


def test_labels_that_are_no_labels(make_store):
    store = make_store({"a": np.ones((4, 2))}, None)
    with pytest.raises(ProbeError, match="labels has 3 entries, but the store has 4 rows"):
        probe(store, labels=[0, 1, 0])
    with pytest.raises(ProbeError, match="sets of names, or rows of 0 and 1"):
        probe(store, labels=[[0, 2], [1, 0], [1, 1], [0, 0]])
    with pytest.raises(ProbeError, match="every label needs two rows with it"):
        probe(store, labels=[{"a"}, set(), {"b"}, {"b"}])
