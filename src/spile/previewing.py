"""`preview`: what an augmenter does to a few samples, as one picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.augmentation import pictures
from spile.augmentation.presets import policy_named
from spile.augmenting import augment, guide
from spile.backend import backend_named
from spile.data import BadSample, Stream, open_source
from spile.data.images import apply
from spile.errors import AugmentationError, DataError
from spile.models import as_loaded
from spile.preprocessing import ImagePreprocessing

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture and what it shows."""

    path: Path
    policy: str
    at: str
    cells: tuple[int, int]
    rows: tuple[dict[str, Any], ...]
    """Of each sample its id and the share of the picture at each level."""


def preview(
    data: Any,
    model: Any,
    at: str,
    *,
    policy: str = "bylevel",
    out: str | os.PathLike[str] = "augment-preview.png",
    samples: int = 6,
    reduce: str = "l2",
    resolution: float = 1.0,
    maps: str = "guided",
    seed: int = 0,
    epoch: int = 0,
) -> Preview:
    """Draw image, map, bands and result of a few samples of `data`, spread evenly over it.

    Raises `AugmentationError`, `DataError`.
    """
    loaded = as_loaded(model)
    if not isinstance(loaded.preprocessing, ImagePreprocessing):
        raise AugmentationError("a preview needs a model that takes images, by reference: timm:resnet18")
    made = guide(loaded, at, reduce=reduce, resolution=resolution)
    canvas = backend_named(made.framework).canvas()
    augmenter = augment(made, policy_named(policy, canvas), seed=seed, maps=maps, framework=made.framework)
    ids, pixels = _chosen(data, loaded.preprocessing, samples)
    labels = np.eye(len(ids), dtype=np.float32) if augmenter.mixes else None
    epochs = (epoch, epoch + 1)
    rows, shares, cells = pictures.rows_of(augmenter, ids, pixels, labels, epochs=epochs)
    titles = ("image", f"map at {at}", "bands", f"{policy}, epoch {epoch}", f"{policy}, epoch {epoch + 1}")
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.sheet(rows, titles).save(path, optimize=True)
    return Preview(path=path, policy=policy, at=at, cells=cells, rows=tuple(shares))


def _chosen(data: Any, preprocessing: ImagePreprocessing, samples: int) -> tuple[list[str], Array]:
    source = open_source(data)
    if isinstance(source, Stream) or source.kind != "image":
        raise DataError(f"{source.name} holds no images that can be read one by one")
    count = len(source.records)
    ids, kept = [], []
    for position in np.unique(np.linspace(0, count - 1, min(samples, count)).round().astype(int)):
        try:
            kept.append(apply(source.read(int(position)), preprocessing))
        except BadSample:
            continue
        ids.append(source.records[int(position)].id)
    if not kept:
        raise DataError(f"{source.name}: not one image could be read")
    if len({each.shape for each in kept}) > 1:
        raise DataError(f"{source.name} holds images of several sizes: write --input-size 224")
    return ids, np.stack(kept)
