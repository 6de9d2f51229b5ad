"""uint8 images as a model takes them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from spile.errors import ModelError
from spile.keras.images import is_images, normalised, ready_images
from spile.preprocessing import ImagePreprocessing

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), "uint8")
SIZED = ImagePreprocessing(
    resize=(6, 5), crop=(6, 5), interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


def array(value: Any) -> Any:
    return ops.convert_to_numpy(value)


def by_numpy(pixels: Any) -> Any:
    return ((pixels / 255 - (0.4, 0.5, 0.6)) / (0.2, 0.3, 0.4)).astype("float32")


def test_what_images_are() -> None:
    assert is_images(PIXELS)
    assert is_images(ops.convert_to_tensor(PIXELS))
    for other in (PIXELS[0], PIXELS.astype("int32"), PIXELS / 255, PIXELS.tolist(), "x.png", {"x": PIXELS}):
        assert not is_images(other)


@pytest.mark.parametrize("make", [np.asarray, ops.convert_to_tensor], ids=["array", "tensor"])
def test_images_are_normalised(make: Any) -> None:
    found = ready_images(make(PIXELS), preprocessing=SIZED)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(array(found), by_numpy(PIXELS), rtol=1e-5, atol=1e-6)


def test_channels_the_other_way_round() -> None:
    found = normalised(PIXELS, replace(SIZED, channel_order="BGR"))
    np.testing.assert_allclose(array(found), by_numpy(PIXELS[..., ::-1]), rtol=1e-5, atol=1e-6)


def test_pixels_as_they_are() -> None:
    plain = replace(SIZED, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(array(normalised(PIXELS, plain)), PIXELS)


@pytest.mark.parametrize("value", [by_numpy(PIXELS), PIXELS[0], {"x": PIXELS}, None])
def test_all_else_is_ready(value: Any) -> None:
    assert ready_images(value, preprocessing=SIZED) is value


def test_without_preprocessing_nothing_is_done() -> None:
    assert ready_images(PIXELS, preprocessing=None) is PIXELS


def test_other_sizes_are_not_resized() -> None:
    with pytest.raises(ModelError, match=r"the images are 6x5 and the model's input is 8x8: spile\.extract"):
        ready_images(PIXELS, preprocessing=replace(SIZED, crop=(8, 8)))
    found = ready_images(PIXELS, preprocessing=replace(SIZED, resize=None, crop=None))
    assert tuple(found.shape) == PIXELS.shape


@pytest.mark.parametrize(
    "value", ["cat.png", Path("cat.png"), Image.fromarray(PIXELS[0])], ids=["text", "path", "pil"]
)
def test_files_and_pictures_are_for_extraction(value: Any) -> None:
    with pytest.raises(ModelError, match=r"with tensors or arrays, not with .*: spile\.extract\(tap, data\)"):
        ready_images(value, preprocessing=SIZED)


CHANNELS_FIRST = """
import keras, numpy as np
keras.config.set_image_data_format("channels_first")
from spile.keras.images import normalised
from spile.preprocessing import ImagePreprocessing
images = ImagePreprocessing(
    resize=(4, 5), crop=(4, 5), interpolation="bilinear", mean=(0., .5, 0.), std=(1., 1., 2.)
)
found = keras.ops.convert_to_numpy(normalised(np.full((2, 4, 5, 3), 255, "uint8"), images))
assert found.shape == (2, 3, 4, 5), found.shape
assert np.allclose(found[0, :, 0, 0], (1, .5, .5)), found[0, :, 0, 0]
"""


@pytest.mark.zoo
def test_where_keras_puts_channels_first() -> None:
    run = subprocess.run([sys.executable, "-c", CHANNELS_FIRST], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
