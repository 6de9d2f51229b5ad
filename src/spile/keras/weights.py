"""A Keras model's weights by keys that stay the same from process to process: hashed, saved, restored."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from spile.errors import ModelError
from spile.hashing import hash_of
from spile.keras.names import children_of, is_graph, names_of
from spile.loading import first_line

Array = npt.NDArray[Any]


def weights_hash(model: keras.Model) -> str:
    """Hash of the weights in the order of their keys: key, dtype, shape and bytes of each.

    The backend does not matter, nor do the names that Keras makes up. The states of random number
    generators, metrics and optimizers are left out.
    """
    return hash_of(
        (f"{key}\0{_stored_as(variable)}\0{tuple(variable.shape)}", partial(_bytes, variable))
        for key, variable in sorted(_variables(model).items())
    )


def _bytes(variable: keras.Variable) -> Any:
    return _value(variable).reshape(-1).view(np.uint8).data


def architecture_hash(model: keras.Model) -> str:
    """SHA-256 over the layers, path, class and configuration of each, and the wiring of Functional models."""
    digest = hashlib.sha256()
    paths = stable_paths(model)
    for layer, path in sorted(paths.items(), key=itemgetter(1)):
        described = _wiring(layer, paths) if is_graph(layer) else _options(layer)
        digest.update(f"{path}\0{type(layer).__qualname__}\0{described}\0".encode())
    return digest.hexdigest()


def save_weights(model: keras.Model, path: str | Path, *, keep: Collection[str] | None = None) -> None:
    """Write the weights as a safetensors file, at once or not at all.

    `keep` limits it to the weights of the layers at these paths, without those of the layers inside them.
    """
    kept = None if keep is None else _kept(model, keep)
    stored = {
        key: _value(variable)
        for key, variable in _variables(model).items()
        if kept is None or id(variable) in kept
    }
    _write(stored, path)


def load_weights(model: keras.Model, path: str | Path, *, allow_missing: bool = False) -> None:
    """Put back what `save_weights` wrote, into the variables that the model has.

    Raises `ModelError` where keys, shapes or dtypes differ, before anything is changed; `allow_missing`
    permits weights that the file does not hold.
    """
    weights = _read(Path(path))
    own = _variables(model)
    _check(
        f"{type(model).__name__} {model.name!r}", own, weights, origin=str(path), allow_missing=allow_missing
    )
    for key, value in weights.items():
        own[key].assign(value.astype(np.int32) if own[key].dtype == "int32" else value)
    for layer in names_of(model):
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()  # it computes with constants made from its weights


def save_layers(layers: Mapping[str, keras.Layer], path: str | Path) -> None:
    """Write the weights of some layers by the names they are given here, as `save_weights` does."""
    _write({key: _value(variable) for key, variable in _numbered(layers).items()}, path)


def load_layers(layers: Mapping[str, keras.Layer], path: str | Path) -> None:
    """Put back what `save_layers` wrote. Raises `ModelError` where names or shapes differ."""
    weights, own = _read(Path(path)), _numbered(layers)
    _check("the layers " + ", ".join(layers), own, weights, origin=str(path), allow_missing=False)
    for key, value in weights.items():
        own[key].assign(value)


def stable_paths(model: keras.Model) -> dict[keras.Layer, str]:
    """Every layer's path, as `names_of` gives it, but with the names that Keras makes up counted anew.

    What was the third ``conv2d_47`` of its model in one process is ``conv2d_2`` in every one.
    """
    paths: dict[keras.Layer, str] = {model: ""}
    _collect(model, "", paths)
    return paths


def _collect(layer: keras.Layer, path: str, paths: dict[keras.Layer, str]) -> None:
    for part, child in _parts(layer):
        if child not in paths:
            paths[child] = f"{path}/{part}" if path else part
            _collect(child, paths[child], paths)


def _parts(layer: keras.Layer) -> list[tuple[str, keras.Layer]]:
    """The layers directly inside a layer, and the part of the path that leads to each."""
    children = list(children_of(layer))
    if is_graph(layer) or isinstance(layer, keras.Sequential):
        inside = [child for _, child in children]
        return list(zip(_counted_anew(inside), inside, strict=True))
    return sorted(children, key=itemgetter(0))  # backends keep attributes in orders of their own


def _counted_anew(layers: list[keras.Layer]) -> list[str]:
    """A name for each layer of a model: given ones as they are, made-up ones by their place in the model."""
    taken = {layer.name for layer in layers if not _made_up(layer.name, type(layer).__name__)}
    names = []
    for layer in layers:
        name = layer.name
        if _made_up(name, type(layer).__name__):
            name = _free(_uncounted(name), taken)
            taken.add(name)
        names.append(name)
    return names


def _made_up(name: str, class_name: str) -> bool:
    """Whether Keras may have made the name from that of the class: ``max_pooling2d_3`` of MaxPooling2D."""
    own = _plain(class_name)
    return own in (_plain(name), _plain(_uncounted(name)))


def _uncounted(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _free(name: str, taken: Collection[str]) -> str:
    """The name, with the first number behind it that makes it a new one."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Every weight by its key: the path of the nearest layer that has one, and the weight's own name."""
    found: dict[str, keras.Variable] = {}
    seen: set[int] = set()
    for layer, path in stable_paths(model).items():
        taken: set[str] = set()
        for variable in _own(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                name = _free(_name(variable), taken)
                taken.add(name)
                found[f"{path}/{name}" if path else name] = variable
    return found


def _name(variable: keras.Variable) -> str:
    name: str = variable.name
    return _uncounted(name) if _made_up(name, type(variable).__name__) else name


def _own(layer: keras.Layer) -> Iterator[keras.Variable]:
    """The weights of a layer without those of the layers that have a path of their own."""
    inside = {id(variable) for _, child in children_of(layer) for variable in child.weights}
    return (variable for variable in layer.weights if id(variable) not in inside)


def _kept(model: keras.Model, keep: Collection[str]) -> set[int]:
    layers = (layer for layer, names in names_of(model).items() if not set(keep).isdisjoint(names))
    return {id(variable) for layer in layers for variable in _own(layer)}


def _value(variable: keras.Variable) -> Array:
    value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).reshape(variable.shape)
    return value.astype(np.int64) if variable.dtype == "int32" else value


def _stored_as(variable: keras.Variable) -> str:
    """Keras' plain ``int`` has 32 or 64 bits, as the backend has it; stored it has 64."""
    return "int64" if variable.dtype == "int32" else str(variable.dtype)


def _numbered(layers: Mapping[str, keras.Layer]) -> dict[str, keras.Variable]:
    """Every weight by the name of its layer and its place in it."""
    return {f"{name}:{i}": weight for name, layer in layers.items() for i, weight in enumerate(layer.weights)}


def _write(stored: dict[str, Array], path: str | Path) -> None:
    """At once or not at all."""
    unfinished = Path(f"{path}.{os.getpid()}.tmp")
    try:
        save_file(stored, unfinished, metadata={"format": "np"})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights cannot be written to {path}: {first_line(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}")
    try:
        weights: dict[str, Array] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {first_line(error)}") from error
    return weights


def _check(
    what: str,
    own: Mapping[str, keras.Variable],
    weights: Mapping[str, Array],
    *,
    origin: str,
    allow_missing: bool,
) -> None:
    """Raise a `ModelError` that lists a few of the keys, shapes and dtypes that do not fit the model."""
    both = [(key, weights[key], variable) for key, variable in own.items() if key in weights]
    problems = {
        "missing": [] if allow_missing else [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": [
            f"{key} {value.shape}, not {tuple(variable.shape)}"
            for key, value, variable in both
            if value.shape != tuple(variable.shape)
        ],
        "of another dtype": [
            f"{key} {value.dtype.name}, not {variable.dtype}"
            for key, value, variable in both
            if value.dtype.name != _stored_as(variable)
        ],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(keys)} {problem} ({_few(keys)})" for problem, keys in problems.items() if keys
        )
        raise ModelError(f"The weights in {origin} do not fit {what}: {found}")


def _wiring(model: keras.Model, paths: Mapping[keras.Layer, str]) -> str:
    """Which operation of a Functional model reads what, by places in the graph and not by names."""
    nodes = _nodes(model)
    runs = [
        [node for node in operation._inbound_nodes if id(node) in nodes] for operation in model.operations
    ]
    places: dict[int, tuple[int, ...]] = {
        id(tensor): (index, call, item)
        for index, calls in enumerate(runs)
        for call, node in enumerate(calls)
        for item, tensor in enumerate(node.outputs)
    }
    places |= {id(tensor): (index,) for index, tensor in enumerate(model.inputs)}

    def place(value: Any) -> Any:
        return places[id(value)] if isinstance(value, keras.KerasTensor) else value

    described = [
        (
            paths.get(operation) or [type(operation).__qualname__, _config(operation)],
            [keras.tree.map_structure(place, [node.arguments.args, node.arguments.kwargs]) for node in calls],
        )
        for operation, calls in zip(model.operations, runs, strict=True)
    ]
    return _text([described, [place(tensor) for tensor in model.outputs]])


def _nodes(model: keras.Model) -> set[int]:
    """The runs of operations that lead from the inputs to the outputs; layers may have run elsewhere too."""
    known = {id(tensor) for tensor in model.inputs}
    found: set[int] = set()
    waiting = list(model.outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in known:
            known.add(id(tensor))
            operation, index, _ = tensor._keras_history
            node = operation._inbound_nodes[index]
            found.add(id(node))
            waiting += node.input_tensors
    return found


def _options(layer: keras.Layer) -> str:
    """Of a Sequential model the order of its layers alone, as it also notes the size of its first batch."""
    if isinstance(layer, keras.Sequential):
        return _text([part for part, _ in _parts(layer)])
    return _config(layer)


def _config(operation: Any) -> str:
    """Its options, where it tells them; names that Keras makes up, and what only training reads, left out."""
    try:
        config = operation.get_config()
    except Exception:  # the user's own code; Keras raises NotImplementedError where there is none
        return ""
    return _text(_without_names({"class_name": type(operation).__name__, "config": config}))


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        config = value.get("config")
        if isinstance(config, Mapping) and "class_name" in value:
            value = {**value, "config": _unnamed(config, str(value["class_name"]))}
            value.pop("build_config", None)
        return {str(key): _without_names(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_names(inner) for inner in value]
    return value


def _unnamed(config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    left_out = {"trainable"}
    name = config.get("name")
    # Wrappers put words in front: ``forward_lstm_3``.
    if isinstance(name, str) and _plain(_uncounted(name)).endswith(_plain(class_name)):
        left_out.add("name")
    return {key: value for key, value in config.items() if key not in left_out}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plainly)


def _plainly(value: Any) -> str:
    """What JSON has no form for, without its place in memory."""
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
