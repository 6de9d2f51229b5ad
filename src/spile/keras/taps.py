"""The tap on Keras: a pass that stops when it has every point; `spile.keras.capturing` catches them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras

from spile import structure
from spile.errors import CaptureError, ModelError
from spile.interfaces import Activations, Mode, Verification
from spile.keras.capturing import Capture, Stop
from spile.keras.images import ready_images
from spile.keras.names import is_graph, names_of
from spile.keras.observing import observe, stateless
from spile.keras.trees import Inputs, called_with, declared_inputs
from spile.keras.verifying import compare, reference
from spile.keras.watching import watching_calls
from spile.observation import Observation
from spile.resolution import AddressesLike, LeftOut, Point, PoolsLike, resolve

_MASKS = ("padding_mask", "attention_mask")

_resolving = threading.RLock()


class Tap:
    """Points and pools on a model. Calling it runs the model up to the deepest point; returns `Activations`.

    A Functional or Sequential model is first cut down to what its points need. Nothing of the model changes:
    what a pass assigns is dropped, and the layers are watched for the pass only.
    """

    def __init__(
        self,
        model: keras.Model,
        addresses: AddressesLike,
        *,
        pool: PoolsLike = "auto",
        example: Any = None,
        mode: Mode = "eval",
    ) -> None:
        if mode not in ("eval", "as_is"):
            raise ModelError(f"unknown mode {mode!r}: write 'eval' (the default) or 'as_is'")
        self.model = model
        self.mode = mode
        self.origin: Any = None
        """The `spile.models.LoadedModel` of a model that came from a reference."""
        self.last_features = ""
        """Address of what the model's final classifier reads; empty until the points are resolved."""
        self._wanted = (addresses, pool)
        self._points: tuple[Point, ...] = ()
        self._left_out: tuple[LeftOut, ...] = ()
        self._prefix_tokens: dict[str, int] = {}
        self._may_stop = True
        self._cut: keras.Model | None = None
        self._names: dict[keras.Model, dict[keras.Layer, str]] = {}
        self.traceable = True
        """Which layers run does not depend on the values of the inputs, so that the pass can be compiled."""
        self.programs: dict[Any, Any] = {}
        """What `spile.keras.engines` compiled of this tap, for the next extraction."""
        self._closed = False
        declared = declared_inputs(model)
        sizes = [size for t in keras.tree.flatten(declared) if t is not None for size in t.shape[1:]]
        if example is not None or (declared is not None and None not in sizes):
            self._resolve(example)

    @property
    def points(self) -> tuple[Point, ...]:
        """The resolved points. Raises `CaptureError` before the first batch of a tap without an example."""
        if not self._points:
            raise CaptureError(
                "the points are learnt from the first batch: call the tap once, or make it with example=..."
            )
        return self._points

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Places that a pattern matched but that hold nothing for each sample, and why."""
        return self._left_out

    def prefix_tokens(self, point: Point) -> int:
        """Class and register tokens at a point."""
        return self._prefix_tokens.get(point.name, 0)

    def __call__(self, *args: Any, **kwargs: Any) -> Activations:
        """Run the model on a batch up to the deepest point.

        Raises `CaptureError` where a point did not fire as it should.
        """
        return Activations(self.run(self._inputs(args, kwargs)))

    def with_output(self, *args: Any, **kwargs: Any) -> tuple[Any, Activations]:
        """Run the whole model: its own output, and the activations."""
        output, capture = self._pass(self._inputs(args, kwargs), None, whole=True)
        return output, Activations(capture.values())

    def verify(self, *args: Any, rtol: float = 0.0, atol: float = 0.0, **kwargs: Any) -> Verification:
        """Compare every point with a reference that copies every value when it is made, by another way.

        Raises `CaptureError` naming the points that differ by more than ``atol + rtol * |reference|``.
        """
        inputs = self._inputs(args, kwargs)
        found = self.run(inputs)
        with stateless(self.model, None):
            expected = reference(
                self.model,
                self._points,
                inputs,
                training=self._training(),
                prefix_tokens=self._prefix_tokens,
                mask=self._mask(inputs),
            )
        return compare(found, expected, rtol=rtol, atol=atol)

    def close(self) -> None:
        """Let go of the model. The tap cannot be used afterwards; closing twice is fine."""
        self._cut = None
        self.programs.clear()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, inputs: Inputs, state: Sequence[Any] | None = None) -> dict[str, Any]:
        """One pass on ready inputs; `state` stands in for the values of the model's variables.

        What is compiled is a trace of this.
        """
        return self._pass(inputs, state, whole=False)[1].values()

    def learn(self, example: Inputs) -> None:
        """Resolve the points from one batch, if they are not yet."""
        with _resolving:
            if not self._points:
                self._resolve(example)

    def reached(self, inputs: Inputs) -> set[str]:
        """Paths of the layers that a pass enters."""
        return self._pass(inputs, None, whole=False)[1].entered

    def pruned(self) -> keras.Model:
        """The model cut down to what the points need; the model itself where that cannot be told."""
        return self.model if self._cut is None else self._cut

    def _resolve(self, example: Any) -> None:
        observation = observe(self.model, example)
        self.last_features = structure.last_features(observation)
        points, self._left_out = resolve(*self._wanted, observation)
        # Where the values decide what runs, only the whole pass shows that a layer did not run once more.
        self._may_stop = not (observation.value_dependent and any(point.only_call for point in points))
        self.traceable = not observation.value_dependent
        self._prefix_tokens = {point.name: prefix_tokens_of(point, observation) for point in points}
        self._cut = _cut(self.model, points, observation)
        self._names = {
            model: {layer: names[0] for layer, names in names_of(model).items()}
            for model in (self.model, self.pruned())
        }
        self._points = points

    def _pass(self, inputs: Inputs, state: Sequence[Any] | None, *, whole: bool) -> tuple[Any, Capture]:
        if self._closed:
            raise CaptureError("this tap is closed: make a new one with spile.tap(...)")
        self.learn(inputs)
        if state is None:
            _require_weights(self.model)
        target = self.model if whole else self.pruned()
        paths = self._names[target]
        capture = Capture(
            self._points,
            paths,
            prefix_tokens=self._prefix_tokens,
            mask=self._mask(inputs),
            stop=self._may_stop and not whole,
        )
        output = None
        with stateless(self.model, state), watching_calls(paths, capture.watch):
            try:
                output = target(*inputs.args, **{**self._training(), **inputs.kwargs})
            except Stop as signal:
                if signal.capture is not capture:
                    raise
        return output, capture

    def _training(self) -> dict[str, Any]:
        return {"training": False} if self.mode == "eval" else {}

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        preprocessing = self.origin.preprocessing if self.origin is not None else None
        ready = (ready_images(a, preprocessing=preprocessing) for a in args)
        return called_with(self.model, tuple(ready), kwargs)

    def _mask(self, inputs: Inputs) -> Any:
        """Which tokens are real, where the model is told so."""
        found = ({**inputs.kwargs} | _keyed(inputs.args)).items()
        return next((value for name, value in found if name in _MASKS), None)


def _require_weights(model: keras.Model) -> None:
    """Raises `CaptureError` where Keras has taken them away, as it does on JAX while a model is fitted."""
    if any(variable._value is None and variable._initializer is None for variable in model.variables):
        raise CaptureError(
            f"the weights of {model.name!r} are not there: on JAX, fit holds them while it trains. Tap (or "
            "guide by) a copy: copy = keras.models.clone_model(model); copy.set_weights(model.get_weights())"
        )


def _keyed(args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(args[0]) if args and isinstance(args[0], Mapping) else {}


def _cut(model: keras.Model, points: Sequence[Point], observation: Observation) -> keras.Model | None:
    """The graph up to the points; ``None`` where there is no graph, or calls could change their numbers."""
    if not (is_graph(model) or isinstance(model, keras.Sequential)) or declared_inputs(model) is None:
        return None
    tops = list(dict.fromkeys(point.path.partition("/")[0] for point in points if point.path))
    if not tops or any(point.path == "" and point.side == "out" for point in points):
        return None
    layers = [model.get_layer(name) for name in tops]
    # Cutting could change the order of several runs; and only a single use is sure to be in this graph.
    if any(len(observation.by_path[name]) > 1 for name in tops):
        return None
    # A layer inside a model may run outside of it too.
    for point in points:
        top = observation.by_path[point.path.partition("/")[0]][0]
        calls = observation.by_path[point.path]
        if any(not top.start <= call.start <= call.end <= top.end for call in calls):
            return None
    if any(len(layer._inbound_nodes) != 1 for layer in layers):
        return None
    # Not `layer.output`: that of a model inside is the end of its own graph.
    outputs = [tensor for layer in layers for tensor in layer._inbound_nodes[0].output_tensors]
    return keras.Model(declared_inputs(model), outputs, name=model.name)


def prefix_tokens_of(point: Point, observation: Observation) -> int:
    """Class and register tokens at this point: none yet in a layer before they are put in front."""
    call = observation.by_path[point.path][point.call]
    own = next(item.prefix_tokens for item in call.items(point.side) if item.key == point.item)
    return (observation.prefix_tokens if own is None else own) or 0
