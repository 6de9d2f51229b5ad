"""What a backend makes, as the rest of spile sees it: taps, engines, supervised models, their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from spile.augmentation.features import Steps
from spile.augmentation.geometry import Grid
from spile.resolution import LeftOut, Point
from spile.supervision.heads import HeadSpec
from spile.supervision.settings import Certificate, Loss, SupervisedOutput

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
