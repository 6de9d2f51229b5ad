"""Backbones of keras-hub, with the image converter or the tokenizer that belongs to each."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from spile import downloads
from spile.errors import ModelError
from spile.keras.applications import normalisation
from spile.keras.files import load_weights
from spile.loading import Built, Options, Tokenize, first_line, library, resized
from spile.preprocessing import ImagePreprocessing, Interpolation, Preprocessing, TextPreprocessing

_INTERPOLATIONS: dict[str, Interpolation] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos3": "lanczos",
}
_SHORTEST = 16
"""Texts are padded to a power of two from here on, so that few lengths have to be compiled for."""


def from_hub(name: str, options: Options) -> Built:
    """The backbone of a preset: a name in keras-hub, a Kaggle or Hugging Face handle, or a local folder."""
    hub = library("keras_hub", extra="keras-hub", purpose=f"loading keras_hub:{name}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _built(hub, name, str(folder.resolve()), options)
    if name.startswith((".", "/", "~", "\\")):
        raise ModelError(f"keras_hub:{name}: there is no such folder")
    with _fetching(name):
        return _built(hub, name, name, options)


def _built(hub: Any, name: str, preset: str, options: Options) -> Built:
    try:
        model = _backbone(hub, preset, options)
        preprocessor = _text_preprocessor(hub, preset)
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        raise ModelError(f"keras_hub:{name} cannot be built: {first_line(error)}") from error
    spec: Preprocessing | None = _image_preprocessing(hub, preset)
    if preprocessor is not None:
        spec = TextPreprocessing(tokenizer=f"keras_hub:{preset}", max_length=preprocessor.sequence_length)
    if options.weights is not None:
        load_weights(model, options.weights)
    return Built(
        model=model,
        preprocessing=resized(spec, options, f"keras_hub:{name}"),
        tokenize=tokenizer_of(preprocessor, model) if preprocessor is not None else None,
        channels_last=getattr(model, "data_format", keras.config.image_data_format()) == "channels_last",
    )


def tokenizer_of(preprocessor: Any, model: keras.Model) -> Tokenize:
    """The function from texts to the backbone's inputs, each int32 of shape (texts, tokens)."""
    prepare = getattr(preprocessor, "generate_preprocess", preprocessor)

    def tokenize(texts: list[str]) -> dict[str, NDArray[np.integer[Any]]]:
        prepared = prepare(texts)
        arrays = {
            key: keras.ops.convert_to_numpy(prepared[key]).astype(np.int32)
            for key in model.input
            if key in prepared
        }
        length = _padded_length(arrays["padding_mask"])
        return {key: array[:, :length] for key, array in arrays.items()}

    return tokenize


def _backbone(hub: Any, preset: str, options: Options) -> keras.Model:
    sized = {}
    if (size := options.input_size) is not None:
        last = keras.config.image_data_format() == "channels_last"
        sized["image_shape"] = (size, size, 3) if last else (3, size, size)
    pretrained = options.pretrained and options.weights is None
    return hub.models.Backbone.from_preset(preset, load_weights=pretrained, **sized)


def _image_preprocessing(hub: Any, preset: str) -> ImagePreprocessing | None:
    """What the preset's image converter does, resizing with Pillow; ``None`` where that cannot be said."""
    try:
        config = hub.layers.ImageConverter.from_preset(preset).get_config()
    except (ValueError, FileNotFoundError):  # a backbone for something else, or a preset without one
        return None
    height, width = size = config["image_size"] or (None, None)
    interpolation = _INTERPOLATIONS.get(config["interpolation"])
    crops = config["crop_to_aspect_ratio"]
    if interpolation is None or config["pad_to_aspect_ratio"] or (crops and height != width):
        return None
    values = (1.0 if config["scale"] is None else config["scale"], config["offset"] or 0.0)
    slopes, offsets = (np.broadcast_to(np.asarray(value, np.float64), 3) for value in values)
    return ImagePreprocessing(
        resize=None if height is None else height if crops else tuple(size),
        crop=None if height is None else tuple(size),
        interpolation=interpolation,
        **normalisation(slopes, offsets),
    )


def _text_preprocessor(hub: Any, preset: str) -> Any:
    """The layer that tokenizes and packs texts; ``None`` for backbones that read something else."""
    for kind in (hub.models.TextClassifierPreprocessor, hub.models.CausalLMPreprocessor):
        try:
            preprocessor = kind.from_preset(preset)
        except (ValueError, FileNotFoundError):  # no such kind for this backbone, or a preset without one
            continue
        preprocessor.sequence_length = min(preprocessor.sequence_length, TextPreprocessing.max_length)
        return preprocessor
    return None


def _padded_length(mask: NDArray[np.int32]) -> int:
    longest = int(mask.shape[1])
    if mask[:, 0].all():  # padded on the right
        longest = int(mask.any(axis=0).sum())
    return min(int(mask.shape[1]), max(_SHORTEST, 1 << (longest - 1).bit_length()))


def _fetching(name: str) -> AbstractContextManager[None]:
    advice = f"Copy its folder here and type keras_hub:./{Path(name).name}"
    if name.startswith("hf://"):
        return downloads.hub(f"keras_hub:{name}", advice=advice)
    return downloads.fetching(f"keras_hub:{name}", url="https://www.kaggle.com", advice=advice)
