"""The small protocol that both frameworks implement, and how to find out whose model one was given."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from spile.augmentation.canvas import Canvas
from spile.augmentation.features import FeatureOperation
from spile.augmentation.settings import GuideLike, GuideSettings
from spile.errors import ModelError
from spile.fitting import Fitted, Job
from spile.interfaces import (
    AtLayer,
    Engine,
    EngineName,
    Exported,
    Kept,
    Mode,
    Precision,
    Runner,
    Supervised,
    Take,
    Tap,
    Trained,
)
from spile.observation import Observation
from spile.plain import PlainHead
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressesLike, PoolsLike
from spile.supervision.settings import Settings


class Backend(Protocol):
    """What a framework must offer; implemented by the module ``spile.<framework>.backend``."""

    def observe(self, model: Any, example: Any) -> Observation:
        """Run one dry pass."""
        ...

    def tap(self, model: Any, addresses: AddressesLike, *, pool: PoolsLike, example: Any, mode: Mode) -> Tap:
        """Tap a model."""
        ...

    def engine(
        self,
        tap: Tap,
        *,
        preprocessing: ImagePreprocessing | None,
        precision: Precision,
        name: EngineName = "auto",
        samples: int | None = None,
        half: bool = False,
    ) -> Engine:
        """What runs a tap during extraction of that many `samples`, where the number is known.

        With `half`, floats may come in float16, where that saves copying.
        """
        ...

    def pack(self, tap: Tap, devices: Sequence[str]) -> bytes:
        """A tap as `unpack` takes it in processes that use these devices. Raises `ModelError`."""
        ...

    def unpack(self, packed: bytes, device: str, of: int) -> Tap:
        """The tap, on `device`, in one of so many processes of this machine."""
        ...

    def example(self, inputs: Any, *, preprocessing: ImagePreprocessing | None, model: Any) -> Any:
        """The inputs of one batch as the model takes them, for a dry pass."""
        ...

    def save_reached(self, tap: Tap, example: Any, path: Path) -> None:
        """Save the weights that the tap's pass needs."""
        ...

    def load_reached(self, model: Any, path: Path) -> None:
        """Put back what `save_reached` wrote."""
        ...

    def export(self, tap: Tap, example: Any, folder: Path, *, dry: bool = False) -> Exported:
        """Save a tap as a file that does not need the model's Python.

        With `dry` nothing is written: what is bound to fail, and can be told without running the tap, fails.
        """
        ...

    def supervise(self, model: Any, settings: Settings) -> Supervised:
        """Put auxiliary heads on a model."""
        ...

    def guide(self, model: Any, settings: GuideSettings) -> GuideLike:
        """Make a guide for augmentation."""
        ...

    def canvas(self) -> Canvas:
        """What changes the pixels of a batch."""
        ...

    def at_layer(
        self,
        model: Any,
        at: Any,
        operation: FeatureOperation,
        *,
        example: Any,
        seed: int,
        classes: int | None,
    ) -> AtLayer:
        """Change what a layer gives in training."""
        ...

    def feed(self, feed: Any, workers: int) -> Any:
        """A loader of the batches of a `spile.feeding.Feed`."""
        ...

    def keep(self, guide: Any, take: Take, *, pictures: bool = False) -> Kept:
        """Watch the training passes of a guide's model; with `pictures` their inputs are handed on too."""
        ...

    FORMATS: Mapping[str, str]
    """The formats of `save_whole`, and the name of each file."""

    def save_whole(
        self,
        tap: Tap,
        head: PlainHead,
        inputs: Any,
        folder: Path,
        formats: tuple[str, ...],
        *,
        images: ImagePreprocessing | None,
        about: Mapping[str, Any],
    ) -> dict[str, Path]:
        """Save a tap and a head as one model that needs neither spile nor the model's Python."""
        ...

    def open_whole(self, path: Path, name: str) -> Runner:
        """Open what `save_whole` wrote in the format `name`."""
        ...

    def seed(self, seed: int) -> None:
        """Seed the random numbers that initial weights and dropout are made of."""
        ...

    def with_classifier(self, model: Any, example: Any, classes: int) -> Any:
        """The model with logits for so many classes as its output; new weights in its last layer alone."""
        ...

    def set_classifier(self, model: Any, example: Any, coef: Any, intercept: Any) -> None:
        """Give the last layer these weights (features, classes) and biases (classes,)."""
        ...

    def save_trained(self, loaded: Any, example: Any, folder: Path, *, rebuildable: bool) -> Trained:
        """Save a trained network whole: all weights; and itself, where its reference does not give it back.

        `loaded` is a `spile.models.LoadedModel`; `rebuildable` tells whether a library builds what it names.
        """
        ...

    def load_trained(self, model: Any, path: Path) -> None:
        """Put all weights that `save_trained` wrote into a model of the same architecture."""
        ...

    def fit(self, job: Job) -> Fitted:
        """Train a model in place."""
        ...

    def weights_hash(self, model: Any) -> str:
        """Text that changes with any parameter or buffer."""
        ...

    def architecture_hash(self, model: Any) -> str:
        """Text that changes with the layers."""
        ...

    def device(self, model: Any) -> str:
        """The kind of device that the model is on: ``cpu``, ``cuda``, …."""
        ...

    def versions(self, model: Any) -> dict[str, str]:
        """Versions that can change a feature's value."""
        ...


def backend_of(model: Any) -> Backend:
    """The backend of a model, asking only frameworks that are already imported, Keras first.

    A Keras model on the torch backend is an ``nn.Module`` too, hence the order. Raises `ModelError` for
    anything else.
    """
    framework = framework_of(model)
    if framework is not None:
        return backend_named(framework)
    raise ModelError(
        f"{type(model).__name__} is no model of a framework that is loaded: pass a torch.nn.Module, a "
        "keras.Model, or a reference such as 'timm:resnet50'"
    )


def backend_named(framework: str) -> Backend:
    """The backend of a framework, ``torch`` or ``keras``, which is imported."""
    return cast(Backend, importlib.import_module(f"spile.{framework}.backend"))


def framework_of(model: Any) -> str | None:
    """``keras`` or ``torch``; ``None`` for what is no model of a framework that is loaded."""
    return next((name for name, classes in _loaded() if isinstance(model, classes)), None)


def _loaded() -> Iterator[tuple[str, type]]:
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and hasattr(keras, "Model"):
        yield "keras", keras.Model
    if torch is not None and hasattr(torch, "nn"):
        yield "torch", torch.nn.Module
