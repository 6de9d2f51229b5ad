"""Maps: where in each image of a batch a layer is active, and the placebos they are held against. Pure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile.augmentation.geometry import Frame, Grid, areas, placed
from spile.augmentation.randomness import Draw
from spile.errors import AugmentationError

Array = npt.NDArray[Any]

Which = Literal["guided", "permuted", "random", "centre"]
"""``guided``: the sample's own map. Placebos: ``permuted``, another sample's; ``random``, noise of the same
grid; ``centre``, a bump in the middle."""

WHICH: tuple[Which, ...] = ("guided", "permuted", "random", "centre")


@dataclass(frozen=True, eq=False)
class Maps:
    """One map a sample: `values` (samples, h, w) in 0..1; where the cells lie in the source of each frame."""

    values: Array
    grids: tuple[Grid, ...]
    """Of each sample, in the source of its frame."""
    frames: tuple[Frame, ...]
    """How each picture of the batch was cut out of its source; the whole of it where it was not."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def areas(self) -> Array:
        """(samples, h, w): the share of the picture that each cell stands for."""
        return np.stack([areas(*pair) for pair in zip(self.grids, self.frames, strict=True)])

    def on_pixels(self, cells: Array | None = None, *, soft: bool = True) -> Array:
        """(samples, height, width): the maps, or other `cells` (samples, h, w), where they belong."""
        chosen = self.values if cells is None else cells
        rows = zip(chosen, self.grids, self.frames, strict=True)
        return np.stack([placed(each, grid, frame, soft=soft) for each, grid, frame in rows])


def maps_of(raw: Array, grid: Grid, size: tuple[int, int]) -> Maps:
    """Maps of whole pictures of `size` (height, width) from what a guide gave, (samples, h, w).

    They are rounded to half precision, as `MapBank` keeps them: the same map comes from both, and what
    another number of threads does to the last digits seldom matters.
    """
    count = len(raw)
    values = normalised(rounded(raw)).astype(np.float16).astype(np.float32)
    return Maps(values, (grid,) * count, (Frame.whole(size),) * count)


def cut_from(maps: Maps, frames: Sequence[Frame]) -> Maps:
    """The maps of whole pictures that were cut out of their sources as the frames say, told so."""
    grids = tuple(grid.in_source(frame) for grid, frame in zip(maps.grids, frames, strict=True))
    return Maps(maps.values, grids, tuple(frames))


def rounded(raw: Array) -> Array:
    """Each map divided by its largest magnitude and kept in float16, whatever its range."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(raw, np.float64)
        finite = np.where(np.isfinite(values), np.abs(values), 0.0)
        largest = finite.max(axis=(1, 2), keepdims=True)
        scaled: Array = (values / np.where(largest > 0, largest, 1.0)).astype(np.float16)
    return scaled


def normalised(raw: Array) -> Array:
    """Each map of (samples, h, w) from its least (0) to its largest value (1); a flat map is 0 throughout.

    What is not finite counts as the least and is warned of: it comes from a guide that computes NaN.
    """
    values = np.asarray(raw, np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        bad = int((~finite).any(axis=(1, 2)).sum())
        warnings.warn(
            f"the guide gave values that are not finite for {bad} of {len(values)} images: they count as "
            "least active. Check the guide's weights and preprocessing",
            stacklevel=2,
        )
    low = np.where(finite, values, np.inf).min(axis=(1, 2), keepdims=True)
    low = np.where(np.isfinite(low), low, 0.0)
    values = np.where(finite, values, low)
    span = values.max(axis=(1, 2), keepdims=True) - low
    result: Array = ((values - low) / np.where(span > 0, span, 1.0)).astype(np.float32)
    return result


def chosen_maps(maps: Maps, which: Which, ids: Sequence[str], draw: Draw) -> Maps:
    """The maps themselves or a placebo for them, see `Which`."""
    if which == "guided":
        return maps
    if which == "permuted":
        return replace(maps, values=maps.values[draw.partners(ids, "placebo")])
    if which == "random":
        shape = maps.values.shape[1:]
        noise = [draw.generator(one, "placebo").standard_normal(shape) for one in ids]
        return replace(maps, values=normalised(np.stack([_smooth(each) for each in noise])))
    bumps = [_bump(grid, frame) for grid, frame in zip(maps.grids, maps.frames, strict=True)]
    return replace(maps, values=normalised(np.stack(bumps)))


def checked_which(which: str) -> Which:
    """`which` itself. Raises `AugmentationError` for a word that is none."""
    if which not in WHICH:
        raise AugmentationError(f"maps={which!r}: write one of {', '.join(map(repr, WHICH))}")
    return which


def _smooth(noise: Array) -> Array:
    """Blobs as wide as those of a map: 1-2-1 along both axes, twice."""
    for _ in range(2):
        for axis in (0, 1):
            widths = [(1, 1) if i == axis else (0, 0) for i in (0, 1)]
            padded = np.pad(noise, widths, mode="edge")
            n = noise.shape[axis]
            low, middle, high = (np.take(padded, range(start, start + n), axis) for start in range(3))
            noise = 0.25 * low + 0.5 * middle + 0.25 * high
    return noise


def _bump(grid: Grid, frame: Frame) -> Array:
    """A normal bump in the middle of the picture, a quarter of its size wide (standard deviation)."""
    parts = []
    for axis, low, length in (
        (grid.rows, frame.top, frame.height),
        (grid.columns, frame.left, frame.width),
    ):
        distance = (axis.centres - (low + length / 2 - 0.5)) / (length / 4)
        parts.append(np.exp(-0.5 * distance**2))
    result: Array = np.outer(*parts)
    return result
