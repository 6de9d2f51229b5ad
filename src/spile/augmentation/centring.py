"""Where the cells of a trained network lie, measured. Pure.

Strides and padding say where the window of a cell lies, and its weights what in that window counts. Trained
networks were found to undo padding that lies on one side: the windows of EfficientNet-Lite0 at stride 16 are
7.5 pixels to the right of an even grid, and it sees as if they were 2. (Training with mirrored pictures would
ask for that.) A picture and its mirror image show the same thing, so that how far their maps are apart tells
where the cells are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile.augmentation.geometry import Axis, Grid
from spile.errors import AugmentationError

Array = npt.NDArray[Any]
Centres = Literal["fields", "measured"]
"""The middle of each cell's receptive field, or where a mirrored picture shows that it lies."""
Response = Callable[[Array], Array]
"""From pictures (n, height, width, channels) uint8 to how active each cell is, (n, h, w)."""

FEWEST = 10
"""Cells on an axis; fewer say too little about a shift."""
_PICTURES, _MARGIN, _STEPS, _LEAST = 16, 3, np.arange(-2, 2.001, 0.05), 0.3


def measured(grid: Grid, response: Response, size: tuple[int, int], channels: int) -> Grid:
    """`grid` moved to where the network sees what is in pictures of `size` (height, width).

    Raises `AugmentationError` for maps that are too small, or too unlike under mirroring, to tell.
    """
    if min(grid.shape) < FEWEST:
        raise AugmentationError(
            f"centres='measured' needs a map of {FEWEST} x {FEWEST} cells, and this one has "
            f"{grid.shape[0]} x {grid.shape[1]}: take an earlier layer, larger images, or centres='fields'"
        )
    pictures = noise(size, channels)
    upright = response(pictures)
    rows = _moved(grid.rows, upright, response(pictures[:, ::-1])[:, ::-1], 1, size[0])
    columns = _moved(grid.columns, upright, response(pictures[:, :, ::-1])[:, :, ::-1], 2, size[1])
    return Grid(rows, columns)


def noise(size: tuple[int, int], channels: int) -> Array:
    """Pictures of noise that has as much of every scale as photographs have, the same ones each time."""
    down, across = (np.fft.fftfreq(length) for length in size)
    scale = np.hypot(down[:, None], across[None])
    scale[0, 0] = np.inf
    white = np.random.default_rng(0).standard_normal((_PICTURES, channels, *size))
    pink = np.fft.ifft2(np.fft.fft2(white) / scale).real
    pink *= 55 / pink.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(127 + pink, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _moved(axis: Axis, upright: Array, mirrored: Array, along: int, length: int) -> Axis:
    """With the first centre where both agree: cell j of the mirrored map is cell j + shift of the other."""
    likeness = [_likeness(upright, mirrored, shift, along) for shift in _STEPS]
    best = int(np.argmax(likeness))
    if best in (0, len(_STEPS) - 1) or likeness[best] < _LEAST:
        raise AugmentationError(
            "centres='measured' cannot tell where the cells lie, as the layer answers mirrored pictures in "
            f"another way (likeness {likeness[best]:.2f}): write centres='fields'"
        )
    first = (length - 1 - (axis.cells - 1 + _STEPS[best]) * axis.stride) / 2
    return Axis(axis.cells, axis.stride, float(first))


def _likeness(a: Array, b: Array, shift: float, along: int) -> float:
    """Correlation of `b` with `a` moved by a part of a cell, without the border."""
    cells = np.arange(_MARGIN, a.shape[along] - _MARGIN)
    low = np.floor(cells + shift).astype(int)
    part = (cells + shift - low).reshape((1, -1, 1) if along == 1 else (1, 1, -1))
    moved = np.take(a, low, along) * (1 - part) + np.take(a, low + 1, along) * part
    return float(np.corrcoef(moved.ravel(), np.take(b, cells, along).ravel())[0, 1])


def checked_centres(centres: str) -> Centres:
    """`centres` itself. Raises `AugmentationError` for another word."""
    if centres not in ("fields", "measured"):
        raise AugmentationError(f"centres={centres!r}: write 'fields' or 'measured'")
    return centres  # type: ignore[return-value]
