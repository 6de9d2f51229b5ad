from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC

from spile.errors import MissingDependency, ProbeError
from spile.probing import RidgeFit, probe, scoring, search, streaming, task
from spile.probing.features import Candidate, Features
from spile.probing.result import ProbeRow, choose, pareto

RNG = np.random.default_rng(3)


@pytest.fixture
def many_rows(monkeypatch):
    """Every selection counts as one of many rows."""
    monkeypatch.setattr(task, "STREAM_ROWS", 10)
    monkeypatch.setattr(task, "NESTED_ROWS", 10)


@pytest.fixture
def layers(blobs):
    """Three layers of 60 rows, the middle one informative, and their labels."""
    X, y = blobs(60, 10, spread=2.0)
    return {"early": RNG.normal(size=(60, 6)), "middle": X, "late": X[:, :3] + RNG.normal(size=(60, 3))}, y


def row(
    point: str, score: float | None, macs: int | None = 1, stderr: float = 0.1, **more: object
) -> ProbeRow:
    return ProbeRow(point=point, score=score, stderr=stderr, macs=macs, **more)


def test_the_informative_layer_is_chosen_and_fits(make_store, layers):
    points, y = layers
    names = np.array(["ant", "bee", "cow"])[y]
    result = probe(make_store(points, names))
    assert result.best.point == "middle"
    assert result.best.score > 0.85
    assert [r.point for r in result.table] == ["raw input", "early", "middle", "late", "last layer"]
    assert result.classes == ("ant", "bee", "cow")
    assert (result.metric, result.folds, result.repeats, result.n_rows) == ("accuracy", 5, 10, 60)
    assert len(result.best.fold_scores) == 50
    assert np.mean(result.best.fold_scores) == pytest.approx(result.best.score)
    fit = result.fit()
    assert isinstance(fit, RidgeFit)
    assert (fit.predict(points["middle"]) == names).mean() > 0.9


def test_out_of_fold_predictions_are_those_of_the_first_repeat(make_store, layers):
    points, y = layers
    result = probe(make_store(points, y))
    held = result.out_of_fold
    assert (held.rows == np.arange(60)).all()
    assert (held.true == y).all()
    assert (held.predicted == y).mean() == pytest.approx(np.mean(result.best.fold_scores[:5]))
    assert ((held.probability > 1 / 3) & (held.probability <= 1)).all()


@pytest.mark.parametrize("stream_rows", [10_000, 10], ids=["in memory", "streamed"])
def test_fits_do_not_see_held_out_rows(make_store, layers, monkeypatch, stream_rows):
    """Held-out rows and their labels turned wild: mean, scale, coef, intercept and alpha stay bit for bit."""
    monkeypatch.setattr(task, "STREAM_ROWS", stream_rows)
    monkeypatch.setattr(task, "NESTED_ROWS", 0)
    fits: list[RidgeFit] = []
    for module, name in ((scoring, "fit_ridge"), (streaming, "cross_fit_moments")):
        original = getattr(module, name)

        def recorded(*args, original=original, **kwargs):
            made = original(*args, **kwargs)
            fits.extend(made if isinstance(made, list) else [made])
            return made

        monkeypatch.setattr(module, name, recorded)
    points, y = layers
    first = probe(make_store({"middle": points["middle"]}, y), repeats=1)
    held_out = first._task.folds[0]
    before, fits[:] = list(fits), []
    assert len(before) == 5
    for fold in range(5):
        wild = np.where((held_out == fold)[:, None], points["middle"] * -1e4 + 99, points["middle"])
        probe(make_store({"middle": wild}, y), repeats=1)
        for name in ("mean", "scale", "coef", "intercept", "alpha"):
            assert np.array_equal(getattr(before[fold], name), getattr(fits[fold], name)), (fold, name)
        assert not np.array_equal(before[(fold + 1) % 5].mean, fits[(fold + 1) % 5].mean)
        fits.clear()


@pytest.mark.parametrize("name", ["svm", "logistic"])
def test_named_heads_do_not_see_held_out_rows(make_store, layers, monkeypatch, name):
    """Neither the scaler nor the penalty, which is chosen by a search of its own."""
    fits = []
    original = scoring.fit_head
    monkeypatch.setattr(scoring, "fit_head", lambda *a, **k: fits.append(original(*a, **k)) or fits[-1])
    points, y = layers
    first = probe(make_store({"middle": points["middle"]}, y), estimator=name, repeats=1, nested=False)
    held_out = first._task.folds[0]
    before, fits[:] = list(fits), []
    wild = np.where((held_out == 1)[:, None], points["middle"] * -1e4 + 99, points["middle"])
    probe(make_store({"middle": wild}, y), estimator=name, repeats=1, nested=False)
    assert np.array_equal(before[1][0].mean_, fits[1][0].mean_)
    assert before[1][-1].get_params() == fits[1][-1].get_params()
    new = points["middle"] + 0.5
    assert np.array_equal(before[1].decision_function(new), fits[1].decision_function(new))
    assert not np.array_equal(before[2][0].mean_, fits[2][0].mean_)


def test_choosing_inside_a_fold_does_not_see_its_held_out_rows(make_store, layers):
    points, y = layers
    store = make_store(points, y)
    plan = probe(store)._task
    for fold in range(5):
        wild = np.where((plan.folds[0] == fold)[:, None], points["late"] * -1e4 + 99, points["late"])
        one = Candidate(("late",))
        before, after = (
            [scoring.evaluate(Features(s, plan), one, plan.inside(k)).fold_scores for k in range(5)]
            for s in (store, make_store({"late": wild}, y))
        )
        assert before[fold] == after[fold]
        assert before != after


def test_rows_of_other_splits_are_never_looked_at(make_store, layers):
    points, y = layers
    splits = np.array(["train", "test", "train", "val", None, "train"])[np.arange(60) % 6]
    train = splits == "train"
    wild = {name: np.where(train[:, None], x, np.inf) for name, x in points.items()}
    confused = np.where(train, y, 0)
    result = probe(make_store(points, y, splits=list(splits)))
    assert result.out_of_fold.rows.tolist() == np.flatnonzero(train).tolist()
    assert probe(make_store(wild, confused, splits=list(splits))).to_json() == result.to_json()
    assert (
        probe(make_store(points, y, splits=list(splits)), rows=~train).out_of_fold.rows
        == np.flatnonzero(~train)
    ).all()


def test_unlabelled_rows_are_left_out(make_store, layers):
    points, y = layers
    labels = [None if i % 4 == 0 else int(label) for i, label in enumerate(y)]
    store = make_store(points, labels)
    assert probe(store).n_rows == 45
    with pytest.raises(ProbeError, match="2 of the 3 rows have no label, the first is row 0"):
        probe(store, rows=[0, 1, 4])


def test_random_labels_give_chance_and_the_nested_estimate_is_not_optimistic(make_store):
    best, nested = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        points = {f"layer{i}": rng.normal(size=(60, 8)) for i in range(8)}
        result = probe(make_store(points, rng.permutation(np.arange(60) % 3)), repeats=1, seed=seed)
        assert all(0.1 < r.score < 0.6 for r in result.table if r.score is not None)
        best.append(result.best.score)
        nested.append(result.nested.score)
    assert np.mean(nested) == pytest.approx(1 / 3, abs=0.05)
    assert np.mean(best) > 0.38


def test_nested_is_the_score_of_what_was_picked_inside(make_store, layers):
    points, y = layers
    result = probe(make_store(points, y))
    by_name = {r.point: r for r in result.table}
    assert result.nested.picks == ("middle",) * 5
    expected = [by_name[pick].fold_scores[fold] for fold, pick in enumerate(result.nested.picks)]
    assert result.nested.score == pytest.approx(np.mean(expected))


def test_repeating_does_not_shrink_the_standard_error_without_end(make_store, layers):
    assert scoring.mean_and_error([0.0, 1.0], 2) == (0.5, pytest.approx(np.sqrt(0.5 * (1 / 2 + 1 / 1))))
    points, y = layers
    once, often = (probe(make_store(points, y), repeats=repeats).best.stderr for repeats in (1, 10))
    assert 0.3 * once < often < 3 * once


def test_nested_is_none_for_many_rows_and_for_rows_that_cannot_be_split_again(make_store, blobs):
    X, y = blobs(501, 4)
    assert probe(make_store({"a": X}, y)).nested is None
    with pytest.warns(UserWarning, match=r"cv=5 .* using 2"):
        assert probe(make_store({"a": X[:6]}, y[:6])).nested is None


def test_streamed_scores_are_close_to_those_in_memory(make_store, layers, request):
    points, y = layers
    memory = probe(make_store(points, y), repeats=2)
    request.getfixturevalue("many_rows")
    streamed = probe(make_store(points, y), repeats=2)
    assert streamed.best.point == "middle"
    assert streamed.nested is None
    for a, b in zip(memory.table[1:-1], streamed.table[1:-1], strict=True):
        assert a.score == pytest.approx(b.score, abs=0.06)
        assert len(b.fold_scores) == 10
    held = streamed.out_of_fold
    first = streamed._task.folds[0] == 0
    assert (held.predicted == y)[first].mean() == pytest.approx(streamed.best.fold_scores[0])
    assert (held.predicted == y).mean() == pytest.approx(np.mean(streamed.best.fold_scores[:5]))
    np.testing.assert_allclose(held.probability, memory.out_of_fold.probability, atol=0.2)
    assert (streamed.fit().predict(points["middle"]) == y).mean() > 0.9


@pytest.mark.usefixtures("many_rows")
def test_many_rows_need_points_of_bounded_width_and_three_folds(make_store, layers, monkeypatch):
    points, y = layers
    monkeypatch.setattr(search, "STREAM_FEATURES", 9)
    result = probe(make_store(points, y))
    wide = next(r for r in result.table if r.point == "middle")
    assert wide.score is None
    assert "pool='avg'" in wide.note
    assert result.best.point == "late"
    with pytest.raises(ProbeError, match="three folds"):
        probe(make_store(points, y), cv=2)


@pytest.mark.usefixtures("many_rows")
def test_binary_labels_are_streamed_alike(make_store, blobs):
    X, y = blobs(80, 5, classes=2)
    result = probe(make_store({"a": X}, np.array(["no", "yes"])[y]))
    assert result.best.score > 0.8
    assert result.fit().decision_function(X).shape == (80,)


def test_float_labels_are_regressed_on(make_store):
    X = RNG.normal(size=(80, 5))
    y = X @ np.arange(5.0) + RNG.normal(size=80)
    result = probe(make_store({"noise": RNG.normal(size=(80, 5)), "signal": X}, y))
    assert (result.metric, result.classes, result.best.point) == ("r2", None, "signal")
    assert result.best.score > 0.9
    assert result.out_of_fold.probability is None
    assert np.corrcoef(result.fit().predict(X), y)[0, 1] > 0.95
    assert "R²" in str(result)
    assert probe(make_store({"a": X}, y), estimator=Ridge()).best.score > 0.9


def test_balanced_accuracy_weighs_classes_alike(make_store):
    y = np.array([0] * 45 + [1] * 5)
    store = make_store({"noise": RNG.normal(size=(50, 2)) * 1e-3}, y)
    assert probe(store).best.score == pytest.approx(0.9, abs=0.03)
    assert probe(store, metric="balanced_accuracy").best.score == pytest.approx(0.5, abs=0.05)


def test_groups_are_held_out_together(make_store):
    """Each group is one point in space with one label at random: only a leak scores."""
    rng = np.random.default_rng(0)
    group = np.arange(80) % 20
    X = rng.normal(size=(20, 30))[group] + rng.normal(size=(80, 30)) * 0.01
    y = rng.permutation(np.arange(20) % 2)[group]
    names = [f"patient {g}" for g in group]
    assert probe(make_store({"a": X}, y)).best.score > 0.95
    assert probe(make_store({"a": X}, y, groups=names)).best.score < 0.7


def test_a_class_absent_from_training_rows_is_scored_as_wrong(make_store, blobs):
    X, y = blobs(60, 5)
    groups = ["all of class 2" if label == 2 else f"{i}" for i, label in enumerate(y)]
    result = probe(make_store({"a": X}, y, groups=groups))
    held = result.out_of_fold
    assert result.classes == (0, 1, 2)
    assert 2 not in held.predicted[held.true == 2]


@pytest.mark.parametrize("estimator", [SVC(), LogisticRegression()])
def test_a_scikit_learn_estimator_is_cloned_and_scaled(make_store, layers, estimator):
    points, y = layers
    scaled = {name: (x * 1e3 + 5e3).astype(np.float32) for name, x in points.items()}
    result = probe(make_store(scaled, np.array(["ant", "bee", "cow"])[y]), estimator=estimator, repeats=2)
    assert result.best.point == "middle"
    assert result.best.score > 0.85
    assert result.best.alpha is None
    assert not hasattr(estimator, "classes_")
    assert (result.out_of_fold.probability is None) == isinstance(estimator, SVC)
    fitted = result.fit()
    assert set(fitted.predict(scaled["middle"])) == {"ant", "bee", "cow"}
    assert fitted[0].mean_.mean() == pytest.approx(5e3, rel=0.2)


def test_raw_input_is_never_chosen_and_the_last_layer_may_be(make_store, layers):
    points, y = layers
    info = {
        "middle": {"baseline": "raw"},
        "late": {"baseline": "last", "order": 9, "macs": 5},
        "early": {"order": 1, "macs": 3},
    }
    result = probe(make_store(points, y, info=info))
    assert [r.point for r in result.table] == ["middle", "early", "late"]
    assert result.table[0].score > result.best.score
    assert result.best.point == "late"
    assert [r.point for r in result.pareto] == ["middle"]
    assert "raw input" in str(result)
    assert "best, last layer" in str(result)


def test_missing_baselines_say_how_to_get_them(make_store, layers):
    points, y = layers
    table = probe(make_store(points, y)).table
    assert [(r.baseline, r.score) for r in (table[0], table[-1])] == [("raw", None), ("last", None)]
    assert "spile.transfer" in table[0].note
    assert "-1" in table[-1].note


def test_rule_best_takes_the_cheaper_of_equals():
    rows = [
        row("deep", 0.8, 9, order=3),
        row("cheap", 0.8, 5, order=2),
        row("also", 0.8, 5, order=1),
        row("x", 0.7),
    ]
    assert choose(rows, "best").point == "also"
    assert choose([row("a", 0.8, None, order=2), row("b", 0.8, None, order=1)], "best").point == "b"


def test_rule_1se_takes_the_cheapest_within_one_standard_error():
    rows = [
        row("far", 0.69, 1),
        row("near", 0.71, 5),
        row("best", 0.8, 9, stderr=0.1),
        row("raw", 0.9, 0, baseline="raw"),
    ]
    assert choose(rows, "1se").point == "near"
    assert choose(rows, "best").point == "best"


def test_pareto_leaves_out_what_another_row_beats():
    rows = [row("a", 0.5, 1), row("b", 0.7, 3), row("c", 0.6, 4), row("d", 0.9, 8), row("e", 0.9, 9)]
    rows += [row("dear", 0.5, 1000), row("unscored", None, 1), row("free", 0.4, None)]
    assert [r.point for r in pareto(rows)] == ["a", "b", "d"]


def test_shapes_beyond_vectors(make_store, layers):
    points, y = layers
    maps = {"map": points["middle"].reshape(60, 5, 2).astype(np.float16), "scalar": points["early"][:, 0]}
    store = make_store(maps, y)
    store.points["tokens"] = type(store.points["map"])("tokens", (None, 8), "float16", {"order": 5})
    table = {r.point: r for r in probe(store).table}
    assert table["map"].dims == 10
    assert table["map"].score > 0.85
    assert table["scalar"].dims == 1
    assert table["tokens"].score is None
    assert "pool" in table["tokens"].note


def test_the_result_is_reproducible_and_plain_json(make_store, layers):
    points, y = layers
    first, second = (probe(make_store(points, y), seed=4).to_json() for _ in range(2))
    assert json.loads(json.dumps(first, allow_nan=False)) == json.loads(json.dumps(second))
    assert first["best"] == "middle"
    assert len(first["out_of_fold"]["predicted"]) == 60
    assert probe(make_store(points, y), seed=5).to_json() != first


def test_the_printed_table_holds_the_numbers(make_store, layers):
    points, y = layers
    result = probe(make_store(points, y))
    text = str(result)
    for r in result.table:
        assert r.point in text
        if r.score is not None:
            assert f"{r.score:.3f} ± {r.stderr:.3f}" in text
    assert f"{result.nested.score:.3f} ± {result.nested.stderr:.3f}" in text
    assert "5-fold cross-validation, 10 times, 60 rows" in text


def test_an_alpha_at_the_edge_is_marked(make_store):
    X = RNG.normal(size=(60, 4))
    result = probe(make_store({"exact": X}, X @ np.ones(4)))
    assert result.best.at_edge
    assert "edge of the grid" in str(result)


def test_pandas_and_plot(make_store, layers, monkeypatch):
    points, y = layers
    info = {"early": {"baseline": "raw"}}
    result = probe(make_store(points, y, info=info))
    frame = result.to_pandas()
    assert frame["point"].tolist() == ["early", "middle", "late", "last layer"]
    assert frame["score"].iloc[1] == result.best.score
    pytest.importorskip("matplotlib").use("Agg")
    axes = result.plot()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["middle", "late"]
    assert result.plot(axes) is axes
    axes.figure.clear()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependency, match="matplotlib"):
        result.plot()
    with pytest.raises(MissingDependency, match="pandas"):
        result.to_pandas()


def test_any_point_can_be_fitted(make_store, layers):
    points, y = layers
    result = probe(make_store(points, y))
    assert (result.fit("middle").coef == result.fit().coef).all()
    assert result.fit("late").coef.shape == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "rigde"}, "unknown estimator 'rigde'. Allowed: 'ridge', .* Type: estimator='ridge'"),
        ({"estimator": SVC}, "unknown estimator .*SVC"),
        ({"estimator": Ridge()}, "need a classifier, not Ridge"),
        (
            {"combine": "concat"},
            "unknown combine 'concat'. Allowed: 'single', 'greedy', 'banded'. Type: combine=",
        ),
        ({"rule": "1s"}, "unknown rule '1s'. Allowed: 'best', '1se'. Type: rule='1se'"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'. .* Type: metric='accuracy'"),
        ({"metric": "r2"}, None),
        ({"cv": 1}, "cv must be an integer of 2 or more, not 1"),
        ({"repeats": 0}, "repeats must be a positive integer or 'auto', not 0"),
        ({"rows": [0, 60]}, "rows must be positions from 0 to 59"),
        ({"rows": []}, "rows must be"),
        ({"rows": np.zeros(60, dtype=bool)}, "rows must be"),
        ({"rows": range(0, 60, 3)}, "all 20 rows have the label 0: a classifier needs two classes"),
        ({"rows": [0, 1, 2, 3, 4]}, "1 of 3 classes have one row only, such as 2"),
    ],
)
def test_options_that_cannot_work_say_what_to_type(make_store, layers, options, message):
    points, y = layers
    store = make_store(points, y)
    if message is None:
        assert probe(store, **options).metric == "r2"
        return
    with pytest.raises(ProbeError, match=message) as error:
        probe(store, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        (None, {}, "no row of this store has a label"),
        ([None] * 60, {}, "no row of this store has a label"),
        ([float("nan")] * 60, {}, "no row of this store has a label"),
        (["a", "b"] * 30, {"splits": ["test"] * 60}, "no labelled row to choose by: the splits are 'test'"),
        (["a", "b"] * 30, {"groups": ["one"] * 60}, "too few groups"),
        (["a", 1] * 30, {}, "some labels are text and some are numbers"),
        ([2.5] * 60, {}, "labels that differ"),
        ([1.5, float("inf")] * 30, {}, "labels must be finite, and 30 are not, such as inf"),
    ],
)
def test_labels_that_cannot_work_say_so(make_store, layers, labels, more, message):
    with pytest.raises(ProbeError, match=message):
        probe(make_store(layers[0], labels, **more))


def test_tensors_are_labels_and_groups(make_store, layers):
    import torch

    points, y = layers
    groups = np.arange(60) // 4
    expected = probe(make_store(points, None), labels=y, groups=groups, repeats=1, nested=False)
    for labels in (torch.tensor(y), [torch.tensor(label) for label in y]):
        found = probe(
            make_store(points, None), labels=labels, groups=torch.tensor(groups), repeats=1, nested=False
        )
        assert found.to_json() == expected.to_json()
        np.testing.assert_array_equal(found._task.folds, expected._task.folds)


def test_stores_without_a_usable_layer_say_so(make_store, layers):
    points, y = layers
    with pytest.raises(ProbeError, match="no layer that can be scored"):
        probe(make_store({"raw": points["early"]}, y, info={"raw": {"baseline": "raw"}}))
    points["middle"][7, 2] = np.nan
    with pytest.raises(ProbeError, match="'middle' holds NaN or infinite"):
        probe(make_store(points, y))


def test_importing_probing_loads_no_framework_and_no_plotting():
    heavy = ["torch", "keras", "tensorflow", "matplotlib", "lance"]
    code = f"import sys, spile.probing; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
