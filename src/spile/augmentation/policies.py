"""What is done to an image where its map says so.

`operations` are those of a well-kept library: transforms of ``torchvision.transforms.v2``, of Kornia or
Albumentations for PyTorch, preprocessing layers of Keras for Keras; or functions on pixels, wrapped in
`Photometric`. An operation that moves pixels (a flip, a rotation) moves the whole image with its map and its
targets; any other changes the band it is named for and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from spile.augmentation.boxes import box_at, box_round
from spile.augmentation.samples import Sample
from spile.augmentation.thresholds import Absolute, Otsu, Quantile, Threshold
from spile.errors import AugmentationError

Array = npt.NDArray[Any]
Operations = Any
"""One operation, or several that follow each other; ``None`` for none."""
Fill = float | Literal["mean"]


class Changed(NamedTuple):
    """What became of a sample."""

    image: Any
    targets: Any
    in_place: bool = False
    """All that was seen is still seen, where it was: a map of this picture is one of the sample."""


@dataclass(frozen=True)
class Photometric:
    """Your own function from an image to one of the same shape and type, of which you say it moves no
    pixels.

    It gets (channels, height, width) in PyTorch and (height, width, channels) in Keras. Random numbers it
    takes from the framework are seeded for each sample in PyTorch; in Keras it must not draw any.
    """

    function: Callable[[Any], Any]


@dataclass(frozen=True)
class Policy(ABC):
    """What an augmenter does to a sample."""

    p: float = field(default=1.0, kw_only=True)
    """The chance that a sample is changed at all."""

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise AugmentationError(f"p={self.p!r}: write a chance from 0 to 1")

    @property
    def threshold(self) -> Threshold | None:
        """What splits the map, where something does."""
        found = getattr(self, "where", getattr(self, "split", None))
        return found if isinstance(found, Threshold) else None

    @abstractmethod
    def changed(self, sample: Sample) -> Changed:
        """The image and its targets afterwards."""


@dataclass(frozen=True)
class Inside(Policy):
    """Change the active region alone; with `soft` edges it fades out over one cell."""

    operations: Operations
    where: Threshold = field(default_factory=Otsu)
    soft: bool = field(default=True, kw_only=True)

    def changed(self, sample: Sample) -> Changed:
        """Changed inside."""
        active = sample.levels(self.where) == self.where.splits
        return _painted(sample, [("inside", self.operations, active)], self.soft)


@dataclass(frozen=True)
class Outside(Policy):
    """Change all but the active region."""

    operations: Operations
    where: Threshold = field(default_factory=Otsu)
    soft: bool = field(default=True, kw_only=True)

    def changed(self, sample: Sample) -> Changed:
        """Changed outside."""
        rest = sample.levels(self.where) < self.where.splits
        return _painted(sample, [("outside", self.operations, rest)], self.soft)


@dataclass(frozen=True)
class ByLevel(Policy):
    """Change each band of a map's levels in its own way; with one split there are ``low`` and ``high``.

    A low level is not background, and a high one not the object: the names say no more than they mean.
    """

    split: Threshold = field(default_factory=lambda: Quantile(0.5, 0.85))
    low: Operations = field(default=None, kw_only=True)
    mid: Operations = field(default=None, kw_only=True)
    high: Operations = field(default=None, kw_only=True)
    soft: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split.splits > 2:
            raise AugmentationError(
                f"split={self.split!r} makes {self.split.splits + 1} bands, and there are low, mid and high: "
                "write two numbers, e.g. Quantile(0.5, 0.85)"
            )
        if self.split.splits == 1 and self.mid is not None:
            raise AugmentationError(
                f"split={self.split!r} makes two bands, so there is no mid: write two numbers, e.g. "
                "Quantile(0.5, 0.85)"
            )

    def changed(self, sample: Sample) -> Changed:
        """Each band changed."""
        found = sample.levels(self.split)
        bands = [("low", self.low, 0), ("mid", self.mid, 1), ("high", self.high, self.split.splits)]
        if self.split.splits == 1:
            del bands[1]
        return _painted(sample, [(name, ops, found == level) for name, ops, level in bands], self.soft)


@dataclass(frozen=True)
class KeepSalient(Policy):
    """Change the whole image, then paste the active region of the original back in its place.

    Any operation will do, RandAugment too (KeepAugment, Gong et al. 2021, section 3.2).
    """

    operations: Operations
    where: Threshold = field(default_factory=lambda: Quantile(0.7))
    soft: bool = field(default=True, kw_only=True)

    def changed(self, sample: Sample) -> Changed:
        """Changed but for the active region."""
        if sample.targets is not None:
            raise AugmentationError(
                "KeepSalient may move all but the pasted region, so boxes, masks and keypoints cannot "
                "follow: use Inside, Outside or ByLevel, or pass no targets"
            )
        image = sample.image
        for number, operation in enumerate(_steps(sample, self.operations)):
            image = sample.canvas.repainted(operation, image, sample.key(f"keep/{number}"))
        active = sample.levels(self.where) == self.where.splits
        mask = sample.on_pixels(active, soft=self.soft)
        return Changed(sample.canvas.blended(image, sample.image, mask), None)


@dataclass(frozen=True)
class AttentionCrop(Policy):
    """Look closer: crop to the box round the active region and resize (WS-DAN, Hu et al. 2019, section 3.3).

    `margin` is added on every side, as a share of the box's.
    """

    where: Threshold = field(default_factory=lambda: Absolute(0.5))
    margin: float = field(default=0.1, kw_only=True)

    def changed(self, sample: Sample) -> Changed:
        """Cropped, its targets too."""
        active = sample.levels(self.where) == self.where.splits
        box = box_round(sample.on_pixels(active, soft=False) > 0.5, self.margin)
        targets = sample.targets
        if targets is not None:
            targets = sample.canvas.cropped_targets(targets, box, sample.size)
        return Changed(sample.canvas.cropped(sample.image, box, sample.size), targets)


@dataclass(frozen=True)
class AttentionDrop(Policy):
    """Look elsewhere: paint the active region over (WS-DAN, section 3.3)."""

    where: Threshold = field(default_factory=lambda: Absolute(0.5))
    fill: Fill = field(default="mean", kw_only=True)

    def changed(self, sample: Sample) -> Changed:
        """Without the active region."""
        active = sample.levels(self.where) == self.where.splits
        blank = sample.canvas.filled(sample.image, self.fill)
        mask = sample.on_pixels(active, soft=False)
        return Changed(sample.canvas.blended(sample.image, blank, mask), sample.targets)


@dataclass(frozen=True)
class TargetedCutout(Policy):
    """Paint over a box whose middle is drawn with the chance of the activation, or lies at its peak.

    Its area is drawn from `share`, of the picture; it lies wholly in it. Cutout (DeVries & Taylor 2017) is
    the same with a middle drawn anywhere.
    """

    share: tuple[float, float] = (0.05, 0.25)
    at: Literal["drawn", "peak"] = field(default="drawn", kw_only=True)
    fill: Fill = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_place(self.at)
        if len(self.share) != 2 or not 0 < self.share[0] <= self.share[1] < 1:
            raise AugmentationError(f"share={self.share!r}: write two shares of the picture, (0.05, 0.25)")

    def changed(self, sample: Sample) -> Changed:
        """With a box painted over."""
        share = sample.generator("cutout/share").uniform(*self.share)
        box = box_at(sample.centre(self.at, "cutout/centre"), share, sample.size, inside=True)
        blank = sample.canvas.filled(sample.image, self.fill)
        mask = box.mask(sample.size).astype(np.float32)
        return Changed(sample.canvas.blended(sample.image, blank, mask), sample.targets)


def checked_place(at: str) -> str:
    """`at` itself. Raises `AugmentationError` for a word that is no place."""
    if at not in ("drawn", "peak"):
        raise AugmentationError(f"at={at!r}: write 'drawn' or 'peak'")
    return at


def listed(operations: Operations) -> Sequence[Any]:
    """Operations one by one."""
    if operations is None:
        return ()
    return tuple(operations) if isinstance(operations, (list, tuple)) else (operations,)


def _steps(sample: Sample, operations: Operations) -> list[Any]:
    return [step for each in listed(operations) for step in sample.canvas.steps(each)]


def _painted(sample: Sample, bands: Sequence[tuple[str, Operations, Array]], soft: bool) -> Changed:
    """Every band changed by its operations, one after the other; what moves pixels moves everything."""
    image, targets, in_place = sample.image, sample.targets, True
    masks: Any = np.stack([sample.on_pixels(cells, soft=soft) for _, _, cells in bands])
    for band, (name, operations, _) in enumerate(bands):
        for number, operation in enumerate(_steps(sample, operations)):
            done = sample.canvas.operate(operation, image, masks, targets, sample.key(f"{name}/{number}"))
            if done.moved:
                image, masks, targets, in_place = done.image, done.masks, done.targets, False
            else:
                image = sample.canvas.blended(image, done.image, masks[band])
    return Changed(image, targets, in_place)
