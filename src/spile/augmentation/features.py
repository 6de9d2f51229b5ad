"""What is done to activations at a layer while a model is trained: specs, and what is drawn for a batch.

Pure; the arithmetic is the framework's, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from spile.augmentation.labels import class_weights
from spile.augmentation.mixes import checked_alpha
from spile.augmentation.moments import ClassMoments, Covariance
from spile.augmentation.randomness import Draw
from spile.augmentation.thresholds import Quantile, levels
from spile.errors import AugmentationError, CaptureError
from spile.resolution import Point

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


@dataclass(frozen=True)
class _ByClass(FeatureOperation):
    strength: float = 0.5
    covariance: Covariance = "diagonal"

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise AugmentationError(f"strength={self.strength!r}: write a number above 0")
        if self.covariance not in get_args(Covariance):
            raise AugmentationError(f"covariance={self.covariance!r}: write 'diagonal' or 'full'")


@dataclass(frozen=True)
class SemanticNoise(_ByClass):
    """Normal noise with λ times the covariance of the sample's class, the same at every place of a map.

    The explicit form of `ISDA` (Wang et al. 2019, section 3.2), for any layer: one draw a sample and step.
    Class covariances are estimated online from this layer's activations, of a map from its mean over the
    places. λ is `strength` x progress, as the first estimates are poor.
    """


@dataclass(frozen=True)
class ISDA(_ByClass):
    """Implicit semantic data augmentation at the layer that the linear classifier reads (Wang et al. 2019).

    Nothing is drawn: ``layer.bound(logits, weight)`` gives the logits whose cross-entropy bounds the expected
    loss over infinitely many draws of `SemanticNoise` (section 3.3, proposition 1). λ is `strength` x
    progress; the paper takes 0.5 on CIFAR-100 and, to save memory, the diagonal alone on ImageNet.
    """


class Plan(NamedTuple):
    """What was drawn for a batch."""

    partners: list[int]
    own: Array
    """(n,) how much a sample's own label counts; the partner's counts the rest."""
    keys: list[int]
    """(n,) seeds of what is drawn at the layer."""
    classes: Array
    """(n,) of an operation by class."""
    factor: float
    """λ of an operation by class."""


class Steps:
    """Between the labels of a batch and its pass: what was drawn, and what is known of the classes.

    What both frameworks' shells share.
    """

    def __init__(self, operation: FeatureOperation, *, seed: int, classes: int | None) -> None:
        self.operation = operation
        self.moments: ClassMoments | None = None
        self._seed, self._classes = seed, classes
        self._drawn: Plan | None = None
        self._passed: Plan | None = None

    @property
    def waiting(self) -> bool:
        """Whether a batch was told of whose pass has not come."""
        return self._drawn is not None

    def begin(self, labels: Array, ids: Sequence[Any], epoch: int, progress: float | None) -> Array:
        """Draw for the batch that comes: its labels as (n, classes) weights, float32."""
        if len(ids) != len(labels):
            raise AugmentationError(f"{len(ids)} ids for {len(labels)} labels: pass one a sample")
        labels = class_weights(
            labels,
            self._classes,
            missing="write classes= (of spile.at_layer), or pass labels as weights",
        )
        self._classes = labels.shape[1]
        drawn = plan(self.operation, ids, Draw(self._seed, epoch))
        if isinstance(self.operation, _ByClass):
            name = type(self.operation).__name__
            if progress is None or not 0 <= progress <= 1:
                raise AugmentationError(
                    f"progress={progress!r}: {name} grows with training, so pass the share of it that is "
                    "done, e.g. progress=epoch / epochs"
                )
            if not (labels.max(1) == 1).all():
                raise AugmentationError(f"{name} is of one class a sample: pass class numbers as labels")
            factor = self.operation.strength * progress
            drawn = drawn._replace(classes=labels.argmax(1), factor=factor)
        self._drawn, self._passed = drawn, None
        return mixed_labels(labels, drawn)

    def take(self, point: Point, samples: int) -> Plan | None:
        """What was drawn for the pass that is under way, once. Raises `CaptureError` for another batch."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None and samples != len(drawn.partners):
            raise CaptureError(
                f"{point.name} holds {samples} samples, and step was told of {len(drawn.partners)}"
            )
        self._passed = drawn
        return drawn

    def learn(self, features: Array, drawn: Plan) -> Array | None:
        """Take features (n, channels) of a pass into the classes' moments; noise (n, channels) to add."""
        operation = self.operation
        assert isinstance(operation, _ByClass)
        if self.moments is None:
            assert self._classes is not None
            self.moments = ClassMoments(self._classes, features.shape[1], operation.covariance)
        self.moments.update(features, drawn.classes)
        if isinstance(operation, ISDA):
            return None
        return self.moments.drawn(drawn.classes, drawn.keys, drawn.factor)

    def bounded(self, point: Point, samples: int, channels: int) -> tuple[Array, Array]:
        """Class numbers (n,) and, of each class, λ/2 x covariance: what `ISDA` adds to the logits is made of.

        Raises `CaptureError` where no pass of these samples has come.
        """
        if not isinstance(self.operation, ISDA):
            raise AugmentationError(f"{self.operation!r} changes activations itself: bound is for ISDA()")
        if self._passed is None or self.moments is None or len(self._passed.classes) != samples:
            raise CaptureError(
                f"{point.name}: call step(labels, ids=ids, epoch=epoch, progress=progress), run the model on "
                "the batch, then ask for the bound of its logits"
            )
        if self.moments.means.shape[1] != channels:
            raise AugmentationError(
                f"{point.name} has {self.moments.means.shape[1]} channels, and the weights are for "
                f"{channels}: ISDA sits at the layer that the linear classifier reads; elsewhere use "
                "SemanticNoise"
            )
        return self._passed.classes, self._passed.factor / 2 * self.moments.covariances


def single_point(points: Sequence[Point], at: Any) -> Point:
    """The one place whose output is changed. Raises `AugmentationError` where there is no such."""
    if len(points) != 1 or points[0].side != "out" or points[0].item or not points[0].only_call:
        names = ", ".join(point.name for point in points[:8])
        raise AugmentationError(f"at={at!r} names {names}: name the output of one layer that runs once")
    return points[0]


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
    keys = [draw.key(one, "feature") for one in names]
    return Plan(partners, own, keys, np.zeros(len(names), int), 0.0)


def mixed_labels(weights: Array, drawn: Plan) -> Array:
    """(n, classes) of weights (n, classes)."""
    own = drawn.own[:, None]
    mixed: Array = (own * weights + (1 - own) * weights[drawn.partners]).astype(np.float32)
    return mixed


def dropped(operation: FeatureDropout, strength: Array, drawn: Plan, axes: str, point: Point) -> Array:
    """(n, h, w) of 0 and what the kept cells are scaled with, from the cells' strength (n, h, w)."""
    if sorted(axes) != ["B", "C", "X", "Y"]:
        raise AugmentationError(f"{point.name} is no map: FeatureDropout drops cells of one")
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


def noise(drawn: Plan, shape: Sequence[int]) -> Array:
    """(n, *shape) standard normal numbers, those of each sample its own."""
    generators = (np.random.Generator(np.random.Philox(key)) for key in drawn.keys)
    return np.stack([each.standard_normal(tuple(shape)) for each in generators])


def _checked_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise AugmentationError(f"{name}={value!r}: write a share between 0 and 1")
