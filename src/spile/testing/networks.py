"""The small networks that a backend gives to the conformance suite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import spile
from spile.backend import Backend, backend_of
from spile.interfaces import EngineName

Array = NDArray[Any]

EVERY_NETWORK = (
    "chain",
    "nested",
    "shared",
    "relu_twice",
    "tuple_output",
    "dict_output",
    "two_inputs",
    "normalised",
    "tokens",
    "idle_layer",
    "tied",
)


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Case:
    """One small network."""

    model: Any
    inputs: Mapping[str, tuple[int, ...]]
    """Shape of one sample of every argument of the model, by its name."""
    expected: Callable[..., Mapping[str, Any]]
    """From a batch, one NumPy array an argument, to the whole output of every layer that runs, by address.

    Samples come first, the model runs in evaluation mode, and spile has no part in it. A layer that runs
    several times is there once a call (``relu#1``), an output of several tensors once an item (``split:0``).
    """
    arm: Callable[[], None] = nothing
    """Of `Networks.chain`: from now on the layer ``tripwire`` raises ``RuntimeError("tripped")``."""


class Networks(ABC):
    """What a backend gives to the suite. Every method makes a new network, each time with the same weights.

    Layers are called as written here; dense layers have biases, and activations are layers of their own.
    """

    separator: str
    """Between the parts of a path."""
    map_layout: str
    """Layout of an image inside the network: ``BCYX`` or ``BYXC``."""
    dense: str
    """Class name of the dense layers."""
    engines: tuple[EngineName, ...] = ("eager",)
    """Those that the backend has."""
    rtol = 1e-4
    atol = 1e-5

    @abstractmethod
    def chain(self) -> Case:
        """`x` (4) → first (dense, 5) → act (tanh) → second (dense, 6) → tripwire → head (dense, 3).

        `tripwire` gives what it gets.
        """

    @abstractmethod
    def nested(self) -> Case:
        """`x` (4) → stem (dense, 5) → outer → head (dense, 3), three deep.

        `outer` is enter (dense, 5) → middle, `middle` holds inner alone, `inner` is dense (dense, 6) → act
        (tanh).
        """

    @abstractmethod
    def shared(self) -> Case:
        """`left` (4), `right` (4): encoder(left) - encoder(right) → head (dense, 3).

        `encoder` is dense (dense, 5) → act (tanh).
        """

    @abstractmethod
    def relu_twice(self) -> Case:
        """`x` (4) → first (dense, 5) → relu → second (dense, 6) → relu, the same layer."""

    @abstractmethod
    def tuple_output(self) -> Case:
        """`x` (4) → split, which gives the tuple ``(x + 1, x * 2)`` → head (dense, 3) of their sum."""

    @abstractmethod
    def dict_output(self) -> Case:
        """`x` (4) → split, which gives ``{"a": x + 1, "b": x * 2}`` → head (dense, 3) of their sum."""

    @abstractmethod
    def two_inputs(self) -> Case:
        """`left` (4), `right` (3) → join, which puts them side by side → head (dense, 3)."""

    @abstractmethod
    def normalised(self) -> Case:
        """`x` (image of 7 x 6, 3 channels) → conv → norm → act → drop → pool → head (dense, 3).

        `conv` is 3 x 3 with 4 channels and keeps the size, `norm` a batch normalisation with moving
        statistics that are not 0 and 1, `act` a ReLU, `drop` a dropout, `pool` the mean over the image. Left
        in training mode where the framework has one.
        """

    @abstractmethod
    def tokens(self) -> Case:
        """`x` (5 tokens, 4) → mix (dense, 6) → head (dense, 3), each token by itself."""

    @abstractmethod
    def idle_layer(self) -> Case:
        """`x` (4) → used (dense, 3); a layer `unused` that never runs."""

    @abstractmethod
    def tied(self) -> Case:
        """`x` (4) → second (dense, 4), where `first` and `second` are one layer, which counts as `first`."""

    @abstractmethod
    def branching(self) -> Case:
        """`x` (4) → stem, which gives what it gets → up if the sum is positive, else down (both dense, 3)."""

    @abstractmethod
    def looping(self) -> Case:
        """`x` (4) → cell, which gives what it gets, as often as the first number of the batch says → head."""

    @abstractmethod
    def to_numpy(self, value: Any) -> Array:
        """A tensor of the framework as an array."""

    @abstractmethod
    def state(self, model: Any) -> Any:
        """All of the model and the framework that a tap could change, as something that compares.

        Weights, gradients, training and trainable flags, whether and how layers are built, hooks, the
        attributes of every layer (so that no wrapper stays in ``vars(layer)``), and random states.
        """

    @abstractmethod
    def perturbed(self, model: Any) -> Iterator[str]:
        """Change one number of one weight or statistic, yield its name, put it back; then the next one."""

    @abstractmethod
    def scramble(self, model: Any) -> None:
        """Give every weight other values."""

    @abstractmethod
    def gradient(self, function: Callable[[Any], Any], x: Array) -> Array:
        """The gradient of the sum of ``function(tensor of x)`` with respect to x."""

    @abstractmethod
    def tamper(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make taps, and not the reference of `Tap.verify`, give wrong values."""

    def at(self, place: str) -> str:
        """A place as the backend writes it."""
        return place.replace("/", self.separator)

    def batch(self, case: Case, samples: int, seed: int = 0) -> Any:
        """Random inputs: an array, or a dict of them where the model has several arguments."""
        random = np.random.default_rng([seed, samples])
        arrays = {
            name: random.normal(size=(samples, *shape)).astype("float32")
            for name, shape in case.inputs.items()
        }
        return arrays if len(arrays) > 1 else arrays.popitem()[1]

    def wanted(self, case: Case, batch: Any) -> dict[str, Array]:
        """What every layer should give, by the backend's own addresses."""
        arrays = batch.values() if isinstance(batch, dict) else [batch]
        return {self.at(place): self.to_numpy(value) for place, value in case.expected(*arrays).items()}

    def same(self, value: Any, expected: Any) -> None:
        """Assert that two tensors or arrays have one shape and agree within the tolerance."""
        value, expected = self.to_numpy(value), self.to_numpy(expected)
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=self.rtol, atol=self.atol)

    def backend(self, case: Case) -> Backend:
        """The backend of a network's model."""
        return backend_of(case.model)

    def names(self, case: Case, address: str) -> list[str]:
        """The points of one address."""
        with spile.tap(case.model, address, pool=None, example=self.batch(case, 2)) as tap:
            return [point.name for point in tap.points]
