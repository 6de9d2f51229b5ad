"""Crops that say what they did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spile.augmentation import Crop
from spile.augmentation.randomness import Draw
from spile.errors import AugmentationError
from spile.feeding import cut


def test_areas_and_shapes_are_as_asked_and_whole_pixels() -> None:
    crop = Crop((24, 24), scale=(0.2, 0.6))
    frames = [crop.frame((100, 150), Draw(0, 0), f"s{i}") for i in range(300)]
    shares = [frame.height * frame.width / 15000 for frame in frames]
    assert 0.18 < min(shares) < 0.25
    assert 0.55 < max(shares) < 0.62
    assert all(0.7 < frame.width / frame.height < 1.4 for frame in frames)
    assert all(frame.top + frame.height <= 100 and frame.left + frame.width <= 150 for frame in frames)
    assert 0.4 < np.mean([frame.flipped for frame in frames]) < 0.6
    assert len({(frame.top, frame.left) for frame in frames}) > 250


def test_what_fits_nowhere_is_the_whole_image() -> None:
    frame = Crop((8, 8), scale=(0.9, 1.0), ratio=(9, 10)).frame((10, 10), Draw(0, 0), "a")
    assert (frame.height, frame.width) == (10, 10)


def test_seed_epoch_and_id_decide() -> None:
    crop = Crop((8, 8))
    frames = {crop.frame((90, 90), Draw(s, e), one) for s in (0, 1) for e in (0, 1) for one in ("a", "b")}
    assert len(frames) == 8
    assert crop.frame((90, 90), Draw(0, 0), "a") == crop.frame((90, 90), Draw(0, 0), "a")


def test_the_picture_is_what_the_frame_says() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    frame = Crop((20, 20), flip=1.0).frame((40, 60), Draw(0, 3), "a")
    same = cut(image, replace(frame, size=(int(frame.height), int(frame.width))))
    top, left = int(frame.top), int(frame.left)
    part = image[top : top + int(frame.height), left : left + int(frame.width)]
    np.testing.assert_array_equal(same, part[:, ::-1])
    assert cut(image, frame).shape == (20, 20, 3)


@pytest.mark.parametrize("options", [{"scale": (0.0, 1.0)}, {"ratio": (2, 1)}, {"flip": 2}])
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(AugmentationError, match="write"):
        Crop((8, 8), **options)


@pytest.mark.parametrize("size", [48, (48,), (48, 0), (0.5, 0.5)])
def test_a_size_is_height_and_width(size: Any) -> None:
    with pytest.raises(
        AugmentationError, match=r"size=.*: write height and width in pixels, e\.g\. \(48, 48\)"
    ):
        Crop(size)
