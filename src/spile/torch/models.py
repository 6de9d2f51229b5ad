"""PyTorch models by name: each `from_...` builds one, with the preprocessing it was trained with."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spile import demo_weights, downloads
from spile.errors import ModelError
from spile.loading import Built, Options, did_you_mean, first_line, library, resized
from spile.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing
from spile.torch import demos, pt2
from spile.torch.hugging_face import from_hub, tokenizer_of
from spile.torch.weights import (
    architecture_hash,
    assign_weights,
    check_weights,
    load_weights,
    read_weights,
    save_weights,
    weights_hash,
)

__all__ = [
    "architecture_hash",
    "from_demo",
    "from_hub",
    "from_object",
    "from_pt2",
    "from_timm",
    "from_torchvision",
    "load_weights",
    "on_device",
    "save_weights",
    "weights_hash",
]


# timm


def from_timm(name: str, options: Options) -> Built:
    """A timm architecture, by default with its default pretrained weights."""
    timm = library("timm", extra="timm", purpose=f"loading timm:{name}")
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}. {did_you_mean('timm:', name, timm.list_models())}")
    weights = read_weights(options.weights) if options.weights is not None else None
    pretrained = options.pretrained and weights is None
    source = _timm_source(timm, name)
    if pretrained:
        advice = f"Give a local copy with --weights model.safetensors (weights=...), from {source}"
        with downloads.hub(f"The pretrained weights of timm:{name}", advice=advice):
            model = _timm_model(name, pretrained=True, input_size=options.input_size)
    else:
        model = _timm_model(name, weights=weights, input_size=options.input_size, origin=str(options.weights))
    classes = _timm_classes(model) if pretrained else None
    return Built(
        model=model.eval(),
        preprocessing=_timm_preprocessing(name, model, options.input_size),
        classes=classes,
    )


def _timm_model(
    name: str,
    *,
    input_size: int | None,
    pretrained: bool = False,
    weights: dict[str, Tensor] | None = None,
    origin: str = "",
) -> nn.Module:
    import timm

    # timm adapts the positions of given weights to the input size, as it does with those it downloads.
    own: dict[str, Any] = {"pretrained_cfg_overlay": {"state_dict": weights}} if weights is not None else {}
    sized = {"img_size": input_size} if input_size is not None else {}
    try:
        model: nn.Module = _sized(
            timm.create_model, name, pretrained=pretrained or weights is not None, **own, **sized
        )
    except OSError:
        raise
    except Exception as error:  # timm and its models raise RuntimeError, KeyError, AssertionError, ...
        if weights is not None:
            check_weights(timm.create_model(name), weights, origin=origin)
        raise ModelError(f"timm:{name} cannot be built: {first_line(error)}") from error
    if weights is not None:
        vars(model)["pretrained_cfg"].pop("state_dict")
    return model


def _sized(create: Callable[..., nn.Module], name: str, **options: Any) -> nn.Module:
    """Models with a fixed input size take ``img_size``; those that do not know it take any size."""
    try:
        return create(name, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return create(name, **{key: value for key, value in options.items() if key != "img_size"})


def _timm_preprocessing(name: str, model: nn.Module, input_size: int | None) -> ImagePreprocessing:
    """timm's ``transforms_imagenet_eval``: resize to ``floor(size / crop_pct)``, crop to size."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    scaled = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    if channels not in (1, 3):
        raise ModelError(f"timm:{name} takes {channels} channels; images have 1 or 3")
    spec = ImagePreprocessing(
        resize=scaled if config["crop_mode"] == "squash" else scaled[0],
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        channels=channels,
    )
    if input_size is not None:
        return spec.at(input_size)
    if config["crop_mode"] == "border" or (config["crop_mode"] == "center" and scaled[0] != scaled[1]):
        raise ModelError(
            f"timm:{name} fits images into {height}x{width} in a way spile does not reproduce "
            f"(crop_mode {config['crop_mode']!r}). Give input_size=SIDE (--input-size) for square inputs"
        )
    return spec


def _timm_classes(model: nn.Module) -> tuple[str, ...] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _timm_source(timm: Any, name: str) -> str:
    """Where timm gets the pretrained weights from; a wrong tag (``resnet18.nope``) gets those there are."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        tagged = timm.list_models(f"{architecture}.*", pretrained=True)
        raise ModelError(
            f"timm has no weights {tag!r} of {architecture}. {did_you_mean('timm:', name, tagged)}"
        ) from error
    return str(getattr(config, "hf_hub_id", None) or getattr(config, "url", None) or name)


# torchvision


def from_torchvision(name: str, options: Options) -> Built:
    """A torchvision classification architecture, by default with its ``DEFAULT`` weights."""
    vision = library("torchvision", extra="torch", purpose=f"loading torchvision:{name}").models
    known = vision.list_models(module=vision)
    if name not in known:
        wanted = did_you_mean("torchvision:", name, known)
        if name in vision.list_models():
            raise ModelError(
                f"torchvision:{name} does not classify images; only such are loaded by name. {wanted}"
            )
        raise ModelError(f"torchvision has no model {name!r}. {wanted}")
    defaults = vision.get_model_weights(name).DEFAULT
    if options.pretrained and options.weights is None:
        model = _torchvision_pretrained(name, defaults, options)
    else:
        model = vision.get_model(name, weights=None, **_torchvision_architecture(name, defaults, options))
        if options.weights is not None:
            assign_weights(model, read_weights(options.weights), origin=str(options.weights))
    spec = _torchvision_preprocessing(defaults)
    return Built(
        model=model.eval(),
        preprocessing=spec.at(options.input_size) if options.input_size is not None else spec,
        classes=tuple(defaults.meta["categories"])
        if options.pretrained and options.weights is None
        else None,
    )


def _torchvision_pretrained(name: str, defaults: Any, options: Options) -> nn.Module:
    from torchvision.models import get_model

    _refuse_other_size(name, defaults, options)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(defaults.url).name
    advice = f"Give a local copy with --weights {cached.name} (weights=...), from {defaults.url}"
    with downloads.fetching(f"The pretrained weights of torchvision:{name}", url=defaults.url, advice=advice):
        if not cached.is_file() and not downloads.reachable(defaults.url):
            raise ConnectionError("it cannot be reached.")
        # torchvision would unpickle whatever the file holds: first fetch it and see that it is tensors only.
        try:
            defaults.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelError(f"{cached} holds more than tensors, which could run code. Delete it") from error
        model: nn.Module = get_model(name, weights=defaults, progress=False)
    return model


def _torchvision_architecture(name: str, defaults: Any, options: Options) -> dict[str, Any]:
    """What the builder would set for its default weights, so that the architecture alone is the same one."""
    if name == "googlenet":
        return {"transform_input": True, "aux_logits": False, "init_weights": False}
    if name == "inception_v3":
        return {"transform_input": True, "init_weights": False}
    if name.startswith("vit_"):
        return {"image_size": options.input_size or defaults.meta["min_size"][0]}
    _refuse_other_size(name, defaults, options)
    return {}


def _refuse_other_size(name: str, defaults: Any, options: Options) -> None:
    size = defaults.meta["min_size"][0]
    if name.startswith(("vit_", "maxvit")) and options.input_size not in (None, size):
        raise ModelError(
            f"torchvision:{name} takes {size}x{size} inputs only, not {options.input_size}. "
            "timm's vision transformers take other sizes: timm:vit_base_patch16_224"
        )


def _torchvision_preprocessing(defaults: Any) -> ImagePreprocessing:
    transforms = defaults.transforms()
    return ImagePreprocessing(
        resize=transforms.resize_size[0],
        crop=(transforms.crop_size[0], transforms.crop_size[0]),
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


# Demo models and exported programs


def from_demo(name: str, options: Options) -> Built:
    """A pretrained model whose weights come with a Python package: no network needed."""
    given = options.weights is not None or not options.pretrained
    match name:
        case "minilm":
            return from_hub(str(demos.minilm()), options)
        case "efficientnet_lite0":
            built = from_timm("tf_efficientnet_lite0", replace(options, pretrained=False))
            if given:
                return built
            keys = built.model.state_dict().keys()
            weights = dict(zip(keys, demos.efficientnet_lite0(), strict=True))
            classes = _timm_classes(built.model)
        case "dinov2_small":
            size = options.input_size or 224
            built = from_timm("vit_small_patch14_dinov2", replace(options, pretrained=False, input_size=size))
            if given:
                return built
            weights, classes = demos.dinov2_small(size), None
        case _:
            raise ModelError(
                f"There is no demo model {name!r}. {did_you_mean('demo:', name, demo_weights.NAMES)}"
            )
    assign_weights(built.model, weights, origin=f"demo:{name}")
    return replace(built, classes=classes)


def on_device(built: Built, device: str) -> Built:
    """Move the model to `device`, e.g. ``cuda:1``."""
    try:
        return replace(built, model=built.model.to(device))
    except (RuntimeError, AssertionError) as error:  # names that torch does not know, devices it lacks
        raise ModelError(f"The model cannot be put on device {device!r}: {first_line(error)}") from error


def from_object(model: nn.Module, spec: Preprocessing | None, options: Options, place: str) -> Built:
    """A model that the user's own code at `place` made."""
    if options.weights is not None:
        assign_weights(model, read_weights(options.weights), origin=str(options.weights))
    tokenize = None
    if isinstance(spec, TextPreprocessing):
        tokenize = tokenizer_of(
            library("transformers", extra="hf", purpose=f"the tokenizer of {place}"), spec
        )
    return Built(model=model.eval(), preprocessing=resized(spec, options, place), tokenize=tokenize)


def from_pt2(path: str, options: Options) -> Built:
    """A program saved by ``torch.export.save``, as a tree of layers; its inputs are taken as ready."""
    if options.weights is not None:
        raise ModelError(f"{path} holds its own weights: leave out {options.weights}")
    resized(None, options, path)
    return Built(model=pt2.load(Path(path)))
