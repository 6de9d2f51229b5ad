"""Where the cells of a map lie, followed through every operation of one pass; see
`spile.augmentation.geometry`.

What is followed are PyTorch's own operations, not modules: padding, slicing and pooling inside a ``forward``
count as they should.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spile.augmentation.geometry import Axis, Grid, latest, mean_grid
from spile.errors import AugmentationError
from spile.torch.taps import Tap

_aten = torch.ops.aten


class _Placed(NamedTuple):
    grid: Grid
    axes: tuple[int, int]
    """Which axes of the tensor are rows and columns."""


def grid_of(tap: Tap, image: Tensor) -> Grid:
    """Where the cells of the tap's one point lie in an image (1, channels, height, width), in its pixels.

    Raises `AugmentationError` for a point that is no map, or whose cells cannot be told.
    """
    follower = _Follower(image)
    with torch.no_grad(), follower:
        (value,) = tap(image).values()
    (point,) = tap.points
    known = follower.placed.get(id(value))
    if known is not None:
        return known.grid
    axes = "B" + (point.layout or "").replace("B", "")
    if sorted(axes) == ["B", "C", "X", "Y"]:
        shape = value.shape[axes.index("Y")], value.shape[axes.index("X")]
        found = latest(follower.order, shape)
    elif sorted(axes) == ["B", "C", "T"]:
        prefix = tap.prefix_tokens(point)
        found = latest(follower.order, None, value.shape[axes.index("T")] - prefix)
    else:
        raise AugmentationError(
            f"{point.name} has axes {axes!r}: a guide reads a map or the tokens of an image. "
            "spile.layers(model) lists what there is"
        )
    if found is None:
        raise AugmentationError(
            f"where the cells of {point.name} (shape {list(value.shape)}) lie in the image cannot be "
            "followed through the model: guide by an earlier layer"
        )
    return found


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the grid of every tensor that has one."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        grid = Grid.of_pixels(image.shape[2], image.shape[3])
        self.placed = {id(image): _Placed(grid, (2, 3))}
        self.order = [grid]
        self._alive: list[Any] = [image]  # so that an identity is never used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        out = func(*args, **(kwargs or {}))
        first = next((t for t in _tensors(out) if t.ndim >= 3), None)
        if first is None:
            return out
        self._alive.append(out)
        sources = [(t, self.placed[id(t)]) for t in _tensors(args) if id(t) in self.placed]
        if sources:
            rule = _RULES.get(func._overloadpacket)
            found = rule(sources[0][1], args, first) if rule else _same(sources, first)
            if found is not None:
                self.placed[id(first)] = found
                if found.grid != self.order[-1]:
                    self.order.append(found.grid)
        return out


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in _tensors(part)]
    return []


def _same(sources: Sequence[tuple[Tensor, _Placed]], out: Tensor) -> _Placed | None:
    """An operation that leaves cells where they are: its output has as many axes and cells."""
    fitting = [
        placed
        for tensor, placed in sources
        if tensor.ndim == out.ndim and tuple(out.shape[axis] for axis in placed.axes) == placed.grid.shape
    ]
    if not fitting:
        return None
    alike = [placed.grid for placed in fitting if placed.axes == fitting[0].axes]
    return _Placed(mean_grid(alike), fitting[0].axes)


_Rule = Callable[[_Placed, Any, Tensor], "_Placed | None"]


def _by_axis(change: Callable[[Axis, int, int, Any], Axis]) -> _Rule:
    """A rule from what happens on one axis: (axis, 0 or 1, cells afterwards, arguments)."""

    def rule(placed: _Placed, args: Any, out: Tensor) -> _Placed:
        rows, columns = (
            change(axis, i, int(out.shape[place]), args)
            for i, (axis, place) in enumerate(
                zip((placed.grid.rows, placed.grid.columns), placed.axes, strict=True)
            )
        )
        return _Placed(Grid(rows, columns), placed.axes)

    return rule


def _pair(value: Any, index: int, default: int) -> int:
    if isinstance(value, (list, tuple)):
        return int(value[index if len(value) > 1 else 0]) if value else default
    return int(value)


def _argument(args: Any, place: int, default: Any) -> Any:
    return args[place] if len(args) > place else default


def _convolved(axis: Axis, i: int, cells: int, args: Any) -> Axis:
    weight, stride, padding, dilation, transposed = args[1], args[3], args[4], args[5], args[6]
    options: dict[str, Any] = {
        "kernel": int(weight.shape[2 + i]),
        "stride": _pair(stride, i, 1),
        "before": _pair(padding, i, 0),
        "dilation": _pair(dilation, i, 1),
    }
    return axis.spread(cells, **options) if transposed else axis.window(cells, **options)


def _pooled(dilates: bool) -> Callable[[Axis, int, int, Any], Axis]:
    def change(axis: Axis, i: int, cells: int, args: Any) -> Axis:
        kernel = _pair(args[1], i, 1)
        return axis.window(
            cells,
            kernel=kernel,
            stride=_pair(_argument(args, 2, []), i, kernel),
            before=_pair(_argument(args, 3, 0), i, 0),
            dilation=_pair(_argument(args, 4, 1), i, 1) if dilates else 1,
        )

    return change


def _padded(axis: Axis, i: int, cells: int, args: Any) -> Axis:
    widths = args[1]  # of the last axis first
    return axis.padded(cells, before=int(widths[0 if i else 2]) if len(widths) > 2 or i else 0)


def _resized(corners: int | None) -> Callable[[Axis, int, int, Any], Axis]:
    def change(axis: Axis, i: int, cells: int, args: Any) -> Axis:
        aligned = corners is not None and bool(_argument(args, corners, False))
        return axis.resized(cells, align_corners=aligned)

    return change


def _permuted(placed: _Placed, args: Any, out: Tensor) -> _Placed:
    order = [axis % out.ndim for axis in args[1]]
    return _Placed(placed.grid, (order.index(placed.axes[0]), order.index(placed.axes[1])))


def _transposed(placed: _Placed, args: Any, out: Tensor) -> _Placed:
    a, b = args[1] % out.ndim, args[2] % out.ndim
    moved = {a: b, b: a}
    rows, columns = (moved.get(axis, axis) for axis in placed.axes)
    return _Placed(placed.grid, (rows, columns))


def _sliced(placed: _Placed, args: Any, out: Tensor) -> _Placed:
    dim = _argument(args, 1, 0) % out.ndim
    start, step = _argument(args, 2, None) or 0, _argument(args, 4, 1)

    def change(axis: Axis, place: int) -> Axis:
        if place != dim:
            return axis
        first = start + axis.cells if start < 0 else start
        return Axis(int(out.shape[dim]), axis.stride * step, axis.first + axis.stride * first)

    grid = placed.grid
    return _Placed(Grid(change(grid.rows, placed.axes[0]), change(grid.columns, placed.axes[1])), placed.axes)


_RULES: dict[Any, _Rule] = {
    _aten.convolution: _by_axis(_convolved),
    _aten.max_pool2d_with_indices: _by_axis(_pooled(dilates=True)),
    _aten.max_pool2d: _by_axis(_pooled(dilates=True)),
    _aten.avg_pool2d: _by_axis(_pooled(dilates=False)),
    _aten._adaptive_avg_pool2d: _by_axis(_resized(None)),
    _aten.adaptive_max_pool2d: _by_axis(_resized(None)),
    _aten.constant_pad_nd: _by_axis(_padded),
    _aten.reflection_pad2d: _by_axis(_padded),
    _aten.replication_pad2d: _by_axis(_padded),
    _aten.upsample_nearest2d: _by_axis(_resized(None)),
    _aten.upsample_bilinear2d: _by_axis(_resized(2)),
    _aten._upsample_bilinear2d_aa: _by_axis(_resized(2)),
    _aten.upsample_bicubic2d: _by_axis(_resized(2)),
    _aten.permute: _permuted,
    _aten.transpose: _transposed,
    _aten.slice: _sliced,
}
