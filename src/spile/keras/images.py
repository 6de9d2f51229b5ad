"""uint8 images as a model takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from spile.errors import ModelError
from spile.keras.trees import is_tensor, tensor_of
from spile.preprocessing import ImagePreprocessing


def is_images(value: Any) -> bool:
    """Whether a value is a batch of pixels (samples, height, width, channels) that wait for preprocessing."""
    pixels = isinstance(value, np.ndarray) or is_tensor(value)
    return pixels and len(value.shape) == 4 and keras.backend.standardize_dtype(value.dtype) == "uint8"


def ready_images(value: Any, *, preprocessing: Any) -> Any:
    """What a tap was called with: uint8 images of the model's input size are normalised, all else is ready.

    Raises `ModelError` for images that would have to be resized, and for files and Pillow images.
    """
    if isinstance(value, (str, Path)) or hasattr(value, "getexif"):
        raise ModelError(
            f"a tap is called with tensors or arrays, not with a {type(value).__name__}: "
            "spile.extract(tap, data) reads files and Pillow images, and prepares them"
        )
    if not is_images(value) or not isinstance(preprocessing, ImagePreprocessing):
        return value
    if preprocessing.crop is not None and value.shape[1:3] != preprocessing.crop:
        raise ModelError(
            f"the images are {value.shape[1]}x{value.shape[2]} and the model's input is "
            f"{preprocessing.crop[0]}x{preprocessing.crop[1]}: spile.extract(tap, images) resizes them, a "
            "call of the tap does not"
        )
    return normalised(tensor_of(value), preprocessing)


def normalised(pixels: Any, preprocessing: ImagePreprocessing) -> Any:
    """Pixels (samples, height, width, channels) as the model takes them, in Keras' own axis order."""
    dtype = keras.config.floatx()
    images = keras.ops.cast(pixels, dtype)
    if preprocessing.channel_order == "BGR":
        images = keras.ops.flip(images, axis=-1)
    mean = keras.ops.convert_to_tensor(preprocessing.mean, dtype)
    std = keras.ops.convert_to_tensor(preprocessing.std, dtype)
    images = (images * preprocessing.scale - mean) / std
    first = keras.config.image_data_format() == "channels_first"
    return keras.ops.transpose(images, (0, 3, 1, 2)) if first else images
