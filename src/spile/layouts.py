"""Which axis of an activation is what.

Measured where the model allows it: the dry pass is repeated with one sample more and with larger inputs.
What grows with the samples is the batch axis, what grows with the image or text is space or tokens. For
models of one fixed input size the last layer that fixes the number of channels tells where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from spile import structure
from spile.address import Side
from spile.observation import Call, Item, Observation

Shape = tuple[int, ...]
Place = tuple[str, int, Side, str | None]
"""Which tensor of a pass: path, call, side, item."""

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
        types = observation.layers[call.path].types
        if call.outputs and any("conv" in name.lower() for name in types):
            size = height_and_width(call.outputs[0])
            if size is not None:
                return size[0] * size[1]
    return None


def settled(
    calls: Sequence[Call],
    more: Mapping[Place, Item],
    larger: Mapping[Place, Item],
    channels_of: Callable[[Call], Channels | None],
    *,
    channels_first: bool,
) -> tuple[Call, ...]:
    """The calls of a dry pass with the layout of every tensor.

    `more` are the tensors of a pass with three samples, `larger` those of one with larger inputs; empty where
    the model takes none. `channels_of` says where a layer puts its channels, `channels_first` where the
    model's image has them.
    """
    image = _image_of(calls, channels_first)
    known = [(call.end, channels_of(call)) for call in calls]

    def side_of(call: Call, side: Side) -> tuple[Item, ...]:
        until = call.end if side == "out" else call.start
        channels = next((c for end, c in reversed(known) if c is not None and end <= until), None)
        if channels is None:
            channels = Channels(channels_first, None, 4)
        return tuple(
            with_layout(item, (call.path, call.index, side, item.key), channels) for item in call.items(side)
        )

    def with_layout(item: Item, place: Place, channels: Channels) -> Item:
        batch = batch_axis(item.shape, more[place].shape if place in more else None)
        if batch is None:
            return item
        wide = larger[place].shape if place in larger else None
        ndim = len(item.shape)
        told = channels or Channels(channels_first and ndim > 3, None, ndim)
        return replace(item, layout=layout(item.shape, batch, larger=wide, channels=told, image=image))

    return tuple(replace(c, inputs=side_of(c, "in"), outputs=side_of(c, "out")) for c in calls)


def with_prefix_tokens(
    observation: Observation, larger: Mapping[Place, Item], *, said: int | None
) -> Observation:
    """The observation with the class and register tokens of every sequence of patches.

    `said` is how many the model itself declares, if it does.
    """
    if observation.text:
        return replace(observation, prefix_tokens=0)
    blocks = structure.blocks(observation)
    first, last = (
        (observation.by_path[blocks[0]][0], observation.by_path[blocks[-1]][-1]) if blocks else (None, None)
    )
    grid = patch_grid(observation, first) if first else None
    if said is None and last and last.outputs:
        said = _beyond(_tokens(last.outputs[0]), grid)
    image = next(filter(None, map(height_and_width, observation.root.inputs)), None)
    places: list[tuple[Item, Place]] = [(item, ("", 0, "in", item.key)) for item in observation.root.inputs]
    wide_root = [replace(item, shape=larger[place].shape) for item, place in places if place in larger]
    larger_image = next(filter(None, map(height_and_width, wide_root)), None)

    def told(call: Call, side: Side, item: Item) -> Item:
        tokens, wide = _tokens(item), larger.get((call.path, call.index, side, item.key))
        if tokens is None or item.layout is None:
            return item
        count = prefix_tokens(
            tokens,
            wide.shape[item.layout.index("T")] if wide and len(wide.shape) == len(item.shape) else None,
            image=image,
            larger_image=larger_image,
            grid=grid,
            said=said,
        )
        return replace(item, prefix_tokens=count)

    calls = tuple(
        replace(
            call,
            inputs=tuple(told(call, "in", item) for item in call.inputs),
            outputs=tuple(told(call, "out", item) for item in call.outputs),
        )
        for call in observation.calls
    )
    ends = [c.outputs[0].prefix_tokens for c in calls if last and c.end == last.end and c.outputs]
    return replace(observation, calls=calls, prefix_tokens=ends[0] if ends else said)


def height_and_width(item: Item) -> tuple[int, int] | None:
    """Of a map or an image; ``None`` for anything else."""
    if item.layout is None or not {"Y", "X"} <= set(item.layout):
        return None
    return item.shape[item.layout.index("Y")], item.shape[item.layout.index("X")]


def _image_of(calls: Sequence[Call], channels_first: bool) -> tuple[int, ...] | None:
    """Height and width of the image that goes into the model, the last call to be left."""
    shape = next((item.shape for item in calls[-1].inputs if len(item.shape) == 4), None)
    return None if shape is None else shape[2:] if channels_first else shape[1:3]


def _tokens(item: Item) -> int | None:
    return item.shape[item.layout.index("T")] if item.layout and "T" in item.layout else None


def _beyond(tokens: int | None, grid: int | None) -> int | None:
    """What the last block has beyond the patch grid."""
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


def _named(ndim: int, batch: int, rest: str) -> str:
    letters = iter(rest)
    return "".join("B" if i == batch else next(letters) for i in range(ndim))
