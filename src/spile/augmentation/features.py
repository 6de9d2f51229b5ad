"""What is done to activations at a layer while a model is trained: specs, and what is drawn for a batch.

Pure; the arithmetic is the framework's, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from spile.augmentation.mixes import checked_alpha
from spile.augmentation.randomness import Draw
from spile.augmentation.thresholds import Quantile, levels
from spile.errors import AugmentationError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureOperation:
    """Of one kind."""


@dataclass(frozen=True)
class ManifoldMixup(FeatureOperation):
    """Activations and labels mixed with a partner's, λ from Beta(alpha, alpha) for each sample (Verma et al.
    2019, section 2)."""

    alpha: float = 2.0

    def __post_init__(self) -> None:
        checked_alpha(self.alpha)


@dataclass(frozen=True)
class MoEx(FeatureOperation):
    """The mean and deviation over channels, at every place, are those of the partner; the own label counts
    `weight` (Li et al. 2021, section 3.2: 0.9)."""

    weight: float = 0.9

    def __post_init__(self) -> None:
        _checked_share("weight", self.weight)


@dataclass(frozen=True)
class FeatureDropout(FeatureOperation):
    """A share of the cells becomes 0, the most ``active`` ones or ``random`` ones; the rest is scaled up."""

    share: float = 0.1
    at: Literal["active", "random"] = "active"

    def __post_init__(self) -> None:
        _checked_share("share", self.share)
        if self.at not in ("active", "random"):
            raise AugmentationError(f"at={self.at!r}: write 'active' or 'random'")


@dataclass(frozen=True)
class FeatureNoise(FeatureOperation):
    """Normal noise, `std` times the deviation of the sample's own activation."""

    std: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise AugmentationError(f"std={self.std!r}: write a number above 0")


class Plan(NamedTuple):
    """What was drawn for a batch."""

    partners: list[int]
    own: Array
    """(n,) how much a sample's own label counts; the partner's counts the rest."""
    keys: list[int]
    """(n,) seeds of what is drawn at the layer."""


def plan(operation: FeatureOperation, ids: Sequence[Any], draw: Draw) -> Plan:
    """Draw for a batch: of (seed, epoch, id) alone, but for who is in the batch."""
    names = [str(one) for one in ids]
    partners = draw.partners(names, "feature/partner")
    own = np.ones(len(names))
    if isinstance(operation, ManifoldMixup):
        generators = (draw.generator(one, "feature/mix") for one in names)
        own = np.array([each.beta(operation.alpha, operation.alpha) for each in generators])
    elif isinstance(operation, MoEx):
        own = np.full(len(names), operation.weight)
    return Plan(partners, own, [draw.key(one, "feature") for one in names])


def mixed_labels(weights: Array, drawn: Plan) -> Array:
    """(n, classes) of weights (n, classes)."""
    own = drawn.own[:, None]
    mixed: Array = (own * weights + (1 - own) * weights[drawn.partners]).astype(np.float32)
    return mixed


def dropped(operation: FeatureDropout, strength: Array, drawn: Plan) -> Array:
    """(n, h, w) of 0 and what the kept cells are scaled with, from the cells' strength (n, h, w)."""
    n, h, w = strength.shape
    areas = np.full((h, w), 1 / (h * w))
    threshold = Quantile(1 - operation.share, bounds=(1e-9, 1.0))
    kept = np.empty((n, h, w), np.float32)
    for row, key in enumerate(drawn.keys):
        noise = np.random.Generator(np.random.Philox(key)).random((h, w))
        values = strength[row] if operation.at == "active" else noise
        off = levels(values, areas, threshold, noise) == 1
        kept[row] = np.where(off, 0.0, 1 / (1 - off.mean()))
    return kept


def _checked_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise AugmentationError(f"{name}={value!r}: write a share between 0 and 1")
