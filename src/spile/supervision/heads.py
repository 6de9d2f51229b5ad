"""Auxiliary heads: what each one consists of at a given point. Pure; the frameworks build the operations.

Their norms work on single samples, so that a head is right at batch size 1, and they size themselves by the
network they hang on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from spile.errors import SupervisionError, nearest
from spile.supervision.operations import (
    Activation,
    Conv,
    Dense,
    Features,
    GroupNorm,
    LayerNorm,
    Operation,
    Pooling,
    parameters,
)

SHARE = 0.1
"""Of the base's parameters, which a head stays under."""
FREE = 1_000_000
"""Parameters that a head may have whatever the base."""
_WIDTHS = 8
"""Widths are multiples of it, and so many groups have the norms."""
_WIDEST = 512
"""Of the head `bottleneck`, unless asked for."""


@dataclass(frozen=True)
class HeadSpec(ABC):
    """A kind of head."""

    @abstractmethod
    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """What it consists of where it reads `features`, in a network that ends with `final`."""

    def __str__(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Linear(HeadSpec):
    """Pool, then one linear layer."""

    pool: str = "auto"

    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """Pool and linear layer."""
        return (
            Pooling(_pool(self.pool, features)),
            Dense(_pooled_width(self.pool, features, head=self), outputs),
        )


@dataclass(frozen=True)
class MLP(HeadSpec):
    """Pool, linear layer, norm, GELU, linear layer. `width` is by default what fits, up to that of the
    features."""

    width: int | None = None
    pool: str = "auto"

    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """Pool and two linear layers."""
        read = _pooled_width(self.pool, features, head=self)

        def of_width(width: int) -> tuple[Operation, ...]:
            return (
                Pooling(_pool(self.pool, features)),
                Dense(read, width),
                LayerNorm(width),
                Activation("gelu"),
                Dense(width, outputs),
            )

        return _fitting(of_width, self.width, most=features.channels, base_params=base_params)


@dataclass(frozen=True)
class Token(HeadSpec):
    """Norm over the channels, pool over the tokens, linear layer; as the classifiers of transformers."""

    pool: str = "auto"

    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """Norm, pool and linear layer. ``auto`` is ``cls`` where there is a class token, else ``mean``."""
        if features.kind != "tokens":
            raise SupervisionError(
                f"the head 'token' reads tokens, and here is a {features.kind}: use 'linear' or 'bottleneck'"
            )
        pool = self.pool if self.pool != "auto" else "cls" if features.prefix_tokens else "mean"
        read = _pooled_width(pool, features, head=self)
        return LayerNorm(features.channels), Pooling(pool), Dense(read, outputs)


@dataclass(frozen=True)
class Bottleneck(HeadSpec):
    """Halve the map to the network's final stride with separable convolutions, pool, linear layer.

    The auxiliary classifiers of Be Your Own Teacher (Zhang et al. 2019, section 3), with group norm: the
    channels go in even steps from those of the features to `width`, so that a head on an early map stays
    cheap. `width` is by default what fits, up to that of the final features and 512. On tokens it is the head
    `token`, on vectors `linear`.
    """

    width: int | None = None

    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """Convolutions, pool and linear layer."""
        if features.kind != "map":
            other = Token() if features.kind == "tokens" else Linear()
            return other.operations(features, outputs=outputs, final=final, base_params=base_params)
        halvings = _halvings(features, final)

        def of_width(width: int) -> tuple[Operation, ...]:
            widths = _steps(features.channels, width, max(halvings, 1))
            convolutions: list[Operation] = []
            for before, after in pairwise(widths):
                if halvings:
                    convolutions.append(Conv(before, before, kernel=3, stride=2, groups=before))
                convolutions += [Conv(before, after), GroupNorm(after, _groups(after)), Activation()]
            return (*convolutions, Pooling("avg"), Dense(width, outputs))

        return _fitting(of_width, self.width, most=min(final.channels, _WIDEST), base_params=base_params)


@dataclass(frozen=True)
class Pixels(HeadSpec):
    """A 1x1 convolution: one score a class and cell, for segmentation. Called ``"dense"``."""

    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """One convolution."""
        if features.kind != "map":
            raise SupervisionError(f"the head 'dense' reads maps, and here is a {features.kind}: tap a map")
        return (Conv(features.channels, outputs, bias=True),)

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True)
class Flatten(HeadSpec):
    """Every number of the features into one linear layer. On early maps it is far too large, and is
    refused."""

    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """A linear layer."""
        return Pooling("flatten"), Dense(features.numbers, outputs)


@dataclass(frozen=True)
class Kept(HeadSpec):
    """A head as it was, whatever the network: how heads of a run are built again."""

    built: tuple[Operation, ...]

    def operations(
        self, features: Features, *, outputs: int, final: Features, base_params: int
    ) -> tuple[Operation, ...]:
        """What it consisted of."""
        return self.built


NAMES: Mapping[str, HeadSpec] = {
    "linear": Linear(),
    "bottleneck": Bottleneck(),
    "mlp": MLP(),
    "token": Token(),
    "dense": Pixels(),
    "flatten": Flatten(),
}
HeadLike = str | HeadSpec | Callable[[int], Any] | Any
"""A name, a spec, the user's own module, or a function from the number of channels to one."""


def spec_of(head: HeadLike) -> HeadSpec | Any:
    """The spec that a name stands for; anything but text is given back."""
    if not isinstance(head, str):
        return head
    if head not in NAMES:
        near = nearest(head, NAMES, n=1)[0]
        raise SupervisionError(
            f"unknown head {head!r}: did you mean {near!r}? Heads: {', '.join(NAMES)}, or your own module"
        )
    return NAMES[head]


def heads_of(heads: HeadLike | Mapping[str, HeadLike], names: Sequence[str]) -> dict[str, HeadSpec | Any]:
    """The head of every address in `names`: one for all, or by address, where ``"*"`` is any other.

    An address without one has the head `bottleneck`. Raises `SupervisionError` for what is no address of a
    head.
    """
    given = heads if isinstance(heads, Mapping) else {"*": heads}
    unknown = [name for name in given if name not in (*names, "*")]
    if unknown:
        near = nearest(str(unknown[0]), names, n=1)[0]
        raise SupervisionError(
            f"head= names {unknown[0]!r}, where no head is: did you mean {near!r}? Heads: {', '.join(names)}"
        )
    return {name: spec_of(given.get(name, given.get("*", "bottleneck"))) for name in names}


def check_size(params: int, *, place: str, head: object, base_params: int, allowed: bool) -> None:
    """Raise `SupervisionError` for a head with over a tenth of the base's parameters and over a million
    weights."""
    if allowed or params <= max(FREE, SHARE * base_params):
        return
    raise SupervisionError(
        f"the head {str(head)!r} at {place!r} has {params:,} parameters, "
        f"{params / max(base_params, 1):.0%} of the "
        f"network's {base_params:,}: use head='bottleneck' or 'linear', tap a deeper layer, or allow "
        "it by name, "
        f"allow_large=[{place!r}]"
    )


def _fitting(
    of_width: Callable[[int], tuple[Operation, ...]], width: int | None, *, most: int, base_params: int
) -> tuple[Operation, ...]:
    """The operations at `width`, or at the largest that keeps them under their share of the base."""
    if width is not None:
        if width < 1:
            raise SupervisionError(f"width={width!r} of a head: write a number of channels, 1 or more")
        return of_width(width)
    narrowest = 2 * _WIDTHS
    wanted = max(narrowest, most - most % _WIDTHS)
    while wanted > narrowest and parameters(of_width(wanted)) > SHARE * base_params:
        wanted -= _WIDTHS
    return of_width(wanted)


def _groups(width: int) -> int:
    """Groups of two channels at least: a group of one number has no variance, at batch 1 and a map of 1x1."""
    return next((n for n in (_WIDTHS, 4, 2) if width % n == 0 and width >= 2 * n), 1)


def _steps(first: int, last: int, steps: int) -> list[int]:
    """From `first` to `last` in `steps` equal ratios; what lies between is rounded to multiples of eight."""
    between = (first * (last / first) ** (step / steps) for step in range(1, steps))
    return [first, *(max(_WIDTHS, _WIDTHS * round(width / _WIDTHS)) for width in between), last]


def _halvings(features: Features, final: Features) -> int:
    if final.kind != "map" or len(features.size) != len(final.size):
        return 0
    ratio = max(a / b for a, b in zip(features.size, final.size, strict=True))
    return max(0, round(math.log2(ratio)))


def _pool(pool: str, features: Features) -> str:
    if pool != "auto":
        return pool
    return {"map": "avg", "tokens": "mean", "vector": "flatten"}[features.kind]


def _pooled_width(pool: str, features: Features, *, head: HeadSpec) -> int:
    """How many numbers a sample a pool leaves."""
    name = _pool(pool, features)
    if features.kind == "vector":
        return features.channels
    if name == "flatten":
        return features.numbers
    if name.startswith("grid:"):
        return features.channels * int(name.removeprefix("grid:")) ** 2
    if name in ("none", "auto"):
        raise SupervisionError(f"the head {str(head)!r} needs a pool that leaves a vector, not {name!r}")
    return features.channels * (2 if name == "cls+mean" else 1)
