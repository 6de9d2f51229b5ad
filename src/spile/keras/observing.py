"""The dry pass: which layers run, how often, with which tensors, at what cost; without data if possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import keras
import numpy as np

from spile import layouts
from spile.address import Side
from spile.errors import ModelError
from spile.keras.costs import macs_of
from spile.keras.names import Names, children_of, names_of
from spile.keras.runtime import runtime
from spile.keras.trees import Inputs, dtype_of, given, inputs_of, is_tensor, tensor_of, tensors, transform
from spile.keras.watching import watching_calls
from spile.layouts import Channels, Place
from spile.observation import Call, Item, Layer, Observation

_SIDES: tuple[Side, Side] = ("in", "out")
_LAST = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.LayerNormalization,
    keras.layers.Embedding,
    keras.layers.RNN,
    keras.layers.MultiHeadAttention,
)


def observe(model: keras.Model, example: Any = None) -> Observation:
    """Run one dry pass.

    `example` is a batch or its shape, nested as the model's inputs are; not needed where the model fixes the
    size of its inputs. Nothing of the model changes. Raises `ModelError` where the model is not built, or
    does not take the example.
    """
    if not model.built:
        raise ModelError(
            f"the model {model.name!r} has no weights yet: call it on one batch before it is tapped"
        )
    inputs = inputs_of(model, example)
    two = with_samples(inputs, 2)
    subject = _Subject(model, names_of(model))
    calls = subject.first_pass(two)
    more = subject.variant(with_samples(inputs, 3))
    larger = next(filter(None, map(subject.variant, _enlarged(two))), {})
    layers = {names[0]: layer for layer, names in subject.names.items()}
    first = keras.config.image_data_format() == "channels_first"
    observation = Observation(
        layers={layer.path: layer for layer in _layers(subject.names)},
        calls=layouts.settled(
            calls, more, larger, lambda call: _channels_of(layers[call.path], call), channels_first=first
        ),
        separator="/",
        prefix_tokens=None,
        text=any("int" in str(t.dtype) and len(t.shape) == 2 for _, t in tensors(inputs)),
        value_dependent=subject.value_dependent,
    )
    return layouts.with_prefix_tokens(observation, larger, said=None)


def with_samples(inputs: Inputs, samples: int) -> Inputs:
    """The first sample of every batched input, repeated: of all with as many rows as the first one."""
    rows = next((t.shape[0] for _, t in tensors(inputs) if len(t.shape)), None)

    def repeated(t: Any) -> Any:
        return keras.ops.repeat(t[:1], samples, axis=0) if t.shape[0] == rows else t

    return Inputs(*transform(tuple(inputs), repeated))


@dataclass
class _Subject:
    """What the dry passes run on."""

    model: keras.Model
    names: Names
    value_dependent: bool = False
    """Only a pass with real values shows which layers run."""

    def first_pass(self, inputs: Inputs) -> list[Call]:
        """The pass traced without values; else, for a model that looks at them, run with real ones."""
        variables = len(self.model.variables)
        try:
            calls = self._traced(inputs)
        except (
            Exception
        ):  # each backend says in its own way that a value is needed, and the next pass tells more
            try:
                calls = self._eager(inputs)
            except Exception as error:
                shapes = ", ".join(f"{list(t.shape)} {dtype_of(t)}" for _, t in tensors(inputs))
                raise ModelError(
                    f"the model does not take two samples like the example ({shapes}): "
                    f"{type(error).__name__}: {error}"
                ) from error
            self.value_dependent = True
        if len(self.model.variables) != variables:
            raise ModelError(
                f"some layers of {self.model.name!r} had no weights yet: call the model on one batch, then "
                "tap it"
            )
        return calls

    def variant(self, inputs: Inputs) -> dict[Place, Item]:
        """The items of a further pass by their place; empty where the model does not take such an input."""
        try:
            calls = self._eager(inputs) if self.value_dependent else self._traced(inputs)
        except Exception:  # fixed-size models say so in many ways
            return {}
        return {(c.path, c.index, side, i.key): i for c in calls for side in _SIDES for i in c.items(side)}

    def _traced(self, inputs: Inputs) -> list[Call]:
        recorder = _Recorder(self.model, self.names)
        leaves = keras.tree.flatten(tuple(inputs))
        places = [i for i, leaf in enumerate(leaves) if is_tensor(leaf)]

        def body(state: Sequence[Any] | None, traced: Any) -> dict[str, Any]:
            filled = leaves.copy()
            for place, tensor in zip(places, traced, strict=True):
                filled[place] = tensor
            return recorder.body(state, keras.tree.pack_sequence_as(tuple(inputs), filled))

        runtime().trace(body, self.model.variables, [leaves[i] for i in places])
        return recorder.calls

    def _eager(self, inputs: Inputs) -> list[Call]:
        recorder = _Recorder(self.model, self.names)
        with runtime().without_gradients():
            recorder.body(None, tuple(inputs))
        return recorder.calls


class _Recorder:
    """Writes down every run of every layer of one pass."""

    def __init__(self, model: keras.Model, names: Names) -> None:
        self.calls: list[Call] = []
        self._model = model
        self._names = names
        self._ran: dict[str, int] = {}
        self._clock = count()
        self._alive: list[Any] = []  # keeps every tensor, so that an identity is never used twice
        self._needed = _NeededParameters()
        self._macs = 0
        self._beyond: set[str] = set()

    def body(self, state: Sequence[Any] | None, inputs: Any) -> dict[str, Any]:
        """The recorded pass, as `spile.keras.runtime.Body`."""
        args, kwargs = inputs
        with stateless(self._model, state), watching_calls(self._names, self._watch, self._see_beyond):
            self._model(*args, **kwargs, training=False)
        # Also their runs outside of the loop: in a pass that is not traced they could not be told apart.
        self.calls = [call for call in self.calls if call.path not in self._beyond]
        return {}

    def _see_beyond(self, layer: keras.Layer) -> None:
        self._beyond.add(self._names[layer][0])

    def _watch(
        self, layer: keras.Layer, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self._names[layer][0]
        index = self._ran[path] = self._ran.get(path, -1) + 1
        entered = Call(
            path=path,
            index=index,
            start=next(self._clock),
            end=0,
            inputs=self._items(given(args, kwargs)),
            outputs=(),
            macs_before=self._macs,
            macs=0,
            params_before=self._needed.total,
            params=0,
        )
        self._needed.enter(layer)
        output = run()
        self._needed.leave(layer)
        outputs = self._items(output)
        self._macs += macs_of(layer, entered.inputs, outputs)
        self.calls.append(
            replace(
                entered, end=next(self._clock), outputs=outputs, macs=self._macs, params=self._needed.total
            )
        )
        return output

    def _items(self, value: Any) -> tuple[Item, ...]:
        found = list(tensors(value))
        self._alive.extend(t for _, t in found)
        return tuple(
            Item(
                key or None,
                tuple(int(n) for n in t.shape),
                dtype_of(t),
                id(t),
            )
            for key, t in found
        )


class _NeededParameters:
    """Counts the parameters used so far: all of a layer that was left, a layer's own once it was entered."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.total = 0

    def enter(self, layer: keras.Layer) -> None:
        held = {id(w) for _, child in children_of(layer) for w in child.weights}
        self._add(w for w in layer.weights if id(w) not in held)

    def leave(self, layer: keras.Layer) -> None:
        self._add(layer.weights)

    def _add(self, weights: Any) -> None:
        for weight in weights:
            if id(weight) not in self._seen:
                self._seen.add(id(weight))
                self.total += int(np.prod(weight.shape))


@contextmanager
def stateless(model: keras.Model, state: Sequence[Any] | None) -> Iterator[None]:
    """A scope in which a pass leaves the model's variables and losses alone; `state` are the former's values.

    Without `state` they are those of the scope around it, e.g. of a loss that JAX differentiates.
    """
    mapping = list(zip(model.variables, state, strict=True)) if state is not None else None
    with keras.StatelessScope(state_mapping=mapping) as scope:
        if state is None and scope.original_scope is not None:
            scope.state_mapping.update(scope.original_scope.state_mapping)
        # A pass starts by forgetting the losses of the one before, which may be a training step's.
        losses = [(x, [*x._losses], {*x._loss_ids}) for x in model._flatten_layers() if x._losses]
        try:
            yield
        finally:
            for layer, kept, ids in losses:
                layer._losses[:] = kept
                layer._loss_ids.clear()
                layer._loss_ids.update(ids)


def _layers(names: Names) -> Iterator[Layer]:
    known = {path for found in names.values() for path in found}
    for layer, (path, *aliases) in names.items():
        for holder in _holders(path, known):
            known.add(holder)
            yield Layer(holder, (), ("list",), leaf=False, container=True, params=0)
        classes = [
            c.__name__ for c in type(layer).__mro__ if issubclass(c, keras.Layer) and c is not keras.Layer
        ]
        yield Layer(
            path=path,
            aliases=tuple(aliases),
            types=tuple(classes) or ("Layer",),
            leaf=next(children_of(layer), None) is None,
            container=isinstance(layer, keras.Sequential),
            params=sum(int(np.prod(w.shape)) for w in layer.weights),
        )


def _holders(path: str, known: set[str]) -> Iterator[str]:
    """Lists and dicts on the way to a layer: they hold layers and are none."""
    parts = path.split("/")
    for end in range(1, len(parts)):
        holder = "/".join(parts[:end])
        if holder not in known:
            yield holder


def _channels_of(layer: keras.Layer, call: Call) -> Channels | None:
    """Where this layer puts the channels of its output; ``None`` for kinds that do not fix them."""
    if not call.outputs:
        return None
    ndim = len(call.outputs[0].shape)
    data_format = getattr(layer, "data_format", None)
    if data_format in ("channels_first", "channels_last") and ndim > 2:
        first = data_format == "channels_first"
        return Channels(first, call.outputs[0].shape[1 if first else -1], ndim)
    if isinstance(layer, keras.layers.BatchNormalization | keras.layers.GroupNormalization):
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[-1]
        return Channels(axis == 1 and ndim > 2, call.outputs[0].shape[axis], ndim)
    if isinstance(layer, _LAST):
        return Channels(False, call.outputs[0].shape[-1], ndim)
    return None


def _enlarged(inputs: Inputs) -> Iterator[Inputs]:
    """Larger inputs to try: images by 64 x 32 pixels, texts by a token, signals to twice an axis."""
    found = [t for _, t in tensors(inputs)]
    ndims = {len(t.shape) for t in found}
    floating = {"float" in dtype_of(t) for t in found}
    ops = keras.ops
    if ndims == {4} and floating == {True}:
        more = (32, 64) if keras.config.image_data_format() == "channels_first" else (64, 32)
        axes = (2, 3) if keras.config.image_data_format() == "channels_first" else (1, 2)
        yield _each(inputs, lambda t: _padded(_padded(t, axes[0], more[0]), axes[1], more[1]))
    elif ndims == {2} and floating == {False}:
        yield _each(inputs, lambda t: ops.concatenate([t, t[:, -1:]], axis=1))
    elif ndims in ({2}, {3}) and floating == {True}:
        yield _each(inputs, lambda t: ops.concatenate([t, t], axis=1))
        if ndims == {3}:
            yield _each(inputs, lambda t: ops.concatenate([t, t], axis=2))


def _padded(tensor: Any, axis: int, more: int) -> Any:
    widths = [(0, more if i == axis else 0) for i in range(len(tensor.shape))]
    return keras.ops.pad(tensor, widths)


def _each(inputs: Inputs, function: Callable[[Any], Any]) -> Inputs:
    return Inputs(*transform(tuple(inputs), lambda t: function(tensor_of(t))))
