"""The small protocol that both frameworks implement, and how to find out whose model one was given."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

from spile.augmentation.canvas import Canvas
from spile.augmentation.features import FeatureOperation, Steps
from spile.augmentation.geometry import Grid
from spile.augmentation.settings import GuideLike, GuideSettings
from spile.errors import ModelError
from spile.fitting import Fitted, Job
from spile.observation import Observation
from spile.plain import PlainHead
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressesLike, LeftOut, Point, PoolsLike
from spile.supervision.heads import HeadSpec
from spile.supervision.settings import Certificate, Loss, Settings, SupervisedOutput

Mode = Literal["eval", "as_is"]
"""``eval``: the pass runs in evaluation mode and puts the flags back; ``as_is``: as the caller left them."""
Precision = Literal["float32", "bfloat16"]
EngineName = Literal["auto", "eager", "compile", "openvino"]
"""``eager``: the model as it is, the reference; ``compile``: the framework's own compiler;
``openvino``: for CPUs; ``auto``: the fastest that gives the same values, where the run is long enough for it
to be prepared. But for eager, the weights are those of the first batch."""


class Activations(dict[str, Any]):
    """What one pass gives: a read-only mapping from address (or own name) to tensor, samples first."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("activations are read-only; copy them with dict(activations)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Activations], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)

    def __repr__(self) -> str:
        rows = ", ".join(f"{name!r}: {tuple(value.shape)}" for name, value in self.items())
        return f"Activations({{{rows}}})"


@dataclass(frozen=True)
class Verification:
    """What `Tap.verify` found: every point equals an independent reference up to `largest_difference`."""

    points: int
    largest_difference: float


@dataclass(frozen=True)
class Exported:
    """What `Backend.export` wrote into its folder, and which tap of it gives the same features."""

    file: str
    addresses: tuple[str, ...]
    """One a point of the tap, in its order; likewise `pools`."""
    pools: tuple[str, ...]


@dataclass(frozen=True)
class Trained:
    """What `Backend.save_trained` wrote."""

    weights: Path
    reference: str
    """What the network is built from again: a name, or a file of the folder."""
    problem: str = ""
    """Why it cannot be, but for its own Python; then the weights alone were written."""


class Tap(Protocol):
    """Points and pools on a model."""

    model: Any
    mode: Mode
    origin: Any
    """The `spile.models.LoadedModel` of a model that came from a reference."""
    last_features: str
    """Address of what the model's final classifier reads."""

    @property
    def points(self) -> tuple[Point, ...]:
        """The resolved points."""
        ...

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Places that a pattern matched but that hold nothing for each sample, and why."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Activations:
        """Run the model up to the deepest point."""
        ...

    def with_output(self, *args: Any, **kwargs: Any) -> tuple[Any, Activations]:
        """Run the whole model: its own output, and the activations."""
        ...

    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Compare every point with an independent reference."""
        ...

    def close(self) -> None:
        """Leave the model as it was."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class AtLayer(Protocol):
    """An operation on the activations of a layer; see `spile.at_layer`."""

    steps: Steps
    """What was drawn; of `ISDA` and `SemanticNoise` also the moments of the classes."""

    def step(self, labels: Any, *, ids: Any, epoch: int, progress: float | None = None) -> Any:
        """Draw for the training batch that comes, and give its labels, (n, classes) weights."""
        ...

    def bound(self, logits: Any, weight: Any) -> Any:
        """Of `ISDA`: the logits whose cross-entropy is its loss."""
        ...

    def close(self) -> None:
        """Leave the model as it was."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


Take = Callable[[Any, tuple[int, ...], Any], None]
"""Gets the raw maps (n, cells) of a pass, the shape of the model's inputs, and these as uint8 if asked."""


class Kept(Protocol):
    """A guide's model whose training passes are watched."""

    active: bool
    """Whether maps are wanted; a pass that is compiled may hand them on all the same."""

    @property
    def leads(self) -> bool:
        """Whether this process, of those that train the model, writes."""
        ...

    def grid(self, shape: tuple[int, ...], size: tuple[int, int]) -> Grid:
        """Where the cells lie in pictures of `size` (height, width) that were inputs of `shape`."""
        ...

    def gathered(self, made: list[Any]) -> list[Any]:
        """What all processes that train the model have made; without several, what was given."""
        ...

    def close(self) -> None:
        """Leave the model as it was."""
        ...


Runner = Callable[[Any], Any]
"""Runs an exported model: `spile.data.Batch.inputs` in, scores (n, c) out."""


class Engine(Protocol):
    """Runs a tap for extraction: a batch of inputs in, NumPy arrays out, floats in float32 or float16."""

    @property
    def name(self) -> str:
        """What ran the batches, known after the first one."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what the values depend on besides `Backend.versions`."""
        ...

    @property
    def notes(self) -> Mapping[str, Any]:
        """How it was chosen and checked, for the manifest: plain JSON values."""
        ...

    @property
    def at_once(self) -> int:
        """How many batches may be run at the same time, in threads; 1 where a pass changes the model."""
        ...

    def __call__(self, inputs: Any) -> Mapping[str, Any]:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        ...


class Supervised(Protocol):
    """A model with auxiliary heads; see `spile.supervise`."""

    base: Any
    """The model itself, not a copy."""
    heads: Mapping[str, Any]
    """By address, the shallowest first."""

    @property
    def points(self) -> tuple[Point, ...]:
        """Where the heads read."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> SupervisedOutput:
        """Run the whole model and its heads."""
        ...

    def loss(
        self,
        output: SupervisedOutput,
        labels: Any,
        *,
        progress: Any,
        ids: Any = None,
        soft_labels: Any = None,
    ) -> Loss:
        """The weighted sum of all targets when the share `progress` of training is done."""
        ...

    def diagnose(
        self,
        inputs: Any,
        labels: Any,
        *,
        progress: float = 0.0,
        ids: Any = None,
        soft_labels: Any = None,
    ) -> dict[str, dict[str, float]]:
        """By layer with weights: gradient norm, share of each head in it, cosine between main and heads."""
        ...

    def head_specs(self) -> dict[str, HeadSpec | None]:
        """What each head is built of, as it is; ``None`` for one of the user's own."""
        ...

    def save_heads(self, path: Path) -> None:
        """Write the weights of the heads alone, as safetensors."""
        ...

    def load_heads(self, path: Path) -> None:
        """Put back what `save_heads` wrote, of heads that are built alike. Raises `ModelError`."""
        ...

    def strip(self) -> Any:
        """Take the heads off and give the model back, the same object."""
        ...

    def certificate(self, inputs: Any) -> Certificate:
        """Check that stripping leaves the model as it was."""
        ...

    def exits(
        self, data: Any, *, accuracy: float | None = None, budget: float | None = None, holdout: float = 0.5
    ) -> Any:
        """A model that lets samples leave at the first head that is sure; `data` is (inputs, labels)."""
        ...


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
