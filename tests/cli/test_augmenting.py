"""`spile augment`: one picture of what would be done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spile.cli import app
from spile.cli.training import augmentation_named
from spile.errors import AugmentationError

FACTORY = """
import spile
from torch import nn

def make():
    body = nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU()
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model, spile.ImagePreprocessing(resize=32, crop=(32, 32))
"""


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / "one.png")
    (tmp_path / "net.py").write_text(FACTORY)
    return [str(tmp_path / "photos"), "-m", f"{tmp_path / 'net.py'}:make", "--at", "1"]


def spile(*args: str) -> None:
    app([*args], standalone_mode=False)


@pytest.mark.parametrize("policy", ["bylevel", "keep", "snapmix"])
def test_the_picture_shows_image_map_bands_and_result(
    given: list[str], policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "preview.png"
    spile("augment", *given, "--preview", "--policy", policy, "-o", str(out), "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == [8, 8]
    assert len(told["samples"]) == 2
    with Image.open(out) as picture:
        assert picture.width > 5 * 224
        assert 2 * 224 < picture.height < 3 * 224
    if policy == "bylevel":
        for row in told["samples"]:
            assert row["low"] + row["mid"] + row["high"] == pytest.approx(1)


def test_without_preview_it_says_what_there_is_to_do(given: list[str]) -> None:
    with pytest.raises(AugmentationError, match="write --preview to draw what would be done"):
        spile("augment", *given)


def test_an_unknown_policy_names_the_nearest(given: list[str]) -> None:
    with pytest.raises(AugmentationError, match="unknown policy 'mapcutmx': did you mean 'mapcutmix'"):
        spile("augment", *given, "--preview", "--policy", "mapcutmx")


def test_what_train_is_told() -> None:
    found = augmentation_named("inside:layer3.0", "random")
    assert found is not None
    assert (found.policy, found.at, found.maps) == ("inside", "layer3.0", "random")
    assert augmentation_named(None, "guided") is None
    for text in ("bylevel", "bylvl:layer3", "bylevel:"):
        with pytest.raises(AugmentationError, match="write a policy and a layer, bylevel:layer3"):
            augmentation_named(text, "guided")
