"""The last layer of a network, made anew for other classes, or set to a fitted one. Its output is logits."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from spile.errors import ModelError
from spile.keras.names import names_of
from spile.keras.observing import observe
from spile.resolution import resolve
from spile.structure import last_features

_NAME = "spile_classifier"


def with_classifier(model: keras.Model, example: Any, classes: int) -> keras.Model:
    """The model with a dense layer that gives so many logits in place of its last one.

    A model whose last layer has as many outputs and no activation is kept. The layers before it are the same
    objects; the model is another, since a Keras graph cannot be edited. Raises `ModelError` for a model that
    does not end with a dense layer, or is no graph.
    """
    layer = classifier_of(model, example)
    fits = layer is not None and layer.units == classes and layer.activation is keras.activations.linear
    if fits and model.layers[-1] is layer:
        return model
    if layer is None or not getattr(model, "inputs", None):
        raise ModelError(
            f"{type(model).__name__} {model.name!r} is no graph that ends with a Dense layer, so its "
            f"classifier cannot be replaced: give a model whose output is {classes} logits"
        )
    features = layer.input
    made = keras.layers.Dense(classes, name=_NAME if layer.name == _NAME else layer.name)
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, made(features), name=model.name)


def classifier_of(model: keras.Model, example: Any) -> Any:
    """The dense layer that gives the scores; ``None`` where the model has none."""
    observation = observe(model, example)
    (point,), _ = resolve(last_features(observation), None, observation)
    found = next((layer for layer, names in names_of(model).items() if point.path in names), None)
    return found if point.side == "in" and isinstance(found, keras.layers.Dense) else None


def set_classifier(model: keras.Model, example: Any, coef: Any, intercept: Any) -> None:
    """Give the classifier the weights (features, classes) and biases (classes,) of one that was fitted."""
    layer = classifier_of(model, example)
    layer.kernel.assign(np.asarray(coef, "float32"))
    layer.bias.assign(np.asarray(intercept, "float32"))
