"""Maps and thumbnails of a report: the right cells, and files that do not collide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import spile
from spile.data import open_source
from spile.models import as_loaded
from spile.probing import pictures


def test_maps_are_bright_where_the_layer_is_active(tmp_path: Path) -> None:
    from dataclasses import replace

    conv = nn.Conv2d(3, 1, 4, stride=4, bias=False)
    nn.init.ones_(conv.weight)
    ready = spile.ImagePreprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    loaded = replace(as_loaded(nn.Sequential(conv, nn.ReLU(), nn.Flatten())), preprocessing=ready)
    points = spile.tap(loaded.model, ["0", "1", "2"], pool=None, example=(2, 3, 16, 16)).points
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:8, 12:16] = 255  # one cell: row 1, column 3

    levels = pictures.three_depths(points)
    (drawn,) = pictures.activation_maps(loaded, levels, [("corner", pixels)], tmp_path, prefix="map")

    assert [level["point"] for level in drawn["levels"]] == ["0", "1"]
    assert drawn["levels"][0]["note"] == "4 × 4 cells"
    with Image.open(tmp_path.parent / drawn["levels"][0]["picture"]) as opened:
        shown = np.asarray(opened.convert("L"), float)
    assert shown.shape == (224, 224)
    cells = shown.reshape(4, 56, 4, 56).mean((1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (1, 3)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"map-0.png", "map-0-0.png", "map-0-1.png"}


def test_three_depths_of_many_maps() -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(7)), nn.Flatten())
    points = spile.tap(net, "all", pool=None, example=torch.zeros(2, 3, 4, 4)).points

    assert [point.name for point in pictures.three_depths(points)] == ["0", "3", "6"]


def test_thumbnails_only_shrink(tmp_path: Path) -> None:
    small, large = np.zeros((20, 20, 3), np.uint8), np.zeros((300, 150, 3), np.uint8)
    source = open_source([Image.fromarray(small), Image.fromarray(large)])

    sizes = []
    for position in (0, 1):
        with Image.open(tmp_path.parent / str(pictures.thumbnail(source, position, tmp_path))) as opened:
            sizes.append(opened.size)

    assert sizes == [(20, 20), (48, 96)]
    assert pictures.thumbnail(open_source(np.zeros((2, 3), np.float32)), 0, tmp_path) is None
