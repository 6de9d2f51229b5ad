"""What the layers of a Keras model are called: paths that stay the same from process to process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import keras

Names = dict[keras.Layer, tuple[str, ...]]

_OPAQUE = (keras.layers.RNN, keras.layers.TimeDistributed)
"""They run what they hold in a loop of the backend, where a value exists for one step only."""

_TRACKED = ("_self_unconditional_", "_self_tracked_trackables")
"""Where TensorFlow keeps them a second time; ``_self_attention`` is a layer's own."""
_MODULES = "_modules"
"""Where PyTorch keeps the layers of a layer, beside its other attributes."""

_PLAIN = (str, int, float, bool, type(None))
"""Most of what a layer has for attributes; of these types exactly, it holds no layer."""

_BOOKKEEPING = frozenset(
    (
        "_layers",
        "_metrics",
        "_loss_tracker",
        "_functional",
        "_tracker",
        "_compile_loss",
        "_compile_metrics",
        "_operations",
        "_operations_by_depth",
        _MODULES,
    )
)


def names_of(model: keras.Layer) -> Names:
    """Every layer of the model, the model itself first as ``""``, with its path and its aliases.

    The children of Functional and Sequential models go by their names; those of any other layer by the
    attribute that holds them (``encoder``, ``blocks/0``), since names that Keras makes up (``dense_7``)
    change from process to process. Aliases are further places of a shared layer, and the chain of Keras
    names, alone and with the model's own name in front; an alias that fits several layers is none.
    """
    paths: dict[keras.Layer, list[str]] = {model: [""]}
    chains: dict[keras.Layer, str] = {}
    _collect(model, "", "", paths, chains)
    others = {
        layer: dict.fromkeys((chain, f"{model.name}/{paths[layer][0]}", f"{model.name}/{chain}"))
        for layer, chain in chains.items()
    }
    meanings = Counter(name for found in (*paths.values(), *others.values()) for name in found)
    names: Names = {model: ("",)}
    for layer, found in others.items():
        names[layer] = (*paths[layer], *(name for name in found if meanings[name] == 1))
    return names


def is_graph(layer: Any) -> bool:
    """Whether the layer is a Functional model that runs as its graph says."""
    if not _has_graph(layer):
        return False
    # Keras' own class of such models has no public name: it is the last that is both.
    both = [c for c in type(layer).__mro__ if issubclass(c, keras.Function) and issubclass(c, keras.Model)]
    functional: Any = both[-1]
    return bool(type(layer).call is functional.call)


def _has_graph(layer: Any) -> bool:
    return isinstance(layer, keras.Function) and isinstance(layer, keras.Model)


def children_of(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """The layers directly inside a layer, with the part of the path that leads to each."""
    if isinstance(layer, keras.Sequential) or is_graph(layer):
        yield from _in_graph(layer)
    elif not isinstance(layer, _OPAQUE):
        held = list(_in_attributes(layer))
        yield from held
        if _has_graph(layer):
            others = {id(child) for _, child in held}
            yield from ((name, child) for name, child in _in_graph(layer) if id(child) not in others)


def _in_graph(layer: Any) -> Iterator[tuple[str, keras.Layer]]:
    return ((c.name, c) for c in layer.layers if not isinstance(c, keras.layers.InputLayer))


def _in_attributes(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """Layers before lists and dicts of them, the order in which every backend can tell them."""
    attributes = vars(layer)
    values = {
        name: value
        for name, value in (attributes | attributes.get(_MODULES, {})).items()
        if type(value) not in _PLAIN and name not in _BOOKKEEPING and not name.startswith(_TRACKED)
    }
    for name, value in sorted(values.items(), key=lambda pair: not isinstance(pair[1], keras.Layer)):
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
