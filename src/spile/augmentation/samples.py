"""One image with its map, as a policy sees it. Pure but for the pixels, which are the canvas's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.augmentation.boxes import drawn_cell, peak, pixel_of
from spile.augmentation.canvas import Canvas
from spile.augmentation.geometry import Frame, Grid, areas, placed
from spile.augmentation.randomness import Draw
from spile.augmentation.thresholds import Threshold, levels

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, its map and its own random numbers."""

    id: str
    image: Any
    values: Array
    """(h, w) in 0..1."""
    grid: Grid
    frame: Frame
    targets: Any
    canvas: Canvas
    draw: Draw

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.frame.size

    @cached_property
    def areas(self) -> Array:
        """(h, w): the share of the picture that each cell stands for."""
        return areas(self.grid, self.frame)

    def levels(self, threshold: Threshold) -> Array:
        """(h, w): the level of every cell, from 0."""
        keys = self.generator("ties").random(self.values.shape)
        return levels(self.values, self.areas, threshold, keys)

    def on_pixels(self, cells: Array, *, soft: bool) -> Array:
        """(height, width) float32: `cells` (h, w) where they belong; soft edges are one cell wide."""
        return placed(cells, self.grid, self.frame, soft=soft)

    @cached_property
    def pixels(self) -> Array:
        """(height, width): the map where it belongs."""
        return placed(self.values, self.grid, self.frame)

    def centre(self, at: str, operation: str) -> tuple[float, float]:
        """A pixel (row, column): ``peak`` of the map, or ``drawn`` with the chance of its activation."""
        cell = (
            peak(self.values, self.areas)
            if at == "peak"
            else drawn_cell(self.values, self.areas, self.generator(operation))
        )
        return pixel_of(cell, self.grid, self.frame)

    def key(self, operation: str) -> int:
        """Seeds one operation on this sample."""
        return self.draw.key(self.id, operation)

    def generator(self, operation: str) -> np.random.Generator:
        """Random numbers of one operation on this sample."""
        return self.draw.generator(self.id, operation)
