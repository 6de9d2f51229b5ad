"""A saved model: what its folder may name, and how a broken one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spile
from spile.errors import DataError, ModelError
from spile.probing import deployment
from spile.probing.ridge import fit_ridge

CLASSES: list[Any] = [np.array([-3, 7]), np.array(["a b", "é"]), np.array([0.1, 2.5, 1e300])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model", np.array(["no", "yes"]))


def save(folder: Path, classes: Any) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(12, 4)
    tap = spile.tap(net, "0", example=x)
    y = classes[np.arange(12) % len(classes)]
    head = fit_ridge(tap(x)["0"].detach().numpy(), y, classes=classes)
    deployment.save(
        folder, tap=tap, example=x, head=head, preprocessing=None, about={"point": "0"}, exported=True
    )
    return folder


@pytest.mark.parametrize("classes", CLASSES)
def test_labels_come_back_as_they_were(tmp_path: Path, classes: Any) -> None:
    clf = spile.load(save(tmp_path / "model", classes))

    found = clf.predict(np.zeros((3, 4), np.float32))
    assert clf.classes == tuple(classes.tolist())
    assert found.dtype == classes.dtype
    assert set(found.tolist()) <= set(classes.tolist())


def test_saving_again_replaces_the_folder(folder: Path) -> None:
    (folder / "head.skops").write_text("of an earlier model")
    (folder / "config.json").write_text("of an earlier model")

    save(folder, CLASSES[0])

    names = {path.name for path in folder.iterdir()}
    assert names == {"model.json", "network.pt2", "head.safetensors"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "reference",
    [
        *("evil.py:make", "other.pt2", "hf:somebody/model", "hf:/tmp"),
        *("other.keras", "network.h5", "keras_hub:./folder", "keras_hub:hf://somebody/model"),
    ],
)
def test_a_folder_may_not_name_code_or_files_elsewhere(
    folder: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(folder)
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "reference": reference}))

    with pytest.raises(ModelError, match="anything else could run code"):
        spile.load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.json", "[1]", "is broken"),
        ("model.json", "{", "is broken"),
        ("model.json", '{"format": 99}', "has format 99; this spile reads 2"),
        ("model.json", '{"format": 2}', "no classes, points, preprocessing"),
        ("head.safetensors", "", "cannot be read"),
        ("network.pt2", "", "not an exported program"),
    ],
)
def test_broken_folders(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)

    with pytest.raises(ModelError, match=message):
        spile.load(folder)


def test_a_sample_that_cannot_be_read_is_named(folder: Path) -> None:
    clf = spile.load(folder)

    with pytest.raises(DataError, match="1 cannot be used"):
        clf.predict([np.zeros(4, np.float32), np.zeros(5, np.float32)])
    batches = list(clf.predict_batches([np.zeros(4, np.float32), np.zeros(5, np.float32)]))
    assert [len(labels) for _, labels, _ in batches] == [1]
    assert batches[0][0].skipped[0].id == "1"


def of_images(folder: Path, preprocessing: Any) -> tuple[Any, np.ndarray[Any, Any]]:
    """A run on images, whose network is exported, and the images (12, 8, 8, 3)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3)).astype(np.uint8)
    data = pixels, ["a", "b"] * 6
    options = {"preprocessing": preprocessing, "progress": False, "cv": 2}
    return spile.transfer(net, data, folder, addresses=["0"], **options), pixels


@pytest.mark.parametrize(
    ("crop", "expected"), [(None, "3, height, width"), ((8, 8), "3, 8, 8")], ids=["any size", "one size"]
)
def test_ready_images_of_another_shape_name_the_one_that_is_expected(
    tmp_path: Path, crop: Any, expected: str
) -> None:
    of_images(tmp_path, spile.ImagePreprocessing(resize=None, crop=crop))
    clf = spile.load(tmp_path)

    with pytest.raises(DataError, match=rf"cannot take these, \(n, 8, 8, 3\): give \(n, {expected}\)"):
        clf.predict(np.zeros((2, 8, 8, 3), np.float32))
    assert len(clf.predict(np.zeros((2, 3, 8, 8), np.float32))) == 2


def test_a_file_that_is_named_twice_is_two_samples(tmp_path: Path) -> None:
    from PIL import Image

    run, pixels = of_images(tmp_path, spile.ImagePreprocessing(resize=None, crop=None))
    file = str(tmp_path / "one.png")
    Image.fromarray(pixels[0]).save(file)

    clf = spile.load(tmp_path)
    found = clf.predict_proba([file, file])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[:1], run.model.predict_proba(pixels[:1]), rtol=1e-5)
    ids = [record.id for batch, _, _ in clf.predict_batches([file, file]) for record in batch.records]
    assert ids == [file, f"{file} (2)"]
