"""What all ways of loading a model share: the request, the result, the wording of failures."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spile.errors import MissingDependency, ModelError, nearest
from spile.preprocessing import ImagePreprocessing, Preprocessing

Tokenize = Callable[[list[str]], dict[str, NDArray[np.integer[Any]]]]
"""A list of n texts to a model's inputs, integer arrays of shape (n, tokens)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Weights to use instead of the library's own; pretrained or random ones; the side of square inputs."""

    weights: Path | None = None
    pretrained: bool = True
    input_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model in eval mode and what is known of it, as in `spile.models.LoadedModel`."""

    model: Any
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    tokenize: Tokenize | None = None
    channels_last: bool = False


def resized(spec: Preprocessing | None, options: Options, reference: str) -> Preprocessing | None:
    """The preprocessing at ``options.input_size``, where one is given."""
    if options.input_size is None:
        return spec
    if not isinstance(spec, ImagePreprocessing):
        raise ModelError(
            f"{reference} has no image preprocessing, so input_size={options.input_size} has no meaning"
        )
    return spec.at(options.input_size)


def library(module: str, *, extra: str, purpose: str) -> Any:
    """Import an optional library, or raise `MissingDependency`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise MissingDependency(module, extra=extra, purpose=purpose) from error


def did_you_mean(prefix: str, name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, as references to type."""
    near = nearest(name, known)
    return f"Nearest: {', '.join(prefix + word for word in near)}" if near else "There are none"


def first_line(error: Exception) -> str:
    """The message of a foreign error, cut to what fits into one line of ours."""
    return str(error).partition("\n")[0] or type(error).__name__
