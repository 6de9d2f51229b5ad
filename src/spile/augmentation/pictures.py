"""Pictures of what an augmenter does: image, map, bands and result side by side. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]

_COLOURS = np.array(
    [(13, 8, 60), (84, 15, 109), (160, 44, 96), (222, 86, 55), (249, 155, 30), (252, 244, 160)], np.float64
)
"""Dark violet to pale yellow; its lightness rises evenly, so it reads without colour too."""

_GAP, _HEAD = 6, 18


def coloured(levels: Array) -> Array:
    """Levels of 0..1, any shape, to RGB uint8 with a last axis of 3."""
    place = np.clip(levels, 0, 1) * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(int), len(_COLOURS) - 2)
    colour = _COLOURS[below] + (place - below)[..., None] * (_COLOURS[below + 1] - _COLOURS[below])
    pixels: Array = colour.round().astype(np.uint8)
    return pixels


def over_grey(levels: Array, pixels: Array, strength: float = 0.6) -> Array:
    """Levels (height, width) in colour over uint8 pixels (height, width, channels) in grey."""
    grey = np.squeeze(pixels).astype(np.float64)
    grey = grey.mean(-1) if grey.ndim == 3 else grey
    mixed = (1 - strength) * grey[..., None] + strength * coloured(levels)
    result: Array = mixed.round().astype(np.uint8)
    return result


def sheet(rows: Sequence[Sequence[Array]], titles: Sequence[str], *, side: int = 224) -> Image.Image:
    """Pictures (height, width, 3), uint8, in rows under one line of titles."""
    width = len(titles) * (side + _GAP) + _GAP
    height = _HEAD + len(rows) * (side + _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (side + _GAP), 4), title, fill="black")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(np.squeeze(picture)).convert("RGB").resize((side, side))
            canvas.paste(shown, (_GAP + column * (side + _GAP), _HEAD + _GAP + row * (side + _GAP)))
    return canvas
