"""What a head consists of: a list of plain operations that both frameworks build alike. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal, get_args

from spile.errors import SupervisionError
from spile.resolution import Point

EPSILON = 1e-5
"""What norms add to a variance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What a head reads at its point, without the axis of the samples."""

    kind: Literal["map", "tokens", "vector"]
    channels: int
    size: tuple[int, ...] = ()
    """Height and width of a map; the number of tokens; empty for a vector."""
    prefix_tokens: int = 0

    @classmethod
    def of(cls, point: Point, *, prefix_tokens: int = 0) -> Features | None:
        """What there is at `point`; ``None`` where it is neither a map, nor tokens, nor a vector."""
        return cls.laid_out(point.layout, point.shape, prefix_tokens=prefix_tokens)

    @classmethod
    def laid_out(
        cls, layout: str | None, shape: tuple[int, ...], *, prefix_tokens: int = 0
    ) -> Features | None:
        """The same from a layout and the shape of one sample in the order of its axes."""
        axes = (layout or "").replace("B", "")
        kinds: dict[str, Literal["map", "tokens", "vector"]] = {"CXY": "map", "CT": "tokens", "C": "vector"}
        kind = kinds.get("".join(sorted(axes)))
        if kind is None or "B" not in (layout or ""):
            return None
        lengths = dict(zip(axes, shape, strict=True))
        size = tuple(lengths[axis] for axis in ("Y", "X", "T") if axis in lengths)
        return cls(kind=kind, channels=lengths["C"], size=size, prefix_tokens=prefix_tokens)

    @property
    def numbers(self) -> int:
        """How many numbers a sample."""
        return self.channels * prod(self.size)


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution, padded with ``kernel // 2`` zeros on either side.

    Stride 1 keeps the size, stride 2 halves it, rounded up.
    """

    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def params(self) -> int:
        """Weights."""
        return self.inputs // self.groups * self.outputs * self.kernel**2 + self.outputs * self.bias


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Over groups of channels of each sample: right at any batch size, one included."""

    channels: int
    groups: int

    @property
    def params(self) -> int:
        """Scale and shift."""
        return 2 * self.channels


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Over the channels of every token, or of a vector."""

    channels: int

    @property
    def params(self) -> int:
        """Scale and shift."""
        return 2 * self.channels


@dataclass(frozen=True, slots=True)
class Activation:
    """``relu`` or ``gelu``."""

    name: Literal["relu", "gelu"] = "relu"
    params = 0


@dataclass(frozen=True, slots=True)
class Pooling:
    """One of `spile.pool`: ``avg``, ``mean``, ``cls``, ``cls+mean``, ``flatten``, …"""

    name: str
    params = 0


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer with bias. The last one of a head gives its outputs."""

    inputs: int
    outputs: int

    @property
    def params(self) -> int:
        """Weights and biases."""
        return (self.inputs + 1) * self.outputs


Operation = Conv | GroupNorm | LayerNorm | Activation | Pooling | Dense


def parameters(operations: tuple[Operation, ...]) -> int:
    """Weights of a head."""
    return sum(operation.params for operation in operations)


def macs(operations: tuple[Operation, ...], features: Features) -> int:
    """Multiply-accumulates of a head for one sample, of convolutions and linear layers."""
    size, total = features.size, 0
    for operation in operations:
        if isinstance(operation, Conv):
            size = tuple(-(-length // operation.stride) for length in size)
            weights = operation.inputs // operation.groups * operation.outputs * operation.kernel**2
            total += weights * prod(size)
        elif isinstance(operation, Dense):
            total += operation.inputs * operation.outputs
    return total


def described(operations: Sequence[Operation]) -> list[dict[str, Any]]:
    """As plain data."""
    return [{"kind": type(each).__name__, **asdict(each)} for each in operations]


def operations_of(described: Sequence[Mapping[str, Any]]) -> tuple[Operation, ...]:
    """What `described` made plain. Raises `SupervisionError` for what no operation is."""
    kinds = {kind.__name__: kind for kind in get_args(Operation)}
    try:
        return tuple(
            kinds[each["kind"]](**{k: v for k, v in each.items() if k != "kind"}) for each in described
        )
    except (KeyError, TypeError) as error:
        raise SupervisionError(f"{described!r} are no operations of a head ({error})") from error
