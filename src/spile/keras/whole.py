"""A tap and the model fitted on it as one `.keras` file that is made of Keras' own layers only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from spile.errors import ModelError
from spile.interfaces import Runner
from spile.keras.exporting import first_sentence, read_back
from spile.keras.fitted import fitted
from spile.keras.names import is_graph
from spile.keras.pooling import pooled
from spile.keras.taps import Tap
from spile.keras.trees import declared_inputs
from spile.plain import PlainHead
from spile.preprocessing import ImagePreprocessing
from spile.resolution import Point

FORMATS = {"keras": "model.keras"}


def save_whole(
    tap: Tap,
    head: PlainHead,
    inputs: Any,
    folder: Path,
    formats: tuple[str, ...],
    *,
    images: ImagePreprocessing | None,
    about: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the file; `inputs` is a batch as `spile.data` reads it, `about` is not in this format.

    Raises `ModelError` for a model without a graph (a subclass), or one whose layers Keras cannot save.
    """
    pixels = isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4
    whole = _whole(tap, head, images if pixels else None)
    path = folder / FORMATS["keras"]
    try:
        whole.save(path)
    except Exception as error:  # the user's own layers: anything may come out
        raise ModelError(f"the model cannot be saved to {path}: {first_sentence(error)}") from error
    return dict.fromkeys(formats, path)


def _whole(tap: Tap, head: PlainHead, images: ImagePreprocessing | None) -> keras.Model:
    network = _tapped(tap)
    declared = network.inputs[0]
    entry = keras.Input(
        declared.shape[1:], dtype=declared.dtype if images is None else "uint8", name="images"
    )
    found = network(entry if images is None else _normalised(entry, images))
    values = [pooled(value, p.pool, p.layout) for value, p in zip(found, tap.points, strict=True)]
    return keras.Model(entry, fitted(head, [keras.layers.Flatten()(value) for value in values]))


def _tapped(tap: Tap) -> keras.Model:
    """A copy of the network that gives a list of the points' tensors, without the layers past them.

    Raises `ModelError` where a point is not the single output, or input, of a layer in a graph of one input.
    """
    model = tap.pruned()
    if not _is_chain(model) or len(model.inputs) != 1:
        raise _refused(tap, "it has no graph of one input")
    copy = keras.models.clone_model(model)  # so that the user's layers are not given another graph
    copy.set_weights(model.get_weights())
    paths = []
    for point in tap.points:
        path = None if "T" in (point.layout or "") else _producer(copy, point)
        if path is None:
            raise _refused(tap, f"{point.name} is no plain output")
        paths.append(path)
    grown = _grown(copy, [path.split("/") for path in paths], needed=False)
    order = {path: i for i, path in enumerate(grown.paths)}
    return keras.Model(
        grown.model.inputs, [grown.model.outputs[order[path]] for path in paths], name="network"
    )


def _refused(tap: Tap, what: str) -> ModelError:
    return ModelError(
        f"{type(tap.model).__name__} cannot be put into a new model ({what}): use the saved folder, "
        "spile.load('run'), or a functional model and layers that give vectors or maps"
    )


def _producer(model: keras.Model, point: Point) -> str | None:
    """The path of the layer whose single output the point is: of a layer's input, the one before it."""
    if point.call or point.item or (point.side == "in" and not point.path):
        return None
    if point.side == "out":
        return point.path or str(model.outputs[0]._keras_history.operation.name)
    *outer, last = point.path.split("/")
    for name in outer:
        model = model.get_layer(name)
    try:
        operation = model.get_layer(last).input._keras_history.operation
    except AttributeError:  # no input, or several
        return None
    return None if isinstance(operation, keras.layers.InputLayer) else "/".join([*outer, operation.name])


class _Grown(NamedTuple):
    model: keras.Model
    paths: list[str]
    """What its outputs are, the model's own output last where that is needed."""


def _grown(model: keras.Model, wanted: list[list[str]], *, needed: bool) -> _Grown:
    """A model on the same layers whose outputs are the layers at the paths `wanted`.

    A model inside that holds some of them is grown too. Its own output is kept only where a later layer that
    is wanted may need it.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    tops = {path[0] for path in wanted}
    order = [op.name for op in graph.operations if op.name in tops]
    found: dict[str, Any] = {}

    def operation(layer: Any) -> Any:
        if layer.name not in tops:
            return layer

        def run(*args: Any, **kwargs: Any) -> Any:
            inside = [path[1:] for path in wanted if path[0] == layer.name and len(path) > 1]
            asked = [layer.name] in wanted
            later = needed or asked or layer.name != order[-1]
            if not inside:
                output = layer(*args, **kwargs)
            else:
                grown = _grown(layer, inside, needed=later)
                outputs = grown.model(*args, **kwargs)
                outputs = outputs if isinstance(outputs, list) else [outputs]
                found.update({f"{layer.name}/{p}": o for p, o in zip(grown.paths, outputs, strict=False)})
                # Where nothing needs the end of it, the layers after get something to be built on.
                output = outputs[-1] if later else layer(*args, **kwargs)
            if asked:
                found[layer.name] = output
            return output

        return run

    entry = [keras.Input(t.shape[1:], dtype=t.dtype, name=t.name) for t in graph.inputs]
    nested = entry[0] if len(entry) == 1 else entry
    end = graph._run_through_graph(nested, operation_fn=operation)
    outputs = [*found.values(), *([end] if needed else [])]
    return _Grown(keras.Model(entry, outputs, name=model.name), list(found))


def _is_chain(model: Any) -> bool:
    return is_graph(model) or (isinstance(model, keras.Sequential) and declared_inputs(model) is not None)


def _normalised(pixels: Any, images: ImagePreprocessing) -> Any:
    if images.channel_order == "BGR":
        pixels = keras.ops.flip(pixels, axis=-1)
    std = np.asarray(images.std)
    scale, offset = (images.scale / std).tolist(), (-np.asarray(images.mean) / std).tolist()
    return keras.layers.Rescaling(scale, offset)(pixels)


def open_whole(path: Path, name: str) -> Runner:
    """A function from a batch as `spile.data` reads it to scores (n, c), which runs the file."""
    model = read_back(path)

    def run(inputs: Any) -> np.ndarray[Any, Any]:
        return np.asarray(keras.ops.convert_to_numpy(model(inputs, training=False)))

    return run
