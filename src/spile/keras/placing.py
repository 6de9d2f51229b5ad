"""Where the cells of a map lie, followed through every layer of one pass; see
`spile.augmentation.geometry`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from spile.augmentation.geometry import Axis, Grid, latest, mean_grid, same_padding
from spile.errors import AugmentationError
from spile.keras.names import names_of
from spile.keras.taps import Tap
from spile.keras.trees import given, tensors
from spile.keras.watching import watching_calls
from spile.resolution import Point
from spile.trees import pick

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
_POOLS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)


def grid_of(tap: Tap, image: Any) -> Grid:
    """Where the cells of the tap's one point lie in an image (1, ...), in its pixels.

    Raises `AugmentationError` for a point that is no map, or whose cells cannot be told.
    """
    (point,) = tap.points
    axes = "B" + (point.layout or "").replace("B", "")
    if sorted(axes) not in (["B", "C", "X", "Y"], ["B", "C", "T"]):
        raise AugmentationError(
            f"{point.name} has axes {axes!r}: a guide reads a map or the tokens of an image. "
            "spile.layers(model) lists what there is"
        )
    names = {layer: found[0] for layer, found in names_of(tap.model).items()}
    follower = _Follower(point, names, image)
    with watching_calls(names, follower.watch):
        (value,) = tap(image).values()
    found = follower.found
    if found is None and "T" in axes:
        tokens = int(value.shape[axes.index("T")]) - tap.prefix_tokens(point)
        found = latest(follower.order, None, tokens)
    elif found is None:
        found = latest(follower.order, (int(value.shape[axes.index("Y")]), int(value.shape[axes.index("X")])))
    if found is None:
        raise AugmentationError(
            f"where the cells of {point.name} (shape {list(value.shape)}) lie in the image cannot be "
            "followed through the model: guide by an earlier layer"
        )
    return found


class _Follower:
    """Notes the grid of every map that layers give."""

    def __init__(self, point: Point, names: dict[keras.Layer, str], image: Any) -> None:
        self.found: Grid | None = None
        """That of the point."""
        self._point = point
        self._names = names
        first = keras.config.image_data_format() == "channels_first"
        self._axes = (2, 3) if first else (1, 2)
        grid = Grid.of_pixels(*(int(image.shape[axis]) for axis in self._axes))
        self.order = [grid]
        self._placed = {id(image): grid}
        self._alive: list[Any] = [image]  # so that an identity is never used twice
        self._runs = 0

    def watch(
        self, layer: keras.Layer, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One run of a layer."""
        inputs = given(args, kwargs)
        grids = [grid for _, t in tensors(inputs) if (grid := self._known(t)) is not None]
        self._alive.append(inputs)
        at_point = self._names[layer] == self._point.path
        call, self._runs = self._runs, self._runs + at_point
        output = run()
        self._alive.append(output)
        for _, tensor in tensors(output):
            if len(tensor.shape) == 4 and id(tensor) not in self._placed and grids:
                self._note(tensor, _after(layer, grids, self._cells(tensor), self._axes[0] == 2))
        if at_point and call == self._point.call:
            self.found = self._at(inputs if self._point.side == "in" else output)
        return output

    def _at(self, value: Any) -> Grid | None:
        tensor = value if self._point.item is None else pick(value, self._point.item)
        return self._known(tensor)

    def _cells(self, tensor: Any) -> tuple[int, int]:
        return int(tensor.shape[self._axes[0]]), int(tensor.shape[self._axes[1]])

    def _known(self, tensor: Any) -> Grid | None:
        """The grid of a tensor; what no layer gave is taken for the last map of its size."""
        if len(tensor.shape) != 4:
            return None
        if id(tensor) in self._placed:
            return self._placed[id(tensor)]
        cells = self._cells(tensor)
        return next((grid for grid in reversed(self.order) if grid.shape == cells), None)

    def _note(self, tensor: Any, grid: Grid | None) -> None:
        if grid is not None:
            self._placed[id(tensor)] = grid
            if grid != self.order[-1]:
                self.order.append(grid)


def _after(
    layer: keras.Layer, grids: Sequence[Grid], cells: tuple[int, int], channels_first: bool
) -> Grid | None:
    """The grid of a layer's output; ``None`` where its cells are not those of its input."""
    change = _change(layer)
    if change is None:
        fitting = [grid for grid in grids if grid.shape == cells]
        return mean_grid(fitting) if fitting else None
    grid = grids[0]
    return Grid(change(grid.rows, 0, cells[0]), change(grid.columns, 1, cells[1]))


_Change = Callable[[Axis, int, int], Axis]


def _change(layer: keras.Layer) -> _Change | None:
    if isinstance(layer, _CONVOLUTIONS):
        return _windows(layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    if isinstance(layer, _POOLS):
        return _windows(layer.pool_size, layer.strides, layer.padding, (1, 1))
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return _spreads(layer)
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return lambda axis, i, cells: axis.padded(cells, before=layer.padding[i][0])
    if isinstance(layer, keras.layers.Cropping2D):
        return lambda axis, i, cells: axis.padded(cells, before=-layer.cropping[i][0])
    if isinstance(layer, keras.layers.UpSampling2D | keras.layers.Resizing):
        return lambda axis, i, cells: axis.resized(cells)
    return None


def _windows(kernel: Any, strides: Any, padding: str, dilation: Any) -> _Change:
    def change(axis: Axis, i: int, cells: int) -> Axis:
        k, s, d = _of(kernel, i), _of(strides, i), _of(dilation, i)
        before = same_padding(axis.cells, kernel=k, stride=s, dilation=d)[0] if padding == "same" else 0
        return axis.window(cells, kernel=k, stride=s, before=before, dilation=d)

    return change


def _spreads(layer: keras.Layer) -> _Change:
    def change(axis: Axis, i: int, cells: int) -> Axis:
        k, s = _of(layer.kernel_size, i), _of(layer.strides, i)
        before = max(k - s, 0) // 2 if layer.padding == "same" else 0
        return axis.spread(cells, kernel=k, stride=s, before=before)

    return change


def _of(value: Any, index: int) -> int:
    return int(value[index]) if isinstance(value, (tuple, list)) else int(value)
