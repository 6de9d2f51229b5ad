"""Two images in one, the parts chosen by their maps, the labels weighted by what is really there."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile.augmentation.boxes import Box, box_at, cells_on_pixels, mass_in
from spile.augmentation.policies import Changed, Policy, checked_place
from spile.augmentation.samples import Sample
from spile.augmentation.thresholds import Quantile
from spile.errors import AugmentationError

Array = npt.NDArray[Any]
Weights = tuple[float, float]
"""How much a sample's own label counts, and its partner's."""


@dataclass(frozen=True)
class Mix(Policy):
    """Takes a part of a partner's image; each sample of a batch is partner once."""

    def changed(self, sample: Sample) -> Changed:
        """A mix needs a partner."""
        raise AugmentationError(f"{type(self).__name__} needs a partner")

    @abstractmethod
    def mixed(self, sample: Sample, partner: Sample) -> tuple[Any, Weights]:
        """The image, and what its labels count."""


def pasted(sample: Sample, partner: Sample, mask: Array) -> tuple[Any, Weights]:
    """The partner's pixels where `mask` (height, width) is true; labels by the exact share of pixels."""
    share = float(mask.mean(dtype=np.float64))
    image = sample.canvas.blended(sample.image, partner.image, mask.astype(np.float32))
    return image, (1 - share, share)


@dataclass(frozen=True)
class MapCutMix(Mix):
    """CutMix whose patch holds what the partner's map names; it stays in its place.

    The patch's middle is drawn with the chance of the activation, its area is 1 - λ of the picture with λ
    from Beta(alpha, alpha). Labels count by their exact share of pixels, or with ``labels="mass"`` by the
    share of each map's activation that is seen, normalised to sum to 1.
    """

    alpha: float = 1.0
    at: Literal["drawn", "peak"] = field(default="drawn", kw_only=True)
    labels: Literal["area", "mass"] = field(default="area", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_place(self.at)
        checked_alpha(self.alpha)
        if self.labels not in ("area", "mass"):
            raise AugmentationError(f"labels={self.labels!r}: write 'area' or 'mass'")

    def mixed(self, sample: Sample, partner: Sample) -> tuple[Any, Weights]:
        """A box of the partner."""
        generator = sample.generator("mix")
        share = 1 - generator.beta(self.alpha, self.alpha)
        centre = partner.centre(self.at, f"mix/centre/{sample.id}")
        box = box_at(centre, share, sample.size, inside=True)
        image, weights = pasted(sample, partner, box.mask(sample.size))
        if self.labels == "mass":
            seen = 1 - mass_in(box, sample.pixels), mass_in(box, partner.pixels)
            total = sum(seen)
            weights = (seen[0] / total, seen[1] / total) if total > 0 else weights
        return image, weights


@dataclass(frozen=True)
class SaliencyMix(Mix):
    """CutMix round the partner's peak, cut at the border as in CutMix (Uddin et al. 2021, section 3.2)."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_alpha(self.alpha)

    def mixed(self, sample: Sample, partner: Sample) -> tuple[Any, Weights]:
        """A box of the partner."""
        share = 1 - sample.generator("mix").beta(self.alpha, self.alpha)
        box = box_at(partner.centre("peak", "mix"), share, sample.size, inside=False)
        return pasted(sample, partner, box.mask(sample.size))


@dataclass(frozen=True)
class AttentiveCutMix(Mix):
    """The partner's most active cells in their places (Walawalkar et al. 2020: 6 cells of 7 x 7)."""

    share: float = 6 / 49

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise AugmentationError(f"share={self.share!r}: write a share of the picture, e.g. 6 / 49")

    def mixed(self, sample: Sample, partner: Sample) -> tuple[Any, Weights]:
        """Cells of the partner."""
        active = partner.levels(Quantile(1 - self.share, bounds=(1e-6, 1.0))) == 1
        return pasted(sample, partner, cells_on_pixels(active, partner.grid, partner.frame))


@dataclass(frozen=True)
class SnapMix(Mix):
    """A box of the partner, resized into another box; labels by semantic content (Huang et al. 2021).

    Both boxes' areas come from Beta(alpha, alpha) of their own. A label counts as much as its map's
    activation that is seen (equations 3 and 4): the two do not sum to 1, and are not made to.
    """

    alpha: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_alpha(self.alpha)

    def mixed(self, sample: Sample, partner: Sample) -> tuple[Any, Weights]:
        """A box of the partner, asymmetric."""
        generator = sample.generator("mix")
        own, other = (self._box(generator, sample.size) for _ in range(2))
        patch = sample.canvas.cropped(partner.image, other, (own.bottom - own.top, own.right - own.left))
        image = sample.canvas.placed_at(sample.image, patch, own)
        return image, (1 - mass_in(own, sample.pixels), mass_in(other, partner.pixels))

    def _box(self, generator: np.random.Generator, size: tuple[int, int]) -> Box:
        share = 1 - generator.beta(self.alpha, self.alpha)
        centre = (generator.uniform(0, size[0] - 1), generator.uniform(0, size[1] - 1))
        return box_at(centre, share, size, inside=False)


def checked_alpha(alpha: float) -> float:
    """`alpha` itself. Raises `AugmentationError` where it is no parameter of a Beta distribution."""
    if not 0 < alpha < float("inf"):
        raise AugmentationError(f"alpha={alpha!r}: write a number above 0, e.g. alpha=1.0")
    return alpha
