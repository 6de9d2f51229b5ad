"""Models by name: `parse` reads a reference such as ``timm:resnet50``, `load_model` builds what it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from spile import keras_backend, python_files, saved
from spile.backend import backend_of, framework_of
from spile.errors import MissingDependency, ModelError, nearest
from spile.loading import Built, Options, Tokenize, resized
from spile.preprocessing import ImagePreprocessing, Preprocessing, from_json

Scheme = Literal[
    "timm", "torchvision", "hf", "keras", "keras_hub", "keras_file", "file", "pt2", "demo", "run"
]

_PREFIXES = ("timm", "torchvision", "hf", "keras", "keras_hub", "demo")
_FORMS = (
    "timm:NAME, torchvision:NAME, hf:OWNER/NAME, hf:./FOLDER, keras:NAME, keras_hub:PRESET, "
    "keras_hub:./FOLDER, file.py:FACTORY, model.keras, model.h5, model.pt2, demo:NAME, or the folder of a "
    "run of spile train"
)
_LIBRARIES = ("timm", "torchvision", "keras", "keras_hub", "demo")
"""Their architectures are built by name; anything else that a saved model names may be code."""
_MODEL_FILES: dict[str, Scheme] = {
    ".pt2": "pt2",
    ".keras": "keras_file",
    ".h5": "keras_file",
    ".hdf5": "keras_file",
}
_TORCH_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_KERAS_WEIGHTS = (".weights.h5",)


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """Where a model comes from. `str()` gives back the text that `parse` reads.

    `name` is an architecture, a name on a hub or a path; `factory` a function in the Python file there.
    """

    scheme: Scheme
    name: str
    factory: str | None = None

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"{self.name}:{self.factory}"
        if self.scheme in ("pt2", "keras_file", "run"):
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
    tokenize: Tokenize | None
    input_size: int | None = None
    """The side in pixels that was asked for in place of the model's own."""
    channels_last: bool = False
    """The model takes images as (samples, height, width, channels), as Keras models do."""


def parse(text: str) -> ModelReference:
    """Read a model reference; raises `ModelError` that shows the forms there are.

    Paths may hold colons and backslashes (``C:\\models\\net.py:make``). The disk is looked at for what has no
    other form: it may be the folder of a trained model.
    """
    prefix, colon, name = text.partition(":")
    if colon and prefix in _PREFIXES:
        if not name:
            raise ModelError(f"{text!r} names no model. Type one of: {_FORMS}")
        if prefix == "keras" and _model_file(name):
            raise ModelError(f"{text!r}: a file is named by its path alone. Type: {name}")
        return ModelReference(scheme=_scheme(prefix), name=name)
    if factory := re.fullmatch(r"(?s)(.+\.py):([A-Za-z_]\w*)", text):
        return ModelReference(scheme="file", name=factory[1], factory=factory[2])
    if scheme := _model_file(text):
        return ModelReference(scheme=scheme, name=text)
    if saved.folder_of(text) is not None:
        return ModelReference(scheme="run", name=text)
    raise ModelError(f"{text!r} is not a model reference. {_advice(text, prefix if colon else '', name)}")


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
    tensors are read; for Keras .weights.h5, .h5 or .keras. ``pretrained=False`` builds the architecture
    alone, with random weights. `input_size` is the side in pixels of square inputs. `device` is e.g. ``cpu``
    or ``cuda:0``. Keras models are built on the backend that Keras is set to. Raises `ModelError` for what
    cannot be resolved, read or fetched, and `MissingDependency` where the library is not installed.
    """
    reference = parse(reference) if isinstance(reference, str) else reference
    if input_size is not None and input_size < 1:
        raise ModelError(f"input_size is {input_size}; it is the side of the input in pixels, 1 or more")
    options = Options(
        weights=Path(weights) if weights is not None else None, pretrained=pretrained, input_size=input_size
    )
    if reference.scheme == "run":
        return _load_run(reference, options, device)
    if reference.scheme == "file":
        built = _build_object(reference, options, device)
    else:
        build = _build_keras if _is_keras(reference) else _build_torch
        built = build(reference, options, device)
    return LoadedModel(
        model=built.model,
        reference=str(reference),
        preprocessing=built.preprocessing,
        classes=built.classes,
        tokenize=built.tokenize,
        input_size=input_size,
        channels_last=built.channels_last,
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
        size, channels = loaded.preprocessing.crop, loaded.preprocessing.channels
        return (2, *size, channels) if loaded.channels_last else (2, channels, *size)
    return None


def rebuildable(reference: str) -> bool:
    """Whether a library can build a model again from its reference, without the user's own code."""
    return bool(reference) and (_of_library(reference) or parse(reference).scheme == "hf")


def load_network(folder: Path, description: Mapping[str, Any], *, device: str | None = None) -> LoadedModel:
    """The network of a saved model, with its preprocessing.

    The description may only name what runs no foreign code. Raises `ModelError`.
    """
    reference = description["reference"]
    if reference in saved.NETWORKS:
        loaded = load_model(str(folder / reference), device=device)
    else:
        if reference != saved.HERE and not _of_library(reference):
            raise ModelError(
                f"{folder} names the model {reference!r}: a saved model may only name those of "
                f"{', '.join(_LIBRARIES)}, as anything else could run code. Make the run again"
            )
        own = f"hf:{folder.resolve()}" if reference == saved.HERE else reference
        size = description.get("input_size")
        loaded = load_model(own, pretrained=False, device=device, input_size=size)
        loaded = _with_weights(loaded, folder / saved.WEIGHTS, description)
    if loaded.tokenize is not None:  # the tokenizer in the folder, not the one it was copied from
        return loaded
    return replace(loaded, preprocessing=from_json(description["preprocessing"]))


def _with_weights(loaded: LoadedModel, weights: Path, description: Mapping[str, Any]) -> LoadedModel:
    """A trained network has a classifier of its own, and all weights; any other those it needs."""
    backend = backend_of(loaded.model)
    trained = description.get("trained")
    if trained is None:
        backend.load_reached(loaded.model, weights)
        return loaded
    example = tuple(trained["example"]) if trained["example"] else example_for(loaded)
    model = backend.with_classifier(loaded.model, example, len(description["classes"]))
    backend.load_trained(model, weights)
    return replace(loaded, model=model)


def _load_run(reference: ModelReference, options: Options, device: str | None) -> LoadedModel:
    """The network that `spile.train` made, whole."""
    folder = saved.folder_of(reference.name)
    if folder is None:
        raise ModelError(f"{reference} holds no saved model (no {saved.DESCRIPTION})")
    if options.weights is not None or not options.pretrained:
        raise ModelError(
            f"{reference} is a network with its weights: leave out "
            f"{'pretrained=False (--from-scratch)' if options.weights is None else options.weights}, or name "
            "the architecture"
        )
    description = saved.read_description(folder)
    if description.get("trained") is None:
        raise ModelError(
            f"{reference} holds a network that was cut at the layer spile transfer chose, for spile predict. "
            "Name the model that it was made with, or a run of spile train"
        )
    loaded = load_network(folder, description, device=device)
    return replace(
        loaded,
        reference=str(reference),
        preprocessing=resized(loaded.preprocessing, options, str(reference)),
        classes=tuple(map(str, description["classes"])),
        input_size=options.input_size or description.get("input_size"),
    )


def _of_library(reference: str) -> bool:
    """Whether a reference names an architecture of a library; ``keras_hub:./FOLDER`` names files."""
    parsed = parse(reference)
    built_by_name = parsed.scheme != "keras_hub" or re.fullmatch(r"[\w.-]+", parsed.name) is not None
    return parsed.scheme in _LIBRARIES and built_by_name


def _is_keras(reference: ModelReference) -> bool:
    named = reference.scheme == "demo" and reference.name.endswith("_keras")
    return named or reference.scheme in ("keras", "keras_hub", "keras_file")


def _build_keras(reference: ModelReference, options: Options, device: str | None) -> Built:
    keras_backend.require_backend(f"loading {reference}")
    from spile.keras import models as backend

    with backend.on_device(device):
        match reference.scheme:
            case "keras":
                return backend.from_applications(reference.name, options)
            case "keras_hub":
                return backend.from_hub(reference.name, options)
            case "keras_file":
                return backend.from_file(reference.name, options)
            case _:
                return backend.from_demo(reference.name, options)


def _build_object(reference: ModelReference, options: Options, device: str | None) -> Built:
    """What the user's own Python file makes: it imports a framework, so that one is installed."""
    model, spec = python_files.made_by(reference.name, str(reference.factory))
    if framework_of(model) == "keras":
        from spile.keras import models as keras_models

        if device is not None:
            raise ModelError(
                f"device={device!r} is not for {reference}: Keras builds a model where it stays; build it "
                "under keras.device(...)"
            )
        return keras_models.from_object(model, spec, options, str(reference))
    from spile.torch import models as torch_models

    built = torch_models.from_object(model, spec, options, str(reference))
    return built if device is None else torch_models.on_device(built, device)


def _build_torch(reference: ModelReference, options: Options, device: str | None) -> Built:
    try:
        from spile.torch import models as backend
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependency("torch", extra="torch", purpose=f"loading {reference}") from error
    match reference.scheme:
        case "timm":
            built = backend.from_timm(reference.name, options)
        case "torchvision":
            built = backend.from_torchvision(reference.name, options)
        case "hf":
            built = backend.from_hub(reference.name, options)
        case "demo":
            built = backend.from_demo(reference.name, options)
        case _:
            built = backend.from_pt2(reference.name, options)
    return built if device is None else backend.on_device(built, device)


def _scheme(prefix: str) -> Scheme:
    return next(scheme for scheme in get_args(Scheme) if scheme == prefix)


def _model_file(path: str) -> Scheme | None:
    if path.lower().endswith(_KERAS_WEIGHTS):
        return None
    return _MODEL_FILES.get(Path(path).suffix.lower())


def _advice(text: str, prefix: str, name: str) -> str:
    if text.lower().endswith((*_TORCH_WEIGHTS, *_KERAS_WEIGHTS)):
        library = "keras" if text.lower().endswith(_KERAS_WEIGHTS) else "timm"
        named = f"{library}:NAME --weights {text}"
        return f"It holds weights. Name their architecture too: {named} (weights={text!r})"
    if text.lower().endswith(".py"):
        return f"Name the function in it that returns the model: {text}:FACTORY"
    if prefix and re.fullmatch(r"\w{2,}", prefix):
        return f"Nearest: {nearest(prefix, _PREFIXES, 1)[0]}:{name}. The forms are: {_FORMS}"
    return f"Type one of: {_FORMS}"
