"""The whole model as one `.keras` file, made of Keras' own layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import spile
from spile.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
"""Of NumPy, when Keras saves a model."""


def functional() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, 3))
    y = layers.ReLU(name="stem")(layers.Conv2D(6, 3, strides=2)(x))
    y = layers.Conv2D(8, 3, name="body")(y)
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(256, 3, name="late")(y))
    return keras.Model(x, layers.Dense(4)(y))


HEADS = ["logistic", "lda", "linear_svm", "svm", "knn", "svm calibrated"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    images, _ = _images(False)
    labels = [("ant", "bee", "cow")[i % 3] for i in range(40)]
    return spile.transfer(
        functional(),
        (images, labels),
        tmp_path_factory.mktemp("run"),
        addresses=["body"],
        cv=3,
        nested=False,
        progress=False,
    )


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_every_kind(tmp_path: Path, run: Any, name: str) -> None:
    head = run.result.fit(estimator=name.split()[0], calibrate="calibrated" in name)
    model = dataclasses.replace(run.model, head=head)
    new = np.random.default_rng(1).normal(0, 0.3, (20, 16, 16, 3)).astype(np.float32)

    (one,) = model.export(tmp_path / "made", new).verified

    assert one.largest_difference < 1e-4
    assert one.labels_identical


@pytest.mark.parametrize("pixels", [False, True])
def test_the_file_says_what_the_pipeline_says(tmp_path: Path, pixels: bool) -> None:
    images, labels = _images(pixels)
    spec = spile.ImagePreprocessing(resize=16, crop=(16, 16))
    run = spile.transfer(
        functional(),
        (images, labels),
        tmp_path / "run",
        addresses=["stem", "body"],
        preprocessing=spec if pixels else None,
        combine="greedy",
        cv=3,
        progress=False,
    )

    made = run.export(tmp_path / "made", images[:10])

    (one,) = made.verified
    assert one.format == "keras"
    assert one.largest_difference < 1e-4
    assert one.labels_identical
    again = keras.saving.load_model(tmp_path / "made" / "model.keras", safe_mode=True)
    assert not any("late" in layer.name for layer in again._flatten_layers())
    shares = keras.ops.convert_to_numpy(again(images[:10]))
    np.testing.assert_allclose(shares, run.model.predict_proba(images[:10]), atol=1e-4)


def _images(pixels: bool) -> tuple[np.ndarray[Any, Any], list[str]]:
    labels = [("no", "yes")[i % 2] for i in range(40)]
    red = np.array([label == "yes" for label in labels])
    images = np.random.default_rng(0).normal(0, 0.2, (40, 16, 16, 3)).astype(np.float32)
    images[..., 0] += red[:, None, None]
    return (np.clip(images * 80 + 100, 0, 255).astype(np.uint8) if pixels else images), labels


def test_a_model_without_a_graph_is_refused(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("spile-tests-whole")
    class Own(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.body, self.head = layers.Conv2D(8, 3), layers.Dense(4)

        def call(self, x: Any) -> Any:
            return self.head(self.body(x))

    model = Own()
    images, labels = _images(False)
    model(images[:2])
    run = spile.transfer(model, (images, labels), tmp_path / "run", addresses=["body"], cv=3, progress=False)
    with pytest.raises(ModelError, match=r"Own cannot be put into a new model .it has no graph of one input"):
        run.export(tmp_path / "made", images)


def test_rows_of_length_1(tmp_path: Path, run: Any) -> None:
    result = spile.probe(run.store, unit_rows=True, nested=False, repeats=1)
    described = {**run.model.description, "unit_rows": True}
    head = result.fit(run.result.best.point)
    model = dataclasses.replace(run.model, head=head, description=described)
    new = np.random.default_rng(1).normal(0, 0.3, (20, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(model.features(new), axis=1), 1, rtol=1e-5)
    (one,) = model.export(tmp_path / "made", new).verified
    assert one.largest_difference < 1e-4
