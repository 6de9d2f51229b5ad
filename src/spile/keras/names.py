"""What the layers of a Keras model are called: paths that stay the same from process to process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

Names = dict[keras.Layer, tuple[str, ...]]

_OPAQUE = (keras.layers.RNN, keras.layers.TimeDistributed)
"""They run what they hold in a loop of the backend, where a value exists for one step only."""

_BOOKKEEPING = frozenset(
    ("_layers", "_metrics", "_loss_tracker", "_functional", "_tracker", "_compile_loss", "_compile_metrics")
)
_MODULES = "_modules"
"""Where PyTorch keeps the layers of a layer, beside its other attributes."""


def names_of(model: keras.Layer) -> Names:
    """Every layer of the model, the model itself first as ``""``, with its path and its aliases.

    The children of Functional and Sequential models go by their names; those of any other layer by the
    attribute that holds them (``encoder``, ``blocks/0``), since names that Keras makes up (``dense_7``)
    change from process to process. Aliases are further places of a shared layer, and the chain of Keras
    names, alone and with the model's own name in front.
    """
    paths: dict[keras.Layer, list[str]] = {model: [""]}
    chains: dict[keras.Layer, str] = {}
    _collect(model, "", "", paths, chains)
    own = {path for found in paths.values() for path in found}
    names: Names = {model: ("",)}
    for layer, chain in chains.items():
        found = paths[layer]
        others = dict.fromkeys((chain, f"{model.name}/{found[0]}", f"{model.name}/{chain}"))
        names[layer] = (*found, *(other for other in others if other not in own))
    return names


def is_graph(layer: Any) -> bool:
    """Whether the layer is a Functional model that runs as its graph says."""
    functional = next((c for c in type(layer).__mro__ if c.__name__ == "Functional"), None)
    return functional is not None and type(layer).call is functional.call  # type: ignore[attr-defined]


def children_of(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """The layers directly inside a layer, with the part of the path that leads to each."""
    if isinstance(layer, keras.Sequential) or is_graph(layer):
        yield from ((c.name, c) for c in layer.layers if not isinstance(c, keras.layers.InputLayer))
    elif not isinstance(layer, _OPAQUE):
        attributes = vars(layer)
        for name, value in {**attributes, **attributes.get(_MODULES, {})}.items():
            if name not in _BOOKKEEPING and name != _MODULES and not name.startswith("_self_"):
                yield from _held(name, value)


def _collect(
    layer: keras.Layer,
    path: str,
    chain: str,
    paths: dict[keras.Layer, list[str]],
    chains: dict[keras.Layer, str],
) -> None:
    for part, child in children_of(layer):
        known = child in paths
        paths.setdefault(child, []).append(f"{path}/{part}" if path else part)
        if not known:
            chains[child] = f"{chain}/{child.name}" if chain else child.name
            _collect(child, paths[child][0], chains[child], paths, chains)


def _held(name: str, value: Any) -> Iterator[tuple[str, keras.Layer]]:
    if isinstance(value, keras.Layer):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _held(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _held(f"{name}/{index}", inner)
