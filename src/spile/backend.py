"""The small protocol that both frameworks implement, and how to find out whose model one was given."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from spile.errors import ModelError
from spile.observation import Observation
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressesLike, LeftOut, Point, PoolsLike

Mode = Literal["eval", "as_is"]
"""``eval``: the pass runs in evaluation mode and the flags are put back; ``as_is``: as the caller left the model."""
Precision = Literal["float32", "bfloat16"]


class Activations(dict[str, Any]):
    """What one pass of a tap gives: a read-only mapping from address (or own name) to tensor, samples first."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("activations are read-only; copy them with dict(activations)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __repr__(self) -> str:
        rows = ", ".join(f"{name!r}: {tuple(value.shape)}" for name, value in self.items())
        return f"Activations({{{rows}}})"


@dataclass(frozen=True)
class Verification:
    """What `Tap.verify` found: every point equals an independent reference up to `largest_difference`."""

    points: int
    largest_difference: float


class Tap(Protocol):
    """Points and pools on a model."""

    model: Any
    mode: Mode
    origin: Any
    last_features: str

    @property
    def points(self) -> tuple[Point, ...]: ...
    @property
    def left_out(self) -> tuple[LeftOut, ...]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Activations: ...
    def with_output(self, *args: Any, **kwargs: Any) -> tuple[Any, Activations]: ...
    def verify(self, *args: Any, **kwargs: Any) -> Verification: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """Runs a tap for extraction: a batch of inputs in, float32 NumPy arrays out."""

    name: str

    def __call__(self, inputs: Any) -> Mapping[str, Any]: ...


class Backend(Protocol):
    """What a framework must offer; implemented by the module ``spile.<framework>.backend``."""

    def observe(self, model: Any, example: Any) -> Observation: ...
    def tap(
        self, model: Any, addresses: AddressesLike, *, pool: PoolsLike, example: Any, mode: Mode
    ) -> Tap: ...
    def engine(
        self, tap: Tap, *, preprocessing: ImagePreprocessing | None, precision: Precision
    ) -> Engine: ...
    def example(self, inputs: Any, *, preprocessing: ImagePreprocessing | None, model: Any) -> Any: ...
    def save_reached(self, tap: Tap, example: Any, path: Path) -> None: ...
    def load_reached(self, model: Any, path: Path) -> None: ...
    def export(self, tap: Tap, example: Any, path: Path) -> None: ...
    def weights_hash(self, model: Any) -> str: ...
    def architecture_hash(self, model: Any) -> str: ...
    def versions(self) -> dict[str, str]: ...


def backend_of(model: Any) -> Backend:
    """The backend of a model, asking only frameworks that are already imported, Keras first.

    A Keras model on the torch backend is an ``nn.Module`` too, hence the order. Raises `ModelError` for anything else.
    """
    for framework, classes in _loaded():
        if isinstance(model, classes):
            if framework == "keras":
                raise ModelError("Keras models are not supported yet: give a PyTorch nn.Module")
            return cast(Backend, importlib.import_module(f"spile.{framework}.backend"))
    raise ModelError(
        f"{type(model).__name__} is no model of a framework that is loaded: pass a torch.nn.Module, or a reference such as "
        f"'timm:resnet50'"
    )


def _loaded() -> Iterator[tuple[str, type]]:
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and hasattr(keras, "Model"):
        yield "keras", keras.Model
    if torch is not None and hasattr(torch, "nn"):
        yield "torch", torch.nn.Module
