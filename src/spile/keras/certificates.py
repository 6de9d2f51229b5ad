"""The proof that auxiliary heads leave no trace in the model they were put on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from spile.errors import ModelError
from spile.keras.observing import observe, stateless
from spile.keras.runtime import runtime
from spile.keras.trees import called_with
from spile.supervision.settings import Certificate


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a model was before it was supervised."""

    example: Any
    layers: tuple[int, ...]
    """Identities."""
    keys: tuple[tuple[str, tuple[int, ...], bool], ...]
    """Path, shape and whether it is trained, of every variable."""
    macs: int
    graph: str | None
    """Its configuration; ``None`` where it has none."""


def snapshot(model: keras.Model, example: Any) -> Before:
    """What can be told of a model without running it on data."""
    return Before(
        example=example,
        layers=tuple(id(layer) for layer in model._flatten_layers()),
        keys=tuple((v.path, tuple(v.shape), bool(v.trainable)) for v in model.variables),
        macs=observe(model, example).root.macs,
        graph=_graph(model),
    )


def certify(supervised: Any, before: Before, inputs: Any) -> Certificate:
    """Compare the stripped model with what it was, and with a twin that was never supervised.

    The twin is built from the model's configuration and gets its weights. A model that cannot be built so is
    compared with its own pass inside the supervised one.
    """
    model = supervised.strip()
    now = snapshot(model, before.example)
    given = called_with(model, (inputs,), {})
    with stateless(model, None), runtime().without_gradients():
        own = _arrays(model(*given.args, **given.kwargs, training=False))
        inside = _arrays(supervised(inputs, training=False).extra["whole"])
    others, notes = [inside], []
    same_macs = now.macs == before.macs
    try:
        twin = twin_of(model)
        with stateless(twin, None), runtime().without_gradients():
            others.append(_arrays(twin(*given.args, **given.kwargs, training=False)))
        same_macs = now.macs == observe(twin, before.example).root.macs
        notes.append("compared with a twin built from the model's configuration")
    except ModelError as error:
        notes.append(f"no twin: {error}")
    return Certificate(
        same_object=now.layers == before.layers,
        same_keys=now.keys == before.keys,
        same_outputs=all(_equal(own, other) for other in others),
        same_macs=same_macs,
        same_graph=None if before.graph is None else now.graph == before.graph,
        notes=tuple(notes),
    )


def twin_of(model: keras.Model) -> keras.Model:
    """Another model of the same configuration with the same weights. Raises `ModelError`."""
    try:
        config = keras.saving.serialize_keras_object(model)
        twin = keras.saving.deserialize_keras_object({**config, "compile_config": None})
        twin.set_weights(model.get_weights())
    except Exception as error:  # the user's own layers: anything may come out
        said = " ".join(str(error).split()).partition(". ")[0]
        raise ModelError(f"{type(model).__name__} cannot be built from its configuration ({said})") from error
    return twin


def _graph(model: keras.Model) -> str | None:
    try:
        config = keras.saving.serialize_keras_object(model)
        return json.dumps({**config, "compile_config": None}, sort_keys=True, default=str)
    except Exception:  # as above
        return None


def _arrays(output: Any) -> list[np.ndarray[Any, Any]]:
    return [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(output)]


def _equal(one: list[np.ndarray[Any, Any]], other: list[np.ndarray[Any, Any]]) -> bool:
    """Bit for bit."""
    same = len(one) == len(other) and all(a.dtype == b.dtype for a, b in zip(one, other, strict=True))
    return same and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))
