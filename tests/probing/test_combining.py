"""Combinations of points: greedy and banded, limits, shuffled labels; all without sight of held-out rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

from spile.errors import ProbeError
from spile.probing import banding, probe, streaming, task
from spile.probing.features import Candidate, Features, joined, unit_length
from spile.probing.ridge import fit_ridge, targets


@pytest.fixture
def halves(make_store):
    """Two layers that each tell two of four classes apart, a third of noise, and the store of them."""
    rng = np.random.default_rng(0)
    y = np.arange(160) % 4
    first = rng.normal(size=(160, 6))
    second = rng.normal(size=(160, 12))
    first[:, 0] += 3.0 * (y % 2) - 1.5
    second[:, :2] += (3.0 * (y // 2) - 1.5)[:, None]
    points = {"first": first, "second": second, "noise": rng.normal(size=(160, 5))}
    info = {n: {"order": i, "macs": 10 * (i + 1), "params": 100 * (i + 1)} for i, n in enumerate(points)}
    return make_store(points, y, info=info), points, y


@pytest.mark.parametrize("combine", ["greedy", "banded"])
def test_layers_that_complete_each_other_are_combined(halves, combine):
    store, points, y = halves
    result = probe(store, combine=combine, repeats=1)

    assert set(result.points) >= {"first", "second"}
    assert result.best.points == result.points
    if combine == "greedy":
        assert result.points == ("first", "second")
        assert (result.best.macs, result.best.params, result.best.dims) == (20, 200, 18)
    singles = {row.point: row.score for row in result.table if row.score is not None and not row.points}
    assert result.best.score > max(singles.values()) + 0.15
    fit = result.fit()
    features = joined([points[name] for name in result.points])
    assert fit.coef.shape[0] == features.shape[1]
    assert (fit.predict(features) == y).mean() > 0.85
    assert abs(result.nested.score - result.best.score) < 0.1
    assert "second" in str(result.nested.picks) or "banded" in str(result.nested.picks)


def test_greedy_stops_where_the_gain_is_within_its_error(make_store, blobs):
    X, y = blobs(90, 8, spread=1.5)
    rng = np.random.default_rng(1)
    result = probe(
        make_store({"a": X, "b": rng.normal(size=(90, 8)), "c": rng.normal(size=(90, 8))}, y),
        combine="greedy",
    )
    assert result.points == ("a",)
    assert not any(row.points for row in result.table)


def test_a_band_that_has_all_the_weight_is_that_layer(make_store):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    points = {"good": rng.normal(size=(120, 20)) + 1.5 * np.eye(20)[y], "noise": rng.normal(size=(120, 30))}
    store = make_store(points, y)

    result = probe(store, combine="banded", repeats=1, nested=False)

    assert [row.point for row in result.table if row.score is not None] == ["good", "noise"]
    assert result.points == ("good",) and not result.unit_rows
    single = probe(store, repeats=1, nested=False)
    np.testing.assert_array_equal(result.fit().coef, single.fit().coef)
    assert result.best.fold_scores == single.best.fold_scores


@pytest.mark.parametrize("combine", ["greedy", "banded"])
def test_one_layer_ten_thousand_times_larger_changes_no_prediction(halves, make_store, combine):
    _, points, y = halves
    large = {**points, "second": points["second"] * 1e4}
    plain, scaled = (
        probe(make_store(values, y), combine=combine, repeats=1, nested=False) for values in (points, large)
    )
    assert set(plain.points) >= {"first", "second"}
    assert plain.points == scaled.points
    np.testing.assert_array_equal(plain.out_of_fold.predicted, scaled.out_of_fold.predicted)
    np.testing.assert_allclose(plain.best.fold_scores, scaled.best.fold_scores)


def test_rows_of_zeros_and_float16_activations_give_no_nan():
    half = np.full((3, 8), 300, np.float16)
    half[1] = 0  # and 300² is beyond float16
    np.testing.assert_allclose(np.linalg.norm(unit_length(half), axis=1), [1, 0, 1])


def test_a_row_alone_has_the_features_that_it_has_in_a_batch():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(9, 4)), rng.normal(size=(9, 7))]
    np.testing.assert_array_equal(joined([p[3:4] for p in parts])[0], joined(parts)[3])


@pytest.mark.parametrize("combine", ["greedy", "banded"])
def test_fits_of_combinations_do_not_see_held_out_rows(halves, make_store, monkeypatch, combine):
    """Held-out rows turned wild: what is fitted on the others stays bit for bit."""
    from spile.probing import scoring

    fits = []
    original = scoring.fit_ridge
    monkeypatch.setattr(scoring, "fit_ridge", lambda *a, **k: fits.append(original(*a, **k)) or fits[-1])
    _, points, y = halves
    two = {name: points[name] for name in ("first", "second")}
    plan = probe(make_store(two, y), repeats=1, nested=False)._task
    candidate = scoring.Candidate(("first", "second"), banded=combine == "banded")
    fits.clear()
    scoring.evaluate(scoring.Features(make_store(two, y), plan), candidate, plan)
    held_out = plan.folds[0]
    before, fits[:] = list(fits), []
    for fold in (0, 3):
        wild = {k: np.where((held_out == fold)[:, None], v * -1e4 + 99, v) for k, v in two.items()}
        confused = np.where(held_out == fold, (y + 1) % 4, y)
        store = make_store(wild, y)
        changed = scoring.replace(plan, y=confused)
        scoring.evaluate(scoring.Features(store, changed), candidate, changed)
        for name in ("mean", "scale", "coef", "intercept", "alpha"):
            assert np.array_equal(getattr(before[fold], name), getattr(fits[fold], name)), (fold, name)
        assert not np.array_equal(before[(fold + 1) % 5].mean, fits[(fold + 1) % 5].mean)
        fits.clear()


def test_bands_leave_noise_out_and_their_gradient_is_exact():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(60, d)) for d in (5, 40, 8)]
    T = targets((parts[0][:, 0] > 0).astype(int), np.arange(2))
    bands = banding.choose_bands(parts, T)
    assert bands[0] > 0.8
    assert bands.sum() == pytest.approx(1)
    kernels = np.stack([part @ part.T / part.shape[1] for part in parts])
    train, test = np.arange(40), np.arange(40, 60)
    weights = np.array([0.3, 0.1, 0.2])
    error, slope = banding._held_out_error(np.tensordot(weights, kernels, 1), kernels, T, train, test)
    for layer in range(3):
        step = np.eye(3)[layer] * 1e-6
        nudged, _ = banding._held_out_error(np.tensordot(weights + step, kernels, 1), kernels, T, train, test)
        assert (nudged - error) / 1e-6 == pytest.approx(slope[layer], rel=1e-3)


def test_weights_are_penalties_of_their_own():
    """A feature with weight w has the penalty alpha / w²: the same as scaling the standardised feature."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 3)), rng.normal(size=50)
    w = np.array([2.0, 1.0, 0.5])
    fit = fit_ridge(X, y, alphas=[3.0], weights=w)
    Z = (X - X.mean(0)) / X.std(0) * w
    coef = np.linalg.solve(Z.T @ Z + 3.0 * np.eye(3), Z.T @ (y - y.mean()))
    np.testing.assert_allclose(fit.decision_function(X), Z @ coef + y.mean())


def test_naive_concatenation_loses_and_choosing_does_not(make_store):
    """An informative narrow layer beside wide ones of noise: all together are worse than the one."""
    rng = np.random.default_rng(2)
    y = np.arange(120) % 3
    good = rng.normal(size=(120, 4)) + 2.0 * np.eye(4)[y]
    noise = {f"noise{i}": rng.normal(size=(120, 200)) for i in range(3)}
    everything = np.concatenate([unit_length(v) for v in [good, *noise.values()]], axis=1)
    naive = probe(make_store({"all": everything}, y), nested=False).best.score
    for combine in ("greedy", "banded"):
        store = make_store({"good": good, **noise}, y)
        chosen = probe(store, combine=combine, nested=False, repeats=2)
        assert chosen.best.score > naive + 0.05


def test_what_is_over_a_limit_is_scored_but_not_chosen(halves):
    store, _, _ = halves
    free = probe(store, nested=False)
    assert free.best.point == "second"
    limited = probe(store, max_macs=15, nested=False)
    assert limited.best.point == "first"
    table = {row.point: row for row in limited.table}
    assert table["second"].score == pytest.approx({r.point: r for r in free.table}["second"].score)
    assert table["second"].excluded
    assert "over max_macs=15" in table["second"].note
    assert probe(store, max_params=100 + 6 * 4, nested=False).best.point == "first"
    assert probe(store, max_bytes=4 * (100 + 6 * 4), nested=False).best.point == "first"
    assert probe(store, combine="greedy", max_macs=15, nested=False).points == ("first",)
    with pytest.raises(ProbeError, match=r"no layer is within the limits: first is over max_macs=5"):
        probe(store, max_macs=5)


@pytest.mark.parametrize("combine", ["single", "greedy", "banded"])
def test_shuffled_labels_give_chance(halves, combine):
    store, _, _ = halves
    result = probe(store, combine=combine, control=True, repeats=1, nested=False)
    assert result.control.score < 0.25 + 0.12
    assert result.best.score > 0.45
    assert "with shuffled labels" in str(result)
    assert result.to_json()["control"]["point"] == result.control.point


def test_the_nested_estimate_of_a_combination_is_not_optimistic(make_store):
    best, nested = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        points = {f"layer{i}": rng.normal(size=(60, 6)) for i in range(6)}
        y = rng.permutation(np.arange(60) % 3)
        result = probe(make_store(points, y), combine="greedy", repeats=1, seed=seed)
        best.append(result.best.score)
        nested.append(result.nested.score)
    assert np.mean(nested) == pytest.approx(1 / 3, abs=0.07)
    assert np.mean(best) > np.mean(nested) + 0.05


@pytest.mark.parametrize("combine", ["greedy", "banded"])
def test_combinations_are_streamed_alike(halves, monkeypatch, combine):
    store, points, y = halves
    memory = probe(store, combine=combine, repeats=1, nested=False)
    monkeypatch.setattr(task, "STREAM_ROWS", 10)
    streamed = probe(store, combine=combine, repeats=1, nested=False)
    assert set(streamed.points) >= {"first", "second"}
    assert streamed.points == memory.points
    assert streamed.best.score == pytest.approx(memory.best.score, abs=0.06)
    fit = streamed.fit(calibrate=True)
    features = joined([points[name] for name in streamed.points])
    assert (fit.predict(features) == y).mean() > 0.85
    assert fit.temperature == pytest.approx(memory.fit(calibrate=True).temperature, rel=0.3)


def test_streamed_bands_are_of_bounded_width_and_do_not_see_held_out_rows(halves, make_store, monkeypatch):
    _, points, y = halves
    monkeypatch.setattr(task, "STREAM_ROWS", 10)
    monkeypatch.setattr(streaming, "STREAM_FEATURES", 17)  # first and second have 18
    store = make_store(points, y)
    plan = probe(store, repeats=1, nested=False)._task
    candidate = Candidate(tuple(points), banded=True)

    def fits(store, plan):
        return streaming.fold_fits(Features(store, plan), candidate, plan, plan.folds[0], calibrate=True)

    before = fits(store, plan)
    assert all(sum(points[name].shape[1] for name in taken) <= 17 for taken, _ in before)
    held_out = plan.folds[0]
    wild = {k: np.where((held_out == 2)[:, None], v * -1e4 + 99, v) for k, v in points.items()}
    changed = dataclasses.replace(plan, y=np.where(held_out == 2, (y + 1) % 4, y))
    after = fits(make_store(wild, changed.y), changed)
    for name in ("mean", "scale", "coef", "intercept", "alpha", "temperature"):
        assert np.array_equal(getattr(before[2][1], name), getattr(after[2][1], name)), name
    assert before[2][0] == after[2][0]
    assert not np.array_equal(before[1][1].mean, after[1][1].mean)


def test_banded_is_ridge_and_greedy_takes_any_estimator(halves):
    store, points, y = halves
    with pytest.raises(ProbeError, match=r"a penalty for each layer.*result.fit\(estimator='svm'\)"):
        probe(store, combine="banded", estimator=SVC())
    result = probe(store, combine="greedy", estimator=SVC(), repeats=1, nested=False)
    assert result.points == ("first", "second")
    assert (result.fit().predict(joined([points[p] for p in result.points])) == y).mean() > 0.9


def test_another_model_on_banded_layers_takes_those_that_have_weight(halves):
    store, points, y = halves
    result = probe(store, combine="banded", repeats=1, nested=False)
    row = next(row for row in result.table if row.points)
    assert result.best is row and len(row.points) == 2

    features = joined([points[name] for name in row.points])
    for estimator in ("svm", RandomForestClassifier(10, random_state=0)):
        assert (result.fit(estimator=estimator).predict(features) == y).mean() > 0.9
    np.testing.assert_array_equal(result.fit(row.point).coef, result.fit().coef)
    assert not np.allclose(result.fit(row.points).coef, result.fit().coef)


@pytest.mark.parametrize("stream_rows", [10, 10_000])
def test_rows_of_a_single_layer_are_of_length_1_where_asked_for(halves, make_store, monkeypatch, stream_rows):
    """Then a row counts the same however large its activations are."""
    monkeypatch.setattr(task, "STREAM_ROWS", stream_rows)
    _, points, y = halves
    lengths = np.exp(np.random.default_rng(3).normal(size=(len(y), 1)))
    louder = {name: lengths * values for name, values in points.items()}

    def found(values, **options):
        return probe(make_store(values, y), repeats=1, nested=False, **options)

    plain, scaled = (found(values, unit_rows=True) for values in (points, louder))
    assert plain.unit_rows and plain.points == ("second",) and plain.to_json()["unit_rows"]
    np.testing.assert_allclose(plain.best.fold_scores, scaled.best.fold_scores)
    features = joined([louder["second"]], unit_rows=True)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1)
    np.testing.assert_allclose(
        scaled.fit().decision_function(features), plain.fit().decision_function(features)
    )
    assert not found(louder).unit_rows and found(louder).best.fold_scores != found(points).best.fold_scores


@pytest.mark.parametrize("combine", ["single", "banded"])
def test_streamed_probabilities_are_tempered(make_store, blobs, monkeypatch, combine):
    """Ridge scores lie near -1..1, which a softmax takes for doubt: then the log loss is far from that in
    memory."""
    X, y = blobs(150, 6, spread=3.0)
    store = make_store({"a": X, "b": X[:, ::-1]}, y)
    options = {"metric": "neg_log_loss", "combine": combine, "repeats": 1, "nested": False}
    memory = probe(store, **options)
    monkeypatch.setattr(task, "STREAM_ROWS", 10)
    streamed = probe(store, **options)
    for ours, theirs in zip(streamed.table, memory.table, strict=True):
        if theirs.score is not None:
            assert ours.score == pytest.approx(theirs.score, abs=0.03)
    assert streamed.fit().temperature is not None
