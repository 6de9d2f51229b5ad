"""`spile.train` on Keras: small networks, seconds."""

from __future__ import annotations

import csv
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

import spile
from spile.data import open_source
from spile.errors import ModelError, TrainingError
from spile.keras.classifiers import set_classifier, with_classifier
from spile.reporting.record import read_run
from spile.supervision import Constant, Labels, PseudoLabels
from spile.training.rows import choose_rows


def net(classes: int = 5, activation: str | None = "softmax") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="second"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes, activation=activation, name="scores"),
        ]
    )


def data(rows: int = 60) -> tuple[np.ndarray[Any, Any], list[str]]:
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = rng.normal(size=(rows, 8, 8, 1)).astype(np.float32) * 0.4
    x[np.arange(rows), 2 * y] += 1.5
    return x, ["abc"[code] for code in y]


HEADS = spile.Supervision(taps=["first"], head="linear", weight=Constant(0.4))


def run(folder: Path, **options: Any) -> Any:
    wanted = {"epochs": 2, "batch_size": 12, "rate": 2e-2, "supervise": HEADS} | options
    return spile.train(wanted.pop("model", net), data(), folder, progress=False, **wanted)


def values(of: Any) -> np.ndarray[Any, Any]:
    return np.asarray(keras.ops.convert_to_numpy(of))


def weights(model: keras.Model) -> list[float]:
    return np.concatenate([np.ravel(w) for w in model.get_weights()]).tolist()


def test_a_run_learns_and_leaves_a_report_with_curves(tmp_path: Path) -> None:
    found = run(tmp_path / "run", epochs=20)
    assert found.epochs[-1]["train/accuracy"] > 0.6 and found.accuracy is not None
    x, _ = data()
    again = keras.saving.load_model(found.weights)
    assert not again.compiled
    np.testing.assert_array_equal(values(again(x[:2])), values(found.model(x[:2])))
    assert tuple(found.model(x[:2]).shape) == (2, 3)
    assert set(found.epochs[-1]) >= {"train/first/weight", "train/first/accuracy", "test/first/accuracy"}
    assert found.epochs[-1]["train/first/weight"] == pytest.approx(0.4)
    record = read_run(tmp_path / "run")
    assert record.training is not None
    assert {"Loss", "Accuracy", "Gradient norm"} <= {chart.title for chart in record.training.charts}
    assert (tmp_path / "run" / "logs" / "metrics.csv").is_file()


def test_without_heads(tmp_path: Path) -> None:
    found = run(tmp_path / "run", epochs=40, supervise=None)
    assert found.epochs[-1]["train/accuracy"] > 0.6 and found.accuracy is not None


def test_a_resumed_run_ends_as_one_that_was_not_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", epochs=3)
    from spile.keras.training import _Notes

    begin, seen = _Notes.on_epoch_begin, []

    def cut(self: Any, epoch: int, logs: Any = None) -> None:
        seen.append(epoch)
        if seen == [0, 1]:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    monkeypatch.setattr(_Notes, "on_epoch_begin", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", epochs=3)
    resumed = run(tmp_path / "cut", epochs=3, resume=True)
    assert seen == [0, 1, 1, 2]
    assert weights(resumed.model) == pytest.approx(weights(whole.model), abs=1e-6)
    assert [row["train/loss"] for row in resumed.epochs] == pytest.approx(
        [row["train/loss"] for row in whole.epochs], abs=1e-5
    )


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    found = run(tmp_path / "run", epochs=25, patience=1, rate=0.3, optimizer="sgd")
    losses = [row["validation/loss"] for row in found.epochs]
    assert found.best == losses.index(min(losses))


def test_what_keras_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="set_dtype_policy"):
        run(tmp_path / "a", precision="bfloat16")
    with pytest.raises(TrainingError, match="optimizer='adamw'"):
        run(tmp_path / "b", optimizer="sgd", decay=0.1)
    with pytest.raises(ModelError, match="cannot be replaced"):
        run(tmp_path / "c", model=lambda: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]))


def test_a_classifier_is_replaced_and_set() -> None:
    model, x = net(), data()[0][:4]
    made = with_classifier(model, x, 3)
    assert made.get_layer("first") is model.get_layer("first")
    assert tuple(made(x).shape) == (4, 3)
    assert with_classifier(made, x, 3) is made
    features = keras.Model(made.input, made.layers[-1].input)
    rng = np.random.default_rng(0)
    coef, intercept = rng.normal(size=(8, 3)), rng.normal(size=3)
    set_classifier(made, x, coef, intercept)
    np.testing.assert_allclose(values(made(x)), values(features(x)) @ coef + intercept, atol=1e-4)


def test_a_trained_model_is_a_model(tmp_path: Path) -> None:
    """It predicts, it is exported, tapped, and trained further, without the code that made it."""
    found, x = run(tmp_path / "run", supervise=None, epochs=3), data()[0]
    assert found.problem == "" and found.weights == tmp_path / "run" / "model" / "network.keras"
    clf = spile.load(found.path)
    scores = keras.ops.convert_to_numpy(found.model(x))
    assert clf.predict(x).tolist() == [found.classes[i] for i in scores.argmax(1)]
    np.testing.assert_allclose(
        clf.predict_proba(x), np.exp(scores) / np.exp(scores).sum(1)[:, None], atol=1e-5
    )
    made = clf.export(tmp_path / "exported", x)
    assert made.verified[0].labels_identical
    with spile.tap(str(found.path), "second") as tap, spile.tap(found.model, "second") as expected:
        np.testing.assert_allclose(
            *(keras.ops.convert_to_numpy(each(x[:3])["second"]) for each in (tap, expected)), atol=1e-6
        )
    again = run(tmp_path / "again", model=str(found.path), epochs=1, rate=1e-12)
    assert again.accuracy == found.accuracy


def test_the_probes_head_is_where_training_starts(tmp_path: Path) -> None:
    """LP-FT: with a rate of next to nothing the accuracy is that of the probe, not that of chance."""
    keras.utils.set_random_seed(0)
    model = net(classes=3)
    spile.transfer(model, data(), tmp_path / "probe", addresses=["second"], progress=False)
    common = {"supervise": None, "rate": 1e-12, "optimizer": "sgd", "epochs": 1, "model": model}
    started = run(tmp_path / "started", from_probe=tmp_path / "probe", **common)
    unstarted = run(tmp_path / "unstarted", **common)
    assert started.epochs[0]["test/loss"] < unstarted.epochs[0]["test/loss"] - 0.1
    with pytest.raises(TrainingError, match="another model or other weights"):
        model.get_layer("first").kernel.assign(model.get_layer("first").kernel * 2)
        run(tmp_path / "other", from_probe=tmp_path / "probe", **common)


def test_the_curves_of_every_head_arrive_at_the_loggers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    wanted = replace(HEADS, targets=[Labels(), PseudoLabels(threshold=0.4)])
    found = run(tmp_path / "run", supervise=wanted, shots=4, loggers=["csv", "tensorboard"])
    curves = events(tmp_path / "run" / "logs")
    with (tmp_path / "run" / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "accuracy", "weight", "labels", "pseudo_labels", "coverage", "precision"):
        key = f"train/first/{name}"
        expected = [row[key] for row in found.epochs]
        assert curves[f"epoch_{key}"] == pytest.approx(expected, rel=1e-5, nan_ok=True), key
        assert [float(row[key]) for row in rows] == pytest.approx(expected, rel=1e-5, nan_ok=True), key
    assert curves["epoch_test/first/accuracy"] == pytest.approx(
        [r["test/first/accuracy"] for r in found.epochs]
    )
    assert "epoch_gradient/first/share/first" in curves


def events(folder: Path) -> dict[str, list[float]]:
    """The scalars of the event files, by tag, in order."""
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[str, list[float]] = {}
    for path in folder.rglob("events.out.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its checksum, the record, its checksum
            length = int.from_bytes(content[at : at + 8], "little")
            for value in Event.FromString(content[at + 12 : at + 12 + length]).summary.value:
                number = np.frombuffer(value.tensor.tensor_content, "float32")
                if number.size == 1:
                    found.setdefault(value.tag, []).append(float(number[0]))
            at += 16 + length
    return found


def test_what_no_row_tells_is_not_known(tmp_path: Path) -> None:
    """All rows have a label, so that pseudo-labels cover none."""
    wanted = replace(HEADS, targets=[Labels(), PseudoLabels(threshold=1.0)])
    found = run(tmp_path / "run", supervise=wanted)
    for row in found.epochs:
        assert np.isnan(row["train/first/coverage"]) and row["train/first/pseudo_labels"] == 0
        assert np.isfinite(row["train/first/accuracy"])
    with (tmp_path / "run" / "logs" / "metrics.csv").open() as file:
        assert [row["train/first/coverage"] for row in csv.DictReader(file)] == ["nan"] * len(found.epochs)
    record = read_run(tmp_path / "run")
    assert record.training is not None
    assert "Pseudo-labels" not in {chart.title for chart in record.training.charts}


def test_rows_of_a_class_that_no_training_row_has_count_as_wrong(tmp_path: Path) -> None:
    """In the accuracy; they have no loss."""
    x, y = data()
    splits = ["train"] * 40 + ["test"] * 20
    given = {"epochs": 1, "batch_size": 12, "supervise": HEADS, "progress": False, "diagnose": False}
    known = spile.train(net, open_source(x, labels=y, splits=splits), tmp_path / "known", **given)
    images = values(x)
    x, y = np.concatenate([images, images[:10]]), [*y, *["of another class"] * 10]
    splits += ["test"] * 10
    with warnings.catch_warnings(record=True) as told:  # TensorFlow has some of its own
        warnings.simplefilter("always")
        found = spile.train(net, open_source(x, labels=y, splits=splits), tmp_path / "found", **given)
    words = r"10 of 30 test rows .* 'of another class'\. They count as wrong"
    assert any(re.search(words, str(each.message)) for each in told)
    for name, share in (("loss", 1), ("first/loss", 1), ("accuracy", 2 / 3), ("first/accuracy", 2 / 3)):
        expected = share * known.epochs[0][f"test/{name}"]
        assert found.epochs[0][f"test/{name}"] == pytest.approx(expected, rel=1e-4)


def test_the_heads_of_a_run_are_given_back(tmp_path: Path) -> None:
    """With the weights they were trained to, as early exits are made of them."""
    x, y = data()
    found = run(tmp_path / "run")
    supervised = spile.load_supervised(found.path)
    again = spile.load_supervised(found.path, model=found.model)
    rows = choose_rows(open_source((x, y)), shots=None, validate=False, seed=0, unlabelled=False).test
    codes = np.array([found.classes.index(label) for label in y])
    logits = values(supervised(x[rows], training=False).aux["first"])
    np.testing.assert_allclose(
        logits, values(again(x[rows], training=False).aux["first"]), rtol=1e-4, atol=1e-5
    )
    loss = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(rows)), codes[rows]].mean()
    assert loss == pytest.approx(found.epochs[-1]["test/first/loss"], rel=1e-4)
    exits = supervised.exits((x, codes), accuracy=0.0)
    assert exits.predict(x[:5]).shape == (5, 3)
    with pytest.raises(TrainingError, match="holds no heads"):
        spile.load_supervised(run(tmp_path / "bare", supervise=None, epochs=1).path)


def test_mixes_train_on_weights_of_all_classes(tmp_path: Path) -> None:
    """A loss by hand, with weights that do not sum to 1, and a run."""
    from spile.keras.training import _loss, _right

    weights, logits = np.array([[0.5, 0.1, 0.9]], np.float32), np.array([[2.0, -1.0, 0.5]], np.float32)
    logs = logits - np.log(np.exp(logits).sum())
    found = keras.ops.convert_to_numpy(_loss(keras.ops.convert_to_tensor(weights), logits))
    np.testing.assert_allclose(found, -(weights * logs).sum(1), rtol=1e-5)
    assert not keras.ops.convert_to_numpy(_right(keras.ops.convert_to_tensor(weights), logits)).any()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)

    def make() -> keras.Model:
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))

    run = spile.train(
        make,
        (pixels, np.arange(24) % 3),
        tmp_path / "run",
        preprocessing=spile.ImagePreprocessing(crop=(8, 8)),
        augment=spile.Augmentation(at="first", policy="snapmix", resolution=1.0),
        epochs=1,
        batch_size=8,
        progress=False,
        diagnose=False,
    )
    assert np.isfinite(run.epochs[-1]["train/loss"])
    assert "Guided augmentation" in run.report.read_text()
