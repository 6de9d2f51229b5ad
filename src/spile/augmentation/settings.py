"""What is asked of a guide, and what an augmenter gives: what both frameworks share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from spile.augmentation.centring import Centres
from spile.augmentation.geometry import Frame, Grid
from spile.augmentation.maps import Maps
from spile.augmentation.reductions import Reduce
from spile.errors import AugmentationError
from spile.preprocessing import ImagePreprocessing
from spile.resolution import Point

Given = tuple[float, float] | ImagePreprocessing | str | None
"""What the numbers of float images mean: a range such as ``(0, 1)``, the preprocessing that was applied to
them already, or ``"ready"`` where the guide takes them as they are. uint8 images are 0..255."""

_SLACK = 0.02
"""Of the declared range: interpolation overshoots a little."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GuideSettings:
    """What was asked for."""

    at: Any
    reduce: Reduce
    centres: Centres
    resolution: float
    """Sides of what the guide sees, as a share of the images' own."""
    given: Given
    preprocessing: ImagePreprocessing | None
    example: Any


class GuideLike(Protocol):
    """What gives maps for images."""

    @property
    def framework(self) -> str:
        """``torch`` or ``keras``."""
        ...

    @property
    def fingerprint(self) -> str:
        """Text that changes with whatever changes a map."""
        ...

    def fingerprint_in(self, run: str) -> str:
        """The same of a model in training, whose weights change: its layers and the run take their place."""
        ...

    @property
    def preprocessing(self) -> ImagePreprocessing | None:
        """What it does to pixels of 0..255."""
        ...

    def __call__(self, images: Any, labels: Any = None) -> Maps:
        """The maps of a batch."""
        ...


class BankLike(Protocol):
    """What has kept maps; see `spile.MapBank`."""

    def maps(self, ids: Sequence[str], frames: Sequence[Frame]) -> Maps:
        """Those of samples, for pictures that were cut out as the frames say."""
        ...


class Augmented(NamedTuple):
    """What an augmenter gives."""

    images: Any
    """Of the same shape and type as they were."""
    labels: Any
    """As they were, or after a mix (samples, classes) weights, float32 NumPy."""
    targets: Any
    """Boxes, masks and keypoints of each sample, moved along; ``None`` where there were none."""


@dataclass(frozen=True)
class Meaning:
    """How numbers of an image become pixels of 0..255: ``x * factor + shift``, a factor for each channel."""

    factor: tuple[float, ...]
    shift: tuple[float, ...]
    bgr: bool = False
    span: tuple[float, float] | None = None
    """The range that was declared."""

    @classmethod
    def of(cls, given: Given, default: tuple[float, float]) -> Meaning | None:
        """``None`` for images that are ready. Raises `AugmentationError` for what means nothing."""
        if given == "ready":
            return None
        if isinstance(given, ImagePreprocessing):
            factor = tuple(std / given.scale for std in given.std)
            return cls(factor, tuple(m / given.scale for m in given.mean), given.channel_order == "BGR")
        low, high = default if given is None else _range(given)
        factor = (255 / (high - low),)
        return cls(factor, (-low * factor[0],), span=(low, high))

    def check(self, least: float, largest: float) -> None:
        """Raise `AugmentationError` where a batch's numbers cannot be what was declared."""
        if self.span is None:
            return
        low, high = self.span
        slack = _SLACK * (high - low)
        outside = least < low - slack or largest > high + slack
        dark = (low, high) == (0, 255) and 0 < largest <= 1
        if outside or dark:
            raise AugmentationError(
                f"the images' numbers lie in {least:.3g}..{largest:.3g}, and the guide was told "
                f"{low:g}..{high:g}: write given=(0, 1), given=(0, 255), or given= with the "
                "spile.ImagePreprocessing that was applied to them"
            )


def _range(given: Any) -> tuple[float, float]:
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2 and given[0] < given[1]:
        return float(given[0]), float(given[1])
    raise AugmentationError(
        f"given={given!r}: write the range of the images' numbers, e.g. (0, 1) or (0, 255), 'ready' where "
        "the guide takes them as they are, or the spile.ImagePreprocessing that was applied to them"
    )


def fingerprint(asked: GuideSettings, address: str, weights: str) -> str:
    """The hash of all that determines a map; `weights` is text that stands for the model."""
    parts = {
        "weights": weights,
        "at": address,
        "reduce": asked.reduce,
        "centres": asked.centres,
        "resolution": asked.resolution,
        "preprocessing": asked.preprocessing and asked.preprocessing.to_json(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


FEWEST_CELLS = 4
"""A map with fewer has no parts to speak of."""


def seen_size(resolution: float, size: tuple[int, int]) -> tuple[int, int]:
    """What a guide sees of images of `size` (height, width)."""
    return max(1, round(size[0] * resolution)), max(1, round(size[1] * resolution))


def only_point(points: Sequence[Point], at: Any) -> Point:
    """The layer that a guide reads. Raises `AugmentationError` where there are several."""
    if len(points) != 1:
        names = ", ".join(point.name for point in points[:8])
        raise AugmentationError(f"a guide reads one layer, and at={at!r} names {names}")
    return points[0]


def checked_grid(grid: Grid, point: Point, seen: tuple[int, int]) -> Grid:
    """`grid` itself. Raises `AugmentationError` where it has too few cells."""
    if grid.shape[0] * grid.shape[1] < FEWEST_CELLS:
        raise AugmentationError(
            f"{point.name} has {grid.shape[0]} x {grid.shape[1]} cells for images of "
            f"{seen[0]} x {seen[1]} pixels: guide by an earlier layer, or by larger images"
        )
    return grid


def watched_point(point: Point, settings: GuideSettings) -> Point:
    """The layer whose activations a training pass gives away. Raises `AugmentationError` where none are."""
    if settings.reduce in ("gradcam", "rollout"):
        raise AugmentationError(
            f"reduce={settings.reduce!r} needs a pass of its own: fill the bank from data, or write "
            "reduce='l2', which a training pass gives away"
        )
    if point.side != "out" or point.item is not None or not point.only_call:
        raise AugmentationError(
            f"kept maps are of the output of a layer that runs once, not of {point.name}: name one such layer"
        )
    return point


def needed_preprocessing(settings: GuideSettings, reference: str) -> ImagePreprocessing:
    """A guide's own. Raises `AugmentationError` where it is not known; `reference` is one that brings it."""
    if settings.preprocessing is None:
        raise AugmentationError(
            "the guide's preprocessing is not known, as it is a bare model object: write preprocessing="
            f"spile.ImagePreprocessing(...), give a reference such as {reference!r}, or given='ready'"
        )
    return settings.preprocessing
