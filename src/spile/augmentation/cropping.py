"""Random crops and flips whose numbers are made of (seed, epoch, sample id), and that say what they did.
Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from spile.augmentation.geometry import Frame
from spile.augmentation.randomness import Draw
from spile.errors import AugmentationError

_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A box of random area and shape, resized to `size` (height, width), perhaps flipped left to right.

    Areas are drawn from `scale`, as shares of the source, shapes (width over height) evenly on a logarithmic
    scale from `ratio`, as in Inception training (Szegedy et al. 2015, section 6).
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        sides: Any = self.size if isinstance(self.size, (tuple, list)) else ()
        if len(sides) != 2 or not all(isinstance(one, (int, np.integer)) and one > 0 for one in sides):
            raise AugmentationError(f"size={self.size!r}: write height and width in pixels, e.g. (48, 48)")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise AugmentationError(f"scale={self.scale!r}: write two shares of the image, e.g. (0.35, 1.0)")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise AugmentationError(f"ratio={self.ratio!r}: write two ratios, e.g. (3 / 4, 4 / 3)")
        if not 0 <= self.flip <= 1:
            raise AugmentationError(f"flip={self.flip!r}: write a chance from 0 to 1")

    def frame(self, source: tuple[int, int], draw: Draw, sample: str) -> Frame:
        """How the picture of a sample of `source` (height, width) is cut, whole pixels."""
        generator = draw.generator(sample, "crop")
        flipped = bool(generator.random() < self.flip)
        rows, columns = source
        for _ in range(_TRIES):
            area = generator.uniform(*self.scale) * rows * columns
            shape = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
            if 0 < height <= rows and 0 < width <= columns:
                top = int(generator.integers(rows - height + 1))
                left = int(generator.integers(columns - width + 1))
                break
        else:
            height, width, top, left = rows, columns, 0, 0
        return Frame(
            source=source, top=top, left=left, height=height, width=width, size=self.size, flipped=flipped
        )
