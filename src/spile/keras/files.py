"""Keras models in files, and weights in files; nothing in either is run."""

from __future__ import annotations

import re
from pathlib import Path

import keras

from spile.errors import ModelError
from spile.loading import Built, Options, first_line, resized
from spile.preprocessing import Preprocessing, TextPreprocessing

_WEIGHTS = (".h5", ".hdf5", ".keras")


def from_file(path: str, options: Options) -> Built:
    """A model that ``model.save`` wrote to a .keras or .h5 file; its inputs are taken as ready."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"There is no Keras file {path}")
    if options.weights is not None:
        raise ModelError(f"{path} holds its own weights: leave out {options.weights}")
    resized(None, options, path)
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # what the file describes may fail in any way
        raise ModelError(_refusal(path, error)) from error
    return Built(model=model, channels_last=keras.config.image_data_format() == "channels_last")


def from_object(model: keras.Model, spec: Preprocessing | None, options: Options, place: str) -> Built:
    """A model that the user's own code at `place` made."""
    if isinstance(spec, TextPreprocessing):
        raise ModelError(
            f"{place} returned a TextPreprocessing, which is for PyTorch models: give the Keras model token "
            "ids, as arrays"
        )
    if options.weights is not None:
        load_weights(model, options.weights)
    return Built(
        model=model,
        preprocessing=resized(spec, options, place),
        channels_last=keras.config.image_data_format() == "channels_last",
    )


def load_weights(model: keras.Model, path: Path) -> None:
    """Put the weights of a .weights.h5, .h5 or .keras file into a model of the same architecture."""
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}")
    if path.suffix not in _WEIGHTS:
        raise ModelError(
            f"{path} is not a weights file that Keras reads: use .weights.h5 (from model.save_weights), "
            ".h5 or .keras"
        )
    try:
        model.load_weights(path)
    except Exception as error:  # Keras and h5py raise all sorts for files that do not fit
        raise ModelError(f"The weights in {path} do not fit {model.name}: {first_line(error)}") from error


def _refusal(path: str, error: Exception) -> str:
    """Why Keras does not load a file, and what to do."""
    said = str(error)
    if "Lambda" in said or "lambda" in said:
        return (
            f"{path} holds a Lambda layer, and loading that would run code from the file (Keras' safe mode). "
            f"If you trust the file: spile.tap(keras.saving.load_model({path!r}, safe_mode=False), ...)"
        )
    if foreign := re.search(r"(?:Could not locate (?:class|function)|Unknown \w+:) '(?:\w+>)?(\w+)'", said):
        name = foreign[1]
        return (
            f"{path} needs {name}, which Keras does not know: put "
            f"@keras.saving.register_keras_serializable() above its definition, import that module, and load "
            "the file again"
        )
    if "No model config found" in said:
        return f"{path} holds weights only. Name their architecture too: keras:NAME --weights {path}"
    return f"{path} is no model that Keras {keras.__version__} can load: {first_line(error)}"
