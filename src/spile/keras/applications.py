"""The models of `keras.applications`, with the preprocessing that belongs to each family."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from inspect import isfunction
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from spile import downloads
from spile.errors import ModelError
from spile.keras.files import load_weights
from spile.keras_backend import keras_home
from spile.loading import Built, Options, did_you_mean, first_line
from spile.preprocessing import ImagePreprocessing

Array = NDArray[Any]

_HOST = "https://storage.googleapis.com"


def from_applications(name: str, options: Options) -> Built:
    """A model of `keras.applications` with its classifier, by default with its ImageNet weights.

    Images are scaled so that the shorter side is the model's input size, and the centre is taken.
    """
    builders = {key: value for key, value in vars(keras.applications).items() if isfunction(value)}
    if name not in builders:
        raise ModelError(
            f"keras.applications has no model {name!r}. {did_you_mean('keras:', name, builders)}"
        )
    build = builders[name]
    pretrained = options.pretrained and options.weights is None
    if pretrained:
        model = _pretrained(name, build, options.input_size)
    else:
        model = _random(name, build, options.input_size)
        if options.weights is not None:
            load_weights(model, options.weights)
    family = getattr(keras.applications, build.__module__.rpartition(".")[2])
    channels_last = keras.config.image_data_format() == "channels_last"
    return Built(
        model=model,
        preprocessing=preprocessing_of(name, family.preprocess_input).at(
            model.input_shape[1 if channels_last else 2]
        ),
        classes=imagenet_classes() if pretrained else None,
        channels_last=channels_last,
    )


def preprocessing_of(name: str, preprocess_input: Callable[..., Array]) -> ImagePreprocessing:
    """What a `preprocess_input` does to pixels, found out by giving it pixels.

    Raises `ModelError` where that is not one scale and shift for each channel, in the order RGB or BGR.
    """
    black, *pure = _answer(preprocess_input, [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    rise = (np.stack(pure) - black) / 255  # rise[i, j]: of what the model takes j-th, with the i-th of RGB
    backwards = not rise[0, 0]
    slopes = np.diag(rise[::-1] if backwards else rise)
    if slopes.all():
        spec = ImagePreprocessing(channel_order="BGR" if backwards else "RGB", **normalisation(slopes, black))
        levels = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 99)], axis=1)
        ours = (levels[:, :: -1 if backwards else 1] * spec.scale - spec.mean) / spec.std
        if np.allclose(_answer(preprocess_input, levels), ours, rtol=0, atol=1e-9):
            return spec
    raise ModelError(f"keras:{name} prepares pixels in a way that spile does not reproduce")


def _answer(preprocess_input: Callable[..., Array], pixels: Any) -> Array:
    """What it makes of a row of pixels; it computes in the type it is given, and in place."""
    image = np.array(pixels, np.float64)[None, None]
    row: Array = preprocess_input(image, data_format="channels_last")[0, 0]
    return row


def normalisation(slopes: Sequence[float] | Array, offsets: Sequence[float] | Array) -> dict[str, Any]:
    """``pixel * slope + offset`` for each channel, as the scale, mean and std of `ImagePreprocessing`."""
    scale = _plain(slopes[0], 15) if np.allclose(slopes, slopes[0], rtol=1e-12, atol=0) else 1 / 255
    std = [scale / slope for slope in slopes]
    return {
        "scale": scale,
        "mean": tuple(
            _plain(0.0 - offset * deviation) for offset, deviation in zip(offsets, std, strict=True)
        ),
        "std": tuple(_plain(deviation) for deviation in std),
    }


def imagenet_classes() -> tuple[str, ...] | None:
    """The names of the 1000 classes, where Keras has fetched them before."""
    path = keras_home() / "models" / "imagenet_class_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return tuple(str(index[str(number)][1]) for number in range(1000))
    except (OSError, ValueError, LookupError):
        return None


def _random(name: str, build: Callable[..., keras.Model], size: int | None) -> keras.Model:
    shape = None
    if size is not None:
        shape = (size, size, 3) if keras.config.image_data_format() == "channels_last" else (3, size, size)
    try:
        return build(weights=None, input_shape=shape)
    except Exception as error:  # Keras raises ValueError, the backends their own for shapes that do not fit
        at = f" for inputs of {size}x{size}" if size is not None else ""
        raise ModelError(f"keras:{name} cannot be built{at}: {first_line(error)}") from error


def _pretrained(name: str, build: Callable[..., keras.Model], size: int | None) -> keras.Model:
    """With ImageNet weights, which Keras itself loads for the model's own input size only."""
    advice = "Give a local copy with --weights FILE.weights.h5 (weights=...)"
    try:
        with downloads.fetching(f"The pretrained weights of keras:{name}", url=_HOST, advice=advice):
            model = build(weights="imagenet")
    except ModelError:
        raise
    except Exception as error:  # Keras wraps what goes wrong on the network in a bare Exception
        raise ModelError(
            f"The pretrained weights of keras:{name} cannot be had: {first_line(error)}. {advice}"
        ) from error
    if size is None or size in model.input_shape:
        return model
    resized = _random(name, build, size)
    try:
        resized.set_weights(model.get_weights())
    except ValueError as error:
        own = max(side for side in model.input_shape if side)
        raise ModelError(
            f"keras:{name} with its pretrained weights takes inputs of {own}x{own} only, not {size}x{size}: "
            "leave out input_size (--input-size)"
        ) from error
    return resized


def _plain(number: float, digits: int = 12) -> float:
    """Without the last digits, which only hold rounding errors."""
    return float(f"{number:.{digits}g}")
