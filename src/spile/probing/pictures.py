"""Pictures for a run's report: thumbnails of samples, and where in an image three depths of the network are active."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from spile.backend import backend_of
from spile.data import BadSample, Source, Stream
from spile.data.images import apply
from spile.models import LoadedModel
from spile.preprocessing import ImagePreprocessing
from spile.resolution import Point
from spile.taps import tap as make_tap

Array = npt.NDArray[Any]

THUMBNAIL = 96
MAP = 224

_HEAT = np.array(
    [(13, 8, 60), (84, 15, 109), (160, 44, 96), (222, 86, 55), (249, 155, 30), (252, 244, 160)], np.float64
)
"""Dark violet to pale yellow; its lightness rises evenly, so it reads without colour too."""


def thumbnail(source: Source | Stream, position: int, folder: Path) -> str | None:
    """Save a small picture of one sample and return its path relative to the run; ``None`` where it is no image."""
    if isinstance(source, Stream) or source.kind != "image":
        return None
    try:
        image = Image.fromarray(np.squeeze(source.read(position)))
    except BadSample:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    name = f"sample-{position}.png"
    image.save(folder / name, optimize=True)
    return f"{folder.name}/{name}"


def three_depths(points: Sequence[Point]) -> tuple[Point, ...]:
    """An early, a middle and a late point of those that are maps, by their place in the forward pass."""
    maps = sorted((p for p in points if p.layout and "Y" in p.layout and p.path), key=lambda p: p.order)
    if len(maps) <= 3:
        return tuple(maps)
    return maps[0], maps[len(maps) // 2], maps[-1]


def activation_maps(
    loaded: LoadedModel, points: Sequence[Point], images: Sequence[tuple[str, Array]], folder: Path
) -> list[dict[str, Any]]:
    """Draw where each point is active in each image, as the report's ``maps``.

    `images` are titles with uint8 pixels (height, width, 3), already of the model's input size. A map is the length of the
    channel vector at each cell, from the lowest (dark) to the highest (bright) of that image; a cell is drawn as a square
    over the pixels that it would cover if the map were spread evenly, which is not quite where its receptive field lies.
    """
    if not points or not images or not isinstance(loaded.preprocessing, ImagePreprocessing):
        return []
    drawn = []
    batch = np.stack([pixels for _, pixels in images])
    tapped = make_tap(
        loaded, [p.address for p in points], pool=None, example=(2, batch.shape[3], *batch.shape[1:3])
    )
    engine = backend_of(loaded.model).engine(tapped, preprocessing=loaded.preprocessing, precision="float32")
    strengths = {
        name: _strength(values, point)
        for (name, values), point in zip(engine(batch).items(), tapped.points, strict=True)
    }
    tapped.close()
    for index, (title, pixels) in enumerate(images):
        levels = [
            {
                "point": name,
                "picture": _save_map(values[index], pixels, folder / f"map-{folder_index(folder)}.png"),
                "note": None,
            }
            for name, values in strengths.items()
        ]
        for level, values in zip(levels, strengths.values(), strict=True):
            level["note"] = f"{values.shape[1]} × {values.shape[2]} cells"
        picture = _save(Image.fromarray(np.squeeze(pixels)), folder / f"map-{folder_index(folder)}.png")
        drawn.append({"title": title, "picture": picture, "levels": levels})
    return drawn


def fit_to(pixels: Array, preprocessing: ImagePreprocessing) -> Array:
    """Resize and crop uint8 pixels as the model's preprocessing does."""
    return apply(pixels, preprocessing)


def folder_index(folder: Path) -> int:
    """A number that no map in the folder has yet."""
    return len(list(folder.glob("map-*.png")))


def _strength(values: Array, point: Point) -> Array:
    """(samples, height, width) lengths of the channel vectors."""
    axis = (point.layout or "BCYX").replace("B", "").index("C") + 1
    lengths: Array = np.sqrt(np.square(values.astype(np.float64)).sum(axis))
    return lengths


def _save_map(strength: Array, pixels: Array, path: Path) -> str:
    low, high = float(strength.min()), float(strength.max())
    level = (strength - low) / (high - low) if high > low else np.zeros_like(strength)
    place = level * (len(_HEAT) - 1)
    below = np.minimum(place.astype(int), len(_HEAT) - 2)
    colour = _HEAT[below] + (place - below)[..., None] * (_HEAT[below + 1] - _HEAT[below])
    size = _shown(pixels)
    heat = Image.fromarray(colour.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    grey = (
        Image.fromarray(np.squeeze(pixels)).convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)
    )
    return _save(Image.blend(grey, heat, 0.65), path)


def _save(image: Image.Image, path: Path) -> str:
    image.convert("RGB").resize(_shown(np.asarray(image)), Image.Resampling.BICUBIC).save(path, optimize=True)
    return f"{path.parent.name}/{path.name}"


def _shown(pixels: Array) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    scale = MAP / max(height, width)
    return round(width * scale), round(height * scale)
