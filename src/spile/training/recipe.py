"""What is to be trained, on what, and how: everything that decides a result but the seed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from spile.augmentation.policies import Policy
from spile.backend import framework_of
from spile.errors import TrainingError, nearest
from spile.fitting import MixedPrecision, OptimizerName, Optimizing, RateName
from spile.preprocessing import Preprocessing
from spile.resolution import AddressesLike, AddressLike
from spile.supervision.heads import HeadLike
from spile.supervision.settings import MainOutput
from spile.supervision.targets import PseudoLabels, Target, Targets
from spile.supervision.weights import CosineDecay, Weighting


@dataclass(frozen=True, kw_only=True, eq=False)
class Supervision:
    """Auxiliary heads for a training run; the options of `spile.supervise`, which explains them."""

    taps: AddressesLike = "auto"
    head: HeadLike | Mapping[str, HeadLike] = "bottleneck"
    targets: Targets | None = None
    weight: Weighting | float = field(default_factory=lambda: CosineDecay(0.4, end=0.7))
    gradient: float | str = "full"
    allow_large: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Augmentation:
    """Guided augmentation for a training run; see `spile.guide` and `spile.augment`."""

    at: AddressLike
    """The layer that guides."""
    policy: Policy | str = "bylevel"
    """A policy of `spile.augmentation`, or its name with operations of the framework."""
    guide: Any = None
    """Another model, or its reference; by default the one that is trained, as it is at the time."""
    reduce: str = "l2"
    resolution: float = 0.5
    maps: str = "guided"
    """Or a placebo: ``"permuted"``, ``"random"``, ``"centre"``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """A training run but for its seed: the options of `spile.train`. `spile.compare` takes two.

    Raises `TrainingError` for an option that is out of range.
    """

    model: Any
    """A reference such as ``"timm:resnet18"``, a function that makes a model, a model object (which is
    trained in place), or what `spile.load_model` gave. Its output is logits, or has them, see `main`."""
    data: Any
    """Labelled samples: a folder, a manifest, arrays (x, y), a demo set; anything but a stream of batches."""
    supervise: Supervision | None = None
    """Auxiliary heads, or none."""
    augment: Augmentation | None = None
    """Guided augmentation, or none."""
    epochs: int = 10
    batch_size: int = 32
    optimizer: OptimizerName = "adamw"
    rate: float = 1e-3
    """Learning rate; fine-tuning a pretrained network usually wants 1e-4 or less."""
    decay: float = 0.0
    schedule: RateName = "cosine"
    warmup: float = 0.0
    """Share of training in which the rate rises from 0."""
    accumulate: int = 1
    """Batches a step."""
    precision: MixedPrecision = "float32"
    pretrained: bool = True
    """With ``False`` a reference is built with random weights."""
    weights: str | os.PathLike[str] | None = None
    """A local file to begin with, for a reference."""
    device: str | None = None
    """Of a reference: ``cuda``, ``mps``; by default the CPU."""
    input_size: int | None = None
    preprocessing: Preprocessing | None = None
    """What uint8 images get; a model object does not tell it."""
    main: MainOutput = None
    """Which of the model's outputs holds its logits."""
    shots: int | None = None
    """So many rows of every class keep their label; the rest is for targets that use unlabelled rows."""
    patience: int | None = None
    """Stop after so many epochs without a lower loss on a fifth of the training rows, set aside for it, and
    keep the best epoch. The test rows take no part in that."""
    from_probe: str | os.PathLike[str] | None = None
    """A run of `spile.transfer` on the same model and data: the classifier starts as a linear probe on its
    features of the training rows (LP-FT, Kumar et al. 2022)."""
    max_bad: float = 0.01
    """Share of the samples that may be unreadable (one always may); they are left out, and reported."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "shots", "patience"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise TrainingError(f"{name}={value!r}: write a whole number of 1 or more")
        for name, allowed in (
            ("optimizer", OptimizerName),
            ("schedule", RateName),
            ("precision", MixedPrecision),
        ):
            value, choices = getattr(self, name), get_args(allowed)
            if value not in choices:
                near = nearest(str(value), choices, n=1)[0]
                raise TrainingError(
                    f"{name}={value!r}: did you mean {near!r}? Allowed: {', '.join(map(repr, choices))}"
                )
        if not self.rate > 0:
            raise TrainingError(f"rate={self.rate!r}: write a learning rate above 0, e.g. rate=1e-3")
        if not 0 <= self.max_bad <= 1:
            raise TrainingError(f"max_bad={self.max_bad!r}: write a share from 0 to 1, e.g. max_bad=0.05")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup={self.warmup!r}: write a share of training from 0 to below 1")
        if self.decay < 0:
            raise TrainingError(f"decay={self.decay!r}: write a weight decay of 0 or more")
        if self.supervise is not None and not isinstance(self.supervise, Supervision):
            raise TrainingError(
                f"supervise={self.supervise!r}: write spile.Supervision(taps=['layer2'], ...), or None"
            )

        if self.augment is not None and not isinstance(self.augment, Augmentation):
            raise TrainingError(
                f"augment={self.augment!r}: write spile.Augmentation(at='layer3', policy='bylevel'), or None"
            )

    @property
    def optimizing(self) -> Optimizing:
        """How weights are changed."""
        return Optimizing(
            name=self.optimizer,
            rate=self.rate,
            decay=self.decay,
            schedule=self.schedule,
            warmup=self.warmup,
            accumulate=self.accumulate,
        )

    @property
    def uses_unlabelled(self) -> bool:
        """Whether a target learns from rows without a label."""
        return self.supervise is not None and any(
            isinstance(target, PseudoLabels) for target in _listed(self.supervise.targets)
        )

    def described(self) -> dict[str, str]:
        """Every option as text; equal for equal recipes. A model object is told by its class."""
        found: dict[str, str] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("supervise", "augment") and value is not None:
                found |= {f"{each.name}.{f.name}": _text(getattr(value, f.name)) for f in fields(value)}
            else:
                found[each.name] = _text(value)
        return found


def checked_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """`options` themselves. Raises `TrainingError` for one that a `Recipe` has not."""
    known = [each.name for each in fields(Recipe)]
    unknown = [name for name in options if name not in known]
    if unknown:
        near = nearest(unknown[0], known, n=1)[0]
        raise TrainingError(
            f"spile.train has no option {unknown[0]!r}: did you mean {near!r}? Options: {', '.join(known)}"
        )
    return options


def _listed(targets: Targets | None) -> list[Target]:
    if targets is None:
        return []
    if isinstance(targets, Target):
        return [targets]
    values = targets.values() if isinstance(targets, Mapping) else targets
    return [target for value in values for target in _listed(value)]


def _text(value: Any) -> str:
    if framework_of(value) is not None:
        return f"<{type(value).__name__}>"
    if hasattr(value, "reference") and hasattr(value, "model"):
        return value.reference or f"<{type(value.model).__name__}>"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"<function {value.__qualname__}>"
    if isinstance(value, (str, int, float, type(None), os.PathLike)):
        return str(value)
    if isinstance(value, (list, tuple)) and not any(hasattr(item, "shape") for item in value):
        return f"[{', '.join(map(_text, value))}]"
    shown = repr(value)
    return shown if " at 0x" not in shown and len(shown) < 500 else f"<{type(value).__name__}>"
