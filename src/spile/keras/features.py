"""One whole pass of a model that also gives what flows at some points, with gradients, inside any compiled
step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from spile.keras.capturing import Capture, Padding
from spile.keras.names import is_graph, names_of
from spile.keras.trees import Inputs, declared_inputs
from spile.keras.watching import watching_calls
from spile.resolution import Point

_MASKS = ("padding_mask", "attention_mask")


class Feature(NamedTuple):
    """What flowed at a point, and which of its tokens are real, where that is known."""

    value: Any
    padding_mask: Any


class Pass:
    """A model's pass with its points. Nothing of the model changes but what its own pass changes.

    Where the points are plain layers of a graph they become further outputs of it; so nothing has to be
    watched for their values, and rematerialised layers keep working. Else the layers are watched.
    """

    def __init__(self, model: keras.Model, points: Sequence[Point]) -> None:
        self._model = model
        self._points = tuple(points)
        self._graph = _with_outputs(model, self._points)
        names = {layer: found[0] for layer, found in names_of(model).items()}
        tokens = any("T" in (point.layout or "") for point in self._points)
        wanted = {point.path for point in self._points} if self._graph is None else set()
        # Any layer may take the padding from tokens.
        self._watched = {layer: path for layer, path in names.items() if tokens or path in wanted}

    def __call__(self, inputs: Inputs, *, training: Any) -> tuple[Any, dict[str, Feature]]:
        """The model's own output, and the features by the points' names. Raises `CaptureError`."""
        told = _told(inputs)
        if self._graph is not None:
            padding = Padding(told)
            with watching_calls(self._watched, lambda _, *call: padding.around(*call)):
                output, tensors = self._graph(*inputs.args, training=training)
            values = dict(zip((point.name for point in self._points), tensors, strict=True))
            return output, {name: Feature(value, padding.of(value)) for name, value in values.items()}
        capture = Capture(self._points, self._watched, prefix_tokens={}, mask=told, stop=False)
        with watching_calls(self._watched, capture.watch):
            output = self._model(*inputs.args, **inputs.kwargs, training=training)
        return output, {
            name: Feature(value, capture.padding.of(capture.originals[name]))
            for name, value in capture.values().items()
        }


def _with_outputs(model: keras.Model, points: Sequence[Point]) -> keras.Model | None:
    """The graph with the points as further outputs; ``None`` where they are not plain layers of it."""
    declared = declared_inputs(model) if is_graph(model) or isinstance(model, keras.Sequential) else None
    if declared is None:
        return None
    outputs = [plain_output(model, point) for point in points]
    if any(output is None for output in outputs):
        return None
    own = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    return keras.Model(declared, [own, outputs], name=model.name)


def plain_output(model: keras.Model, point: Point) -> Any:
    """The symbolic tensor at a point of a graph; ``None`` where it is not all that a layer of it gives."""
    first = str(point.layout).startswith("B")
    if not (point.path and "/" not in point.path and point.side == "out" and point.item is None and first):
        return None
    nodes = model.get_layer(point.path)._inbound_nodes
    # Not `layer.output`: that of a model inside is the end of its own graph.
    return nodes[0].output_tensors[0] if len(nodes) == len(nodes[0].output_tensors) == 1 else None


def _told(inputs: Inputs) -> Any:
    """The padding mask among a model's inputs."""
    keyed = dict(inputs.args[0]) if inputs.args and isinstance(inputs.args[0], Mapping) else {}
    return next((value for name, value in (inputs.kwargs | keyed).items() if name in _MASKS), None)
