"""Which axis of an activation is what.

Measured where the model allows it: the dry pass is repeated with one sample more and with larger inputs.
What grows with the samples is the batch axis, what grows with the image or text is space or tokens. For
models of one fixed input size the last layer that fixes the number of channels tells where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from spile.observation import Call, Observation

Shape = tuple[int, ...]

_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_COUNTS = ("out_channels", "num_features", "num_channels", "out_features", "embedding_dim", "embed_dim")
_SPACE = {1: "T", 2: "YX", 3: "ZYX"}
_MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Channels:
    """Where a layer of a known kind puts its channels."""

    first: bool
    count: int | None
    ndim: int


def batch_axis(two: Shape, three: Shape | None) -> int | None:
    """The axis that had two and then three samples; without a second pass, the first one if it has two."""
    if three is None:
        return 0 if two and two[0] == 2 else None
    if len(two) != len(three):
        return None
    axes = [i for i, sizes in enumerate(zip(two, three, strict=True)) if sizes == (2, 3)]
    return axes[0] if len(axes) == 1 else None


def layout(
    shape: Shape, batch: int, *, larger: Shape | None, channels: Channels | None, image: Shape | None
) -> str:
    """Name every axis; see `spile.pool` for the letters.

    `larger` is the shape for a larger input, if the model takes one. `channels` is the last layer before it
    that fixes the channels, `image` the height and width of the model's input.
    """
    if len(shape) <= 2:
        return _named(len(shape), batch, "C")
    measured = _measured(shape, batch, larger)
    return measured if measured is not None else _told(shape, batch, channels, image)


def channels_of(module: nn.Module, call: Call) -> Channels | None:
    """Where this layer puts the channels of its output; ``None`` for kinds that do not fix them."""
    if not isinstance(module, _FIRST + _LAST) or not call.outputs:
        return None
    shape, first = call.outputs[0].shape, isinstance(module, _FIRST)
    count = _count(module)
    if len(shape) == 4 and ("2d" in type(module).__name__ or shape[1] == count != shape[3]):
        first = True  # a LayerNorm2d, by whatever name, moves the channels there and back
    return Channels(first, count, len(shape))


def prefix_tokens(
    tokens: int,
    larger: int | None,
    *,
    image: Shape | None,
    larger_image: Shape | None,
    grid: int | None,
    said: int | None,
) -> int | None:
    """How many of the `tokens` stand before the patches; ``None`` where it cannot be told.

    Patches grow with the area of the image and prefix tokens do not. For a fixed size, a layer that holds as
    many tokens as the patch `grid` has no prefix, and any other has as many as the model `said`.
    """
    if larger is not None and image is not None and larger_image is not None:
        area, larger_area = image[0] * image[1], larger_image[0] * larger_image[1]
        count, rest = divmod(tokens * larger_area - larger * area, larger_area - area)
        if rest == 0 and 0 <= count <= _MOST_PREFIX_TOKENS:
            return count
    return 0 if tokens == grid else said


def patch_grid(observation: Observation, first_block: Call) -> int | None:
    """The number of patches: the cells of the last convolution before the blocks."""
    for call in reversed([c for c in observation.calls if c.end < first_block.start]):
        shape = call.outputs[0].shape if call.outputs else ()
        if len(shape) == 4 and "Conv2d" in observation.layers[call.path].types:
            return shape[2] * shape[3]
    return None


def model_prefix(model: nn.Module, tokens: int | None, grid: int | None) -> int | None:
    """Prefix tokens of a model's blocks: as it says, or what the last block has beyond the patch grid."""
    said: Any = getattr(model, "num_prefix_tokens", None)
    if isinstance(said, int):
        return said
    if tokens is None or grid is None:
        return None
    return tokens - grid if 0 <= tokens - grid <= _MOST_PREFIX_TOKENS else None


def _measured(shape: Shape, batch: int, larger: Shape | None) -> str | None:
    """Name the axes by what grew with the input; ``None`` where that does not settle it."""
    if larger is None or len(larger) != len(shape):
        return None
    grew = [i for i in range(len(shape)) if i != batch and shape[i] != larger[i]]
    kept = [i for i in range(len(shape)) if i != batch and i not in grew]
    if not grew:
        return None
    if len(grew) not in _SPACE or len(kept) != 1:
        return _named(len(shape), batch, "?" * (len(shape) - 1))
    named = dict(zip(grew, _SPACE[len(grew)], strict=True)) | {kept[0]: "C", batch: "B"}
    return "".join(named[i] for i in range(len(shape)))


def _told(shape: Shape, batch: int, channels: Channels | None, image: Shape | None) -> str:
    """Name the axes by the last layer that fixes the channels."""
    unknown = _named(len(shape), batch, "?" * (len(shape) - 1))
    space = _SPACE.get(len(shape) - 2)
    if space is None:
        return unknown
    first = _channels_first(shape, batch, channels)
    if first is None:
        return unknown
    if len(space) == 2 and not (channels and channels.first) and not _is_picture(shape, batch, first, image):
        return unknown
    return _named(len(shape), batch, "C" + space if first else space + "C")


def _channels_first(shape: Shape, batch: int, channels: Channels | None) -> bool | None:
    if channels is None:
        return len(shape) > 3
    axes = [i for i in range(len(shape)) if i != batch]
    fitting = [i for i in axes if shape[i] == channels.count]
    same_axes = channels.ndim == len(shape)
    if same_axes and (axes[0] if channels.first else axes[-1]) in fitting:
        return channels.first
    if fitting == [axes[0]] or fitting == [axes[-1]]:
        return fitting == [axes[0]]
    if same_axes:
        return channels.first
    return False if len(shape) == 3 else None  # flattened to three axes, a map has become tokens


def _is_picture(shape: Shape, batch: int, first: bool, image: Shape | None) -> bool:
    """Whether two axes can be those of the image: attention heads and tokens do not keep its proportions."""
    if image is None:
        return True
    rest = [size for i, size in enumerate(shape) if i != batch]
    height, width = rest[1:] if first else rest[:2]
    return abs(height * image[1] - width * image[0]) < max(image)


def _count(module: nn.Module) -> int | None:
    for name in _COUNTS:
        count = getattr(module, name, None)
        if isinstance(count, int):
            return count
    normalized: Any = getattr(module, "normalized_shape", None)
    return int(normalized[-1]) if normalized else None


def _named(ndim: int, batch: int, rest: str) -> str:
    letters = iter(rest)
    return "".join("B" if i == batch else next(letters) for i in range(ndim))
