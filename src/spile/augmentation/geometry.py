"""Where the cells of a map lie in the image it was made from. Pure.

A cell of a feature map is not where a resize of the map would put it: strides and padding decide. All
positions are in pixels; the centre of the first pixel is 0, so an image of n pixels spans -0.5 to n - 0.5.
The centre of a cell is the centre of its receptive field (Araujo, Norris & Sim 2019, "Computing Receptive
Fields of Convolutional Neural Networks", section on alignment), without regard to the image's border.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Axis:
    """Cells along one axis: the centre of cell i is ``first + i * stride``; a flipped axis has a negative
    stride."""

    cells: int
    stride: float
    first: float

    @classmethod
    def of_pixels(cls, size: int) -> Axis:
        """The image itself."""
        return cls(size, 1.0, 0.0)

    @property
    def centres(self) -> Array:
        """(cells,) in pixels."""
        return self.first + self.stride * np.arange(self.cells)

    def window(self, cells: int, *, kernel: int, stride: int, before: float, dilation: int = 1) -> Axis:
        """What a convolution or a pool gives, with `before` cells of padding at the low end."""
        return Axis(
            cells, self.stride * stride, self.first + self.stride * ((kernel - 1) * dilation / 2 - before)
        )

    def padded(self, cells: int, *, before: int) -> Axis:
        """With `before` cells put in front; a negative number cuts."""
        return Axis(cells, self.stride, self.first - self.stride * before)

    def spread(self, cells: int, *, kernel: int, stride: int, before: float, dilation: int = 1) -> Axis:
        """What a transposed convolution gives."""
        shift = (before - (kernel - 1) * dilation / 2) / stride
        return Axis(cells, self.stride / stride, self.first + self.stride * shift)

    def resized(self, cells: int, *, align_corners: bool = False) -> Axis:
        """What an interpolation to so many cells gives."""
        if align_corners and cells > 1:
            return Axis(cells, self.stride * (self.cells - 1) / (cells - 1), self.first)
        scale = self.cells / cells
        return Axis(cells, self.stride * scale, self.first + self.stride * (scale / 2 - 0.5))

    def moved(self, offset: float, scale: float) -> Axis:
        """The same cells where position p is called ``offset + scale * p``."""
        return Axis(self.cells, self.stride * scale, offset + scale * self.first)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the cells of a map lie."""

    rows: Axis
    columns: Axis

    @classmethod
    def of_pixels(cls, height: int, width: int) -> Grid:
        """The image itself."""
        return cls(Axis.of_pixels(height), Axis.of_pixels(width))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in cells."""
        return self.rows.cells, self.columns.cells

    def in_source(self, frame: Frame) -> Grid:
        """The same cells in the image that `frame` was cut out of."""
        rows, columns = frame.mapping
        return Grid(self.rows.moved(*rows), self.columns.moved(*columns))


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """How a picture was cut out of its source: a box of it, resized to `size`, then perhaps mirrored."""

    source: tuple[int, int]
    """Height and width."""
    top: float
    left: float
    height: float
    width: float
    size: tuple[int, int]
    """Height and width of the picture."""
    flipped: bool = False
    """Left and right are exchanged."""

    @classmethod
    def whole(cls, source: tuple[int, int], size: tuple[int, int] | None = None) -> Frame:
        """All of the source, resized."""
        return cls(source=source, top=0, left=0, height=source[0], width=source[1], size=size or source)

    @property
    def mapping(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(offset, scale) of rows and of columns: a position p of the picture is offset + scale * p."""
        down, across = self.height / self.size[0], self.width / self.size[1]
        rows = self.top + down / 2 - 0.5, down
        if self.flipped:
            return rows, (self.left + self.width - across / 2 - 0.5, -across)
        return rows, (self.left + across / 2 - 0.5, across)

    def positions(self) -> tuple[Array, Array]:
        """Where its pixels' centres lie in the source, (height,) and (width,)."""
        (top, down), (left, across) = self.mapping
        return top + down * np.arange(self.size[0]), left + across * np.arange(self.size[1])

    def covers(self, other: Frame) -> float:
        """The share of `other` that lies in this frame, both of the same source."""
        shares = []
        for low, length, their_low, their_length in (
            (self.top, self.height, other.top, other.height),
            (self.left, self.width, other.left, other.width),
        ):
            common = min(low + length, their_low + their_length) - max(low, their_low)
            shares.append(max(0.0, common) / their_length)
        return shares[0] * shares[1]


def same_padding(size: int, *, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(padding in front, cells) under TensorFlow's SAME rule, which depends on the size."""
    cells = -(-size // stride)
    total = max((cells - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, cells


def merged(grid: Grid, shape: tuple[int, int]) -> Grid | None:
    """The grid of a map of `shape` whose cells are blocks of those of `grid`; ``None`` if they are not."""
    (rows, more_rows), (columns, more_columns) = (
        divmod(have, want) for have, want in zip(grid.shape, shape, strict=True)
    )
    if more_rows or more_columns or rows != columns or not rows:
        return None
    return Grid(grid.rows.resized(shape[0]), grid.columns.resized(shape[1]))


def mean_grid(grids: Sequence[Grid]) -> Grid:
    """Where branches meet that place their cells differently: in the middle."""
    if len(set(grids)) == 1:
        return grids[0]

    def axis(axes: Sequence[Axis]) -> Axis:
        return Axis(
            axes[0].cells,
            float(np.mean([a.stride for a in axes])),
            float(np.mean([a.first for a in axes])),
        )

    return Grid(axis([g.rows for g in grids]), axis([g.columns for g in grids]))


def latest(grids: Iterable[Grid], shape: tuple[int, int] | None, tokens: int | None = None) -> Grid | None:
    """Of grids in the order in which they arose, the last that fits a map of `shape`, or so many `tokens`.

    A layer that only regroups cells (tokens, windows, 2 x 2 merging) leaves no trace of its own.
    """
    backwards = list(grids)[::-1]
    for grid in backwards:
        if grid.shape == shape or (tokens is not None and grid.shape[0] * grid.shape[1] == tokens):
            return grid
    if shape is None and tokens is not None:
        shape = _merged_shape(backwards, tokens)
    if shape is None:
        return None
    return next((found for grid in backwards if (found := merged(grid, shape)) is not None), None)


def _merged_shape(grids: Iterable[Grid], tokens: int) -> tuple[int, int] | None:
    for grid in grids:
        for block in (2, 4, 8):
            rows, columns = grid.shape[0] // block, grid.shape[1] // block
            if rows * columns == tokens and merged(grid, (rows, columns)) is not None:
                return rows, columns
    return None


def linear_weights(axis: Axis, positions: Array) -> Array:
    """(positions, cells): linear interpolation between centres; beyond the first and last it stays level."""
    place = np.clip((positions - axis.first) / axis.stride, 0, axis.cells - 1)
    below = np.minimum(place.astype(int), max(axis.cells - 2, 0))
    share = place - below
    weights = np.zeros((len(positions), axis.cells), np.float32)
    at = np.arange(len(positions))
    weights[at, below] = 1 - share
    if axis.cells > 1:
        weights[at, below + 1] = share
    return weights


def nearest_weights(axis: Axis, positions: Array) -> Array:
    """(positions, cells): 1 for the cell whose centre is nearest."""
    place = np.clip(np.floor((positions - axis.first) / axis.stride + 0.5), 0, axis.cells - 1).astype(int)
    weights = np.zeros((len(positions), axis.cells), np.float32)
    weights[np.arange(len(positions)), place] = 1
    return weights


@lru_cache(maxsize=256)
def placement(grid: Grid, frame: Frame, soft: bool) -> tuple[Array, Array]:
    """Matrices R (height, h) and C (width, w): R m Cᵀ puts a map m of `grid` onto the pixels of `frame`.

    `grid` is in the frame's source. `soft` interpolates between cells, else the nearest one counts.
    """
    weights = linear_weights if soft else nearest_weights
    rows, columns = frame.positions()
    return weights(grid.rows, rows), weights(grid.columns, columns)


def placed(maps: Array, grid: Grid, frame: Frame, *, soft: bool = True) -> Array:
    """Maps (..., h, w) on the pixels of `frame`, (..., height, width)."""
    rows, columns = placement(grid, frame, soft)
    result: Array = rows @ maps.astype(np.float32) @ columns.T
    return result


def areas(grid: Grid, frame: Frame) -> Array:
    """(h, w): the share of the picture's pixels that each cell is nearest to; they sum to 1."""
    rows, columns = placement(grid, frame, False)
    result: Array = np.outer(rows.mean(0, dtype=np.float64), columns.mean(0, dtype=np.float64))
    return result
