"""Pictures for a run's report: thumbnails of samples, and where in an image the network is active."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from spile.augmentation.pictures import coloured
from spile.backend import backend_of
from spile.data import BadSample, Source, Stream
from spile.models import LoadedModel
from spile.preprocessing import ImagePreprocessing
from spile.resolution import Point
from spile.taps import tap as make_tap

Array = npt.NDArray[Any]

THUMBNAIL = 96
MAP = 224


def thumbnail(source: Source | Stream, position: int, folder: Path) -> str | None:
    """Save a small picture of one sample; its path relative to the run, ``None`` where it is no image."""
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
    loaded: LoadedModel,
    points: Sequence[Point],
    images: Sequence[tuple[str, Array]],
    folder: Path,
    *,
    prefix: str,
) -> list[dict[str, Any]]:
    """Draw where each point is active in each image, as the report's ``maps``.

    `images` are titles with uint8 pixels (height, width, channels), already of the model's input size. A map
    is the length of the channel vector at each cell, from the lowest (dark) to the highest (bright) of that
    image; a cell is drawn as a square over the pixels that it would cover if the map were spread evenly,
    which is not quite where its receptive field lies. `prefix` begins the names of the files.
    """
    if not points or not images or not isinstance(loaded.preprocessing, ImagePreprocessing):
        return []
    batch = np.stack([pixels for _, pixels in images])
    backend = backend_of(loaded.model)
    example = backend.example(batch[:2], preprocessing=loaded.preprocessing, model=loaded.model)
    tapped = make_tap(loaded, [point.address for point in points], pool=None, example=example)
    with closing(tapped):
        engine = backend.engine(tapped, preprocessing=loaded.preprocessing, precision="float32")
        found = engine(batch)
        strengths = {point.name: _strength(found[point.name], point) for point in tapped.points}
    return [
        {
            "title": title,
            "picture": _save(Image.fromarray(np.squeeze(pixels)), folder / f"{prefix}-{index}.png"),
            "levels": [
                {
                    "point": name,
                    "picture": _save(_heat(cells[index], pixels), folder / f"{prefix}-{index}-{level}.png"),
                    "note": f"{cells.shape[1]} × {cells.shape[2]} cells",
                }
                for level, (name, cells) in enumerate(strengths.items())
            ],
        }
        for index, (title, pixels) in enumerate(images)
    ]


def _strength(values: Array, point: Point) -> Array:
    """(samples, height, width) lengths of the channel vectors."""
    axis = (point.layout or "BCYX").replace("B", "").index("C") + 1
    lengths: Array = np.sqrt(np.square(values.astype(np.float64)).sum(axis))
    return lengths


def _heat(strength: Array, pixels: Array) -> Image.Image:
    """The cells in colour over the image in grey."""
    low, high = float(strength.min()), float(strength.max())
    level = (strength - low) / (high - low) if high > low else np.zeros_like(strength)
    heat = Image.fromarray(coloured(level))
    grey = Image.fromarray(np.squeeze(pixels)).convert("L").convert("RGB")
    size = _shown(pixels)
    return Image.blend(
        grey.resize(size, Image.Resampling.BICUBIC), heat.resize(size, Image.Resampling.NEAREST), 0.65
    )


def _save(image: Image.Image, path: Path) -> str:
    """Save a picture at the size it is shown in; returns its path relative to the run."""
    shown = image.convert("RGB").resize(_shown(np.asarray(image)), Image.Resampling.BICUBIC)
    shown.save(path, optimize=True)
    return f"{path.parent.name}/{path.name}"


def _shown(pixels: Array) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    scale = MAP / max(height, width)
    return round(width * scale), round(height * scale)
