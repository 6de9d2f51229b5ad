"""Boxes on pixels: round a region, round a peak, of a given area. Pure.

A box is (top, left, bottom, right) in whole pixels, the ends not included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spile.augmentation.geometry import Frame, Grid, placement

Array = npt.NDArray[Any]


class Box(NamedTuple):
    """Rows top..bottom and columns left..right."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """In pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def mask(self, size: tuple[int, int]) -> Array:
        """(height, width), true inside."""
        mask = np.zeros(size, bool)
        mask[self.top : self.bottom, self.left : self.right] = True
        return mask


def box_round(inside: Array, margin: float) -> Box:
    """The least box that holds a region (height, width), wider by `margin` times its sides on every side.

    The whole picture where the region is empty.
    """
    height, width = inside.shape
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return Box(0, 0, height, width)
    more = round(margin * (rows[-1] - rows[0] + 1)), round(margin * (columns[-1] - columns[0] + 1))
    return Box(
        max(0, int(rows[0]) - more[0]),
        max(0, int(columns[0]) - more[1]),
        min(height, int(rows[-1]) + 1 + more[0]),
        min(width, int(columns[-1]) + 1 + more[1]),
    )


def box_at(
    centre: tuple[float, float], share: float, size: tuple[int, int], *, aspect: float = 1.0, inside: bool
) -> Box:
    """A box of `share` of the picture round `centre` (row, column).

    `aspect` is its height over its width, relative to the picture's own. With `inside` it is pushed into the
    picture, so that it keeps its area; else it is cut at the border, as in CutMix (Yun et al. 2019).
    """
    lengths = [
        min(n, max(1, round(n * (min(max(share, 0.0), 1.0) * factor) ** 0.5)))
        for n, factor in zip(size, (aspect, 1 / aspect), strict=True)
    ]
    ends = []
    for at, length, n in zip(centre, lengths, size, strict=True):
        low = round(at - (length - 1) / 2)
        if inside:
            low = min(max(low, 0), n - length)
        ends.append((min(max(low, 0), n), max(min(low + length, n), 0)))
    (top, bottom), (left, right) = ends
    return Box(top, left, bottom, right)


def peak(values: Array, areas: Array) -> tuple[int, int]:
    """The most active cell that is in the picture; of equal ones that nearest to their middle."""
    seen = np.where(areas > 0, values, -np.inf)
    places = np.argwhere(seen == seen.max())
    return tuple(places[np.square(places - places.mean(0)).sum(1).argmin()].tolist())


def drawn_cell(values: Array, areas: Array, generator: np.random.Generator) -> tuple[int, int]:
    """A cell drawn with the chance of its activation; by area alone where nothing is active."""
    chances = (values * areas).ravel().astype(np.float64)
    if chances.sum() <= 0:
        chances = areas.ravel().astype(np.float64)
    at = generator.choice(len(chances), p=chances / chances.sum())
    row, column = np.unravel_index(at, values.shape)
    return int(row), int(column)


def pixel_of(cell: tuple[int, int], grid: Grid, frame: Frame) -> tuple[float, float]:
    """Where the centre of a cell lies in the picture, in pixels; at most on its border."""
    found = []
    for index, axis, (offset, scale), n in zip(
        cell, (grid.rows, grid.columns), frame.mapping, frame.size, strict=True
    ):
        found.append(float(np.clip((axis.first + index * axis.stride - offset) / scale, 0, n - 1)))
    return found[0], found[1]


def cells_on_pixels(chosen: Array, grid: Grid, frame: Frame) -> Array:
    """(height, width), true where the nearest cell is a chosen one of (h, w)."""
    rows, columns = placement(grid, frame, False)
    result: Array = rows @ chosen.astype(np.float32) @ columns.T > 0.5
    return result


def mass_in(box: Box, pixels: Array) -> float:
    """The share of a map's activation (height, width) in a box; of a flat map the box's share of area."""
    total = float(pixels.sum(dtype=np.float64))
    if total <= 0:
        return box.area / pixels.size
    return float(pixels[box.top : box.bottom, box.left : box.right].sum(dtype=np.float64)) / total
