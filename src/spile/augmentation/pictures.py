"""Pictures of what an augmenter does: image, map, bands and result side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from spile.augmentation.augmenter import Augmenter

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


def rows_of(
    augmenter: Augmenter, ids: Sequence[str], pixels: Array, labels: Any, *, epochs: Sequence[int]
) -> tuple[list[list[Array]], list[dict[str, Any]], tuple[int, int]]:
    """Of each sample its image, map, bands and results; the shares of its bands; the cells of a map."""
    canvas = augmenter.canvas
    images = canvas.from_pixels(pixels)
    samples = augmenter.samples(images, labels, ids=ids, epoch=epochs[0])
    results = [canvas.to_pixels(augmenter(images, labels, ids=ids, epoch=each).images) for each in epochs]
    threshold = augmenter.policy.threshold
    rows, shares = [], []
    for number, sample in enumerate(samples):
        row = [pixels[number], over_grey(sample.pixels, pixels[number])]
        share: dict[str, Any] = {"id": sample.id}
        if threshold is None:
            row.append(pixels[number])
        else:
            found = sample.levels(threshold)
            names = ("low", "high") if threshold.splits == 1 else ("low", "mid", "high")
            share |= {name: float(sample.areas[found == k].sum()) for k, name in enumerate(names)}
            levels = sample.on_pixels(found / threshold.splits, soft=False)
            row.append(over_grey(levels, pixels[number], 0.5))
        rows.append([*row, *(result[number] for result in results)])
        shares.append(share)
    return rows, shares, (samples[0].values.shape[0], samples[0].values.shape[1])
