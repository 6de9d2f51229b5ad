"""Hugging Face `datasets`: columns and class names are taken from its features."""

from __future__ import annotations

import sys
from typing import Any

from spile.data.images import Pixels, read_image
from spile.data.samples import Samples, as_label
from spile.data.sequences import INPUT_KEYS, LABEL_KEYS, open_dataset
from spile.data.source import BadSample, Kind, Record
from spile.errors import DataError


def is_hugging_face(data: Any) -> bool:
    """Whether `data` is a `datasets.Dataset`, told without importing that package."""
    return all(hasattr(data, name) for name in ("features", "column_names", "with_format", "cast_column"))


def open_hugging_face(dataset: Any, *, max_pixels: int) -> Samples:
    """A `datasets.Dataset` with an image or a text column, and perhaps label, split, group and id columns.

    Images are decoded here, from the file's bytes. A dataset with a transform of its own (`set_transform`) is
    taken as that transform's items. Raises `DataError` for a dataset that streams, which has no length.
    """
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"a datasets.{type(dataset).__name__} has no length. Type: list(dataset.take(1000)) for samples "
            "that fit into memory; for numbers, or images of one size, type: "
            "lambda: dataset.with_format('numpy').iter(batch_size=32)"
        )
    name = f"datasets.Dataset {dataset.info.dataset_name or ''} {dataset.split or ''}".strip()
    if len(dataset) == 0:
        raise DataError(f"{name} holds no samples")
    if dataset.format["type"] == "custom":
        return open_dataset(dataset, name=name, max_pixels=max_pixels)
    kind, column = _input_column(name, dataset.features)
    records = _records(name, dataset.with_format(None))
    inputs = dataset.with_format(None).select_columns([column])
    if kind == "text":
        return Samples(name, "text", records, lambda position: inputs[position][column] or "")
    files = inputs.cast_column(column, sys.modules["datasets"].Image(decode=False))

    def read(position: int) -> Pixels:
        file = files[position][column]
        if file is None:
            raise BadSample("no image")
        return read_image(file["path"] if file["bytes"] is None else file["bytes"], max_pixels=max_pixels)

    return Samples(name, "image", records, read)


def _input_column(name: str, features: Any) -> tuple[Kind, str]:
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    texts = [
        column
        for column, feature in features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
        and column not in (*LABEL_KEYS, "split", "group", "id")
    ]
    candidates = images or texts
    named = [column for column in candidates if column in INPUT_KEYS]
    chosen = named if len(named) == 1 else candidates
    if len(chosen) != 1:
        raise DataError(
            f"{name} has the columns {', '.join(features)}, of which {len(candidates)} can be the input"
            f"{': ' if candidates else ''}{', '.join(candidates)}; needed: one image or text column. "
            f"Type: dataset.rename_column({(candidates or list(features))[0]!r}, "
            f"{'image' if images else 'text'!r})"
        )
    return ("image" if images else "text"), chosen[0]


def _records(name: str, dataset: Any) -> list[Record]:
    features = dataset.features
    classes = [column for column, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    label = next((key for key in LABEL_KEYS if key in features), None)
    if label is None and len(classes) > 1:
        raise DataError(
            f"{name} has several label columns: {', '.join(classes)}. "
            f"Type: dataset.rename_column({classes[0]!r}, 'label')"
        )
    label = label or (classes[0] if classes else None)
    labels = [None] * len(dataset) if label is None else list(dataset[label])
    if label in classes:
        names = features[label].names
        labels = [None if value is None or value < 0 else names[value] for value in labels]
    elif label is not None and type(getattr(features[label], "feature", None)).__name__ == "ClassLabel":
        names = features[label].feature.names
        labels = [None if value is None else [names[one] for one in value] for value in labels]
    ids, splits, groups = (
        list(dataset[column]) if column in features else None for column in ("id", "split", "group")
    )
    return [
        Record(
            str(ids[i] if ids else i),
            as_label(labels[i]),
            None if splits is None else str(splits[i]),
            None if groups is None else str(groups[i]),
        )
        for i in range(len(dataset))
    ]
