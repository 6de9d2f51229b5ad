"""`spile.train` on Keras: small networks, seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import spile
from spile.errors import ModelError, TrainingError
from spile.keras.classifiers import set_classifier, with_classifier
from spile.reporting.record import read_run
from spile.supervision import Constant


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
