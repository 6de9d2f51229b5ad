"""The last layer of a network, made anew for other classes, or set to a fitted one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export.unflatten import UnflattenedModule

from spile.errors import ModelError
from spile.loading import library
from spile.resolution import resolve
from spile.structure import last_features
from spile.torch.observing import observe

_CLASSIFIER = (nn.Linear, nn.Conv2d)
_ADVICE = (
    "{name} has no final Linear or Conv2d to replace: give a model whose output is {classes} logits, e.g. "
    "from a function in a file, net.py:make_model"
)
_TASKS = {
    "pixel_values": "AutoModelForImageClassification",
    "input_ids": "AutoModelForSequenceClassification",
}
"""Of Hugging Face, by what the model takes."""


def with_classifier(model: nn.Module, example: Any, classes: int) -> nn.Module:
    """The model with a classifier for so many classes, new unless its own has as many.

    timm's ``reset_classifier`` where there is one; a Hugging Face model without a classifier gets that of its
    kind; else the last weighted layer is replaced by one of its sort. The rest of the weights are kept, and
    the model is changed in place where it can be. Raises `ModelError` where no last layer is found.
    """
    if _is_headless_hugging_face(model):
        model = _hugging_face_classifier(model, classes)
    if isinstance(model, UnflattenedModule):
        raise ModelError(
            "this network is an exported program, which has no training mode (its norms are fixed, its "
            "dropout is gone): name the Python that builds it, and the weights, -m file.py:FACTORY --weights "
            "RUN/model/network.safetensors"
        )
    path = classifier_of(model, example)
    if path is None:
        raise ModelError(_ADVICE.format(name=type(model).__name__, classes=classes))
    old = model.get_submodule(path)
    if _outputs(old) == classes:
        return model
    if hasattr(model, "reset_classifier"):
        device = next(model.parameters()).device
        model.reset_classifier(classes)  # type: ignore[operator]
        return model.to(device)
    model.set_submodule(path, _like(old, classes))
    if not _gives(model, example, classes):
        model.set_submodule(path, old)
        raise ModelError(_ADVICE.format(name=type(model).__name__, classes=classes))
    if hasattr(model, "config") and hasattr(model.config, "num_labels"):
        _relabel(model, classes)
    return model


def _gives(model: nn.Module, example: Any, classes: int) -> bool:
    """Whether some output is one logit a class: a last convolution may give a map instead."""
    return any(item.shape[1:] == (classes,) for item in observe(model, example).root.outputs)


def classifier_of(model: nn.Module, example: Any) -> str | None:
    """Path of the layer that gives the logits; ``None`` where it is neither linear nor a convolution."""
    observation = observe(model, example)
    (point,), _ = resolve(last_features(observation), None, observation)
    is_classifier = point.side == "in" and isinstance(model.get_submodule(point.path), _CLASSIFIER)
    return point.path if is_classifier else None


def set_classifier(model: nn.Module, example: Any, coef: Any, intercept: Any) -> None:
    """Give the classifier the weights (features, classes) and biases (classes,) of one that was fitted."""
    path = classifier_of(model, example)
    assert path is not None
    layer: Any = model.get_submodule(path)
    weight = torch.from_numpy(np.ascontiguousarray(np.asarray(coef).T)).to(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.bias.copy_(torch.from_numpy(np.asarray(intercept)).to(layer.bias))


def _relabel(model: Any, classes: int) -> None:
    model.config.num_labels = classes
    if hasattr(model, "num_labels"):
        model.num_labels = classes


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _like(layer: nn.Module, classes: int) -> nn.Module:
    weight: Any = layer.weight
    kept = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, classes, **kept)
    conv: Any = layer
    return nn.Conv2d(conv.in_channels, classes, conv.kernel_size, conv.stride, conv.padding, **kept)


def _is_headless_hugging_face(model: nn.Module) -> bool:
    return hasattr(model, "base_model_prefix") and getattr(model, "base_model", None) is model


def _hugging_face_classifier(model: Any, classes: int) -> nn.Module:
    """The model of its kind that classifies, with this one's weights."""
    transformers = library("transformers", extra="hf", purpose="a classifier on a Hugging Face model")
    kind = _TASKS.get(model.main_input_name)
    if kind is None:
        raise ModelError(f"no classifier is known for a model that takes {model.main_input_name!r}")
    config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": classes})
    try:
        made = getattr(transformers, kind).from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(f"transformers has no {kind} for {type(model).__name__}") from error
    found = made.base_model.load_state_dict(model.state_dict(), strict=False)
    if found.missing_keys:
        raise ModelError(
            f"{type(made).__name__} has layers that {type(model).__name__} lacks: {found.missing_keys[:3]}"
        )
    classifier: nn.Module = made.to(model.device).eval()
    return classifier
