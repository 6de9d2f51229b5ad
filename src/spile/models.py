"""Models by name: `parse` reads a reference such as ``timm:resnet50``, `load_model` builds what it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from spile.errors import MissingDependency, ModelError, nearest
from spile.preprocessing import ImagePreprocessing, Preprocessing

if TYPE_CHECKING:
    from spile.torch.models import Built

Scheme = Literal["timm", "torchvision", "hf", "keras", "file", "pt2", "demo"]

_PREFIXES = ("timm", "torchvision", "hf", "keras", "demo")
_FORMS = "timm:NAME, torchvision:NAME, hf:OWNER/NAME, hf:./FOLDER, file.py:FACTORY, model.pt2 or demo:NAME"
_WEIGHT_FILES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".h5"})


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """Where a model comes from. `str()` gives back the text that `parse` reads.

    `name` is an architecture, a Hugging Face name or a path; `factory` a function in the Python file there.
    """

    scheme: Scheme
    name: str
    factory: str | None = None

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"{self.name}:{self.factory}"
        if self.scheme == "pt2" or self.name.endswith(".keras"):
            return self.name
        return f"{self.scheme}:{self.name}"


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, and what is known of it.

    `classes` names the model's outputs where its library's own weights are in it. For models that read text,
    `tokenize` turns a list of n strings into the model's inputs, integer arrays of shape (n, tokens).
    """

    model: Any
    reference: str
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    tokenize: Callable[[list[str]], dict[str, NDArray[np.integer[Any]]]] | None
    input_size: int | None = None
    """The side in pixels that was asked for in place of the model's own."""


def parse(text: str) -> ModelReference:
    """Read a model reference; raises `ModelError` that shows the forms there are.

    Paths may hold colons and backslashes (``C:\\models\\net.py:make``); nothing on disk is looked at.
    """
    prefix, colon, name = text.partition(":")
    if colon and prefix in _PREFIXES:
        if not name:
            raise ModelError(f"{text!r} names no model. Type one of: {_FORMS}")
        return ModelReference(scheme=_scheme(prefix), name=name)
    if factory := re.fullmatch(r"(?s)(.+\.py):([A-Za-z_]\w*)", text):
        return ModelReference(scheme="file", name=factory[1], factory=factory[2])
    suffix = Path(text).suffix.lower()
    if suffix == ".pt2":
        return ModelReference(scheme="pt2", name=text)
    if suffix == ".keras":
        return ModelReference(scheme="keras", name=text)
    raise ModelError(
        f"{text!r} is not a model reference. {_advice(text, prefix if colon else '', name, suffix)}"
    )


def load_model(
    reference: str | ModelReference,
    *,
    weights: str | Path | None = None,
    pretrained: bool = True,
    input_size: int | None = None,
    device: str | None = None,
) -> LoadedModel:
    """Build the model that `reference` names, in eval mode, with the preprocessing it was trained with.

    `weights` is a local file to use instead of the library's own: .safetensors, or .pth/.pt, of which only
    tensors are read. ``pretrained=False`` builds the architecture alone, with random weights. `input_size` is
    the side in pixels of square inputs. Raises `ModelError` for what cannot be resolved, read or fetched, and
    `MissingDependency` where the library is not installed.
    """
    reference = parse(reference) if isinstance(reference, str) else reference
    if reference.scheme == "keras":
        raise ModelError(
            f"{reference}: this version of spile loads PyTorch models only. Type one of: {_FORMS}"
        )
    if input_size is not None and input_size < 1:
        raise ModelError(f"input_size is {input_size}; it is the side of the input in pixels, 1 or more")
    built = _build(reference, Path(weights) if weights is not None else None, pretrained, input_size, device)
    return LoadedModel(
        built.model, str(reference), built.preprocessing, built.classes, built.tokenize, input_size
    )


def as_loaded(model: Any) -> LoadedModel:
    """Take a model object, of which nothing else is known, a reference, or a `LoadedModel`."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, str | ModelReference):
        return load_model(model)
    return LoadedModel(model, "", None, None, None)


def example_for(loaded: LoadedModel) -> Any:
    """A batch, or the shape of one, that the model takes; ``None`` where its preprocessing does not tell."""
    if loaded.tokenize is not None:
        return loaded.tokenize(["a few words to see the layers run"] * 2)
    if isinstance(loaded.preprocessing, ImagePreprocessing) and loaded.preprocessing.crop is not None:
        return (2, loaded.preprocessing.channels, *loaded.preprocessing.crop)
    return None


def _build(
    reference: ModelReference,
    weights: Path | None,
    pretrained: bool,
    input_size: int | None,
    device: str | None,
) -> Built:
    try:
        from spile.torch import models as backend
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependency("torch", extra="torch", purpose=f"loading {reference}") from error
    options = backend.Options(weights=weights, pretrained=pretrained, input_size=input_size)
    match reference.scheme:
        case "timm":
            built = backend.from_timm(reference.name, options)
        case "torchvision":
            built = backend.from_torchvision(reference.name, options)
        case "hf":
            built = backend.from_hub(reference.name, options)
        case "demo":
            built = backend.from_demo(reference.name, options)
        case "pt2":
            built = backend.from_pt2(reference.name, options)
        case _:
            built = backend.from_file(reference.name, str(reference.factory), options)
    return built if device is None else backend.on_device(built, device)


def _scheme(prefix: str) -> Scheme:
    return next(scheme for scheme in get_args(Scheme) if scheme == prefix)


def _advice(text: str, prefix: str, name: str, suffix: str) -> str:
    if suffix in _WEIGHT_FILES:
        return f"It holds weights. Name their architecture too: timm:NAME --weights {text} (weights={text!r})"
    if suffix == ".py":
        return f"Name the function in it that returns the model: {text}:FACTORY"
    if prefix and re.fullmatch(r"\w{2,}", prefix):
        return f"Nearest: {nearest(prefix, _PREFIXES, 1)[0]}:{name}. The forms are: {_FORMS}"
    return f"Type one of: {_FORMS}"
