"""How much auxiliary losses count: schedules over the progress of training. Pure functions of a number in
0..1.

A schedule sees the share of training that is done, never a step count, so that gradient accumulation, another
batch size or resuming cannot shift it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spile.errors import SupervisionError

Share = Literal["even", "halving"] | Sequence[float]
"""Of the total: the same for every head, halved from head to head the further it is from the output (1/2,
1/4, ..., as in nnU-Net, Isensee et al. 2021), or numbers, one a head, the shallowest first."""


@dataclass(frozen=True)
class Schedule(ABC):
    """The auxiliary weights as a function of progress. `total` is their sum at the start."""

    total: float = 0.4
    share: Share = field(default="even", kw_only=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.total) and self.total >= 0):
            raise SupervisionError(
                f"total={self.total!r} is no weight: write a number of 0 or more, e.g. "
                f"{type(self).__name__}(0.4)"
            )
        if isinstance(self.share, str) and self.share not in ("even", "halving"):
            raise SupervisionError(
                f"unknown share {self.share!r}: write 'even', 'halving', or one number a head, e.g. [1, 2, 4]"
            )
        if not isinstance(self.share, str):
            object.__setattr__(self, "share", tuple(self.share))

    def weights(self, progress: float, heads: int) -> tuple[float, ...]:
        """One weight a head, the shallowest first, when the share `progress` of training is done."""
        progress = checked(progress)
        shares = shares_of(self.share, heads)
        return tuple(
            self.total * share * self.factor(progress, depth, heads) for depth, share in enumerate(shares)
        )

    @abstractmethod
    def factor(self, progress: float, depth: int, heads: int) -> float:
        """What the weight of the head at position `depth` is multiplied with."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same from start to end."""

    def factor(self, progress: float, depth: int, heads: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class _Ending(Schedule):
    end: float = field(default=0.7, kw_only=True)
    """Share of training after which the weights are 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.end <= 1:
            raise SupervisionError(
                f"end={self.end!r} is no share of training: write a number above 0 and up to 1, e.g. end=0.7"
            )


@dataclass(frozen=True)
class LinearDecay(_Ending):
    """Straight down to 0 at `end`."""

    def factor(self, progress: float, depth: int, heads: int) -> float:
        """From 1 to 0."""
        return max(0.0, 1.0 - progress / self.end)


@dataclass(frozen=True)
class CosineDecay(_Ending):
    """Half a cosine down to 0 at `end`. The default."""

    def factor(self, progress: float, depth: int, heads: int) -> float:
        """From 1 to 0."""
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress / self.end)))


@dataclass(frozen=True)
class DepthRamp(_Ending):
    """Straight down to 0, the shallow heads first: head i of n (from 1) ends at ``end * i / n``."""

    def factor(self, progress: float, depth: int, heads: int) -> float:
        """From 1 to 0."""
        return max(0.0, 1.0 - progress * heads / (self.end * (depth + 1)))


@dataclass(frozen=True)
class Uncertainty:
    """Learnt: every loss L, the main one too, counts as ``exp(-s) L + s`` with a trained scalar s.

    Kendall, Gal & Cipolla 2018, section 3, with s the log of the squared noise and the factor 1/2 left out.
    The scalars belong to the heads, so they must be in the optimiser.
    """


@dataclass(frozen=True)
class Aggregated:
    """One Jacobian aggregator of TorchJD instead of a weighted sum (PyTorch only): ``sup.backward(loss)``.

    `aggregator` is an instance such as ``torchjd.aggregation.UPGrad()``.
    """

    aggregator: Any


Weighting = Schedule | Uncertainty | Aggregated


def weighting_of(weight: Weighting | float) -> Weighting:
    """A number is that much in total, from start to end."""
    if isinstance(weight, Schedule | Uncertainty | Aggregated):
        return weight
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise SupervisionError(
            f"weight={weight!r} is no weighting: write a number, Constant, LinearDecay, CosineDecay, "
            "DepthRamp, "
            "Uncertainty or Aggregated (from spile.supervision)"
        )
    return Constant(float(weight))


def shares_of(share: Share, heads: int) -> tuple[float, ...]:
    """What each head gets of the total; they sum to 1."""
    if heads < 1:
        return ()
    if share == "even":
        raw: tuple[float, ...] = (1.0,) * heads
    elif share == "halving":
        raw = tuple(0.5 ** (heads - depth) for depth in range(heads))
    else:
        raw = tuple(float(number) for number in share)
    if len(raw) != heads or not all(number >= 0 for number in raw) or not sum(raw) > 0:
        raise SupervisionError(
            f"share={share!r} does not fit {heads} heads: write {heads} numbers of 0 or more, the "
            "shallowest head "
            "first, not all 0"
        )
    return tuple(number / sum(raw) for number in raw)


def checked(progress: float) -> float:
    """`progress` itself. Raises `SupervisionError` where it is no share of training."""
    if not 0 <= progress <= 1:
        raise SupervisionError(
            f"progress={progress!r} is not in 0..1: pass the share of training that is done, step / "
            "total_steps"
        )
    return float(progress)
