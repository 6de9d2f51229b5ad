"""Samples handed over as Python objects: arrays, lists, and datasets with ``__getitem__`` and ``__len__``."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spile.data.folders import has_image_suffix, open_files
from spile.data.images import read_image
from spile.data.samples import Columns, Samples, as_label, restate, to_numpy
from spile.data.source import BadSample, Kind, Label, Record
from spile.errors import DataError

INPUT_KEYS = ("image", "images", "pixel_values", "text", "data", "x", "X")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
ID_KEYS = ("id", "ids")

_TRIES = 16
"""How many samples of a dataset are tried before it is called unreadable."""


def open_array(array: Any, *, name: str | None = None) -> Samples:
    """A NumPy array or tensor whose first axis counts the samples.

    uint8 is images: (n, h, w[, channels]) from NumPy, (n, channels, h, w) from torch. Other numbers are taken
    as ready.
    """
    values = to_numpy(array)
    name = name or f"{values.dtype} array of shape {values.shape}"
    if values.ndim == 0 or len(values) == 0:
        raise DataError(f"{name} holds no samples")
    if values.dtype == np.uint8 and values.ndim == 4 and hasattr(array, "detach"):
        values = np.moveaxis(values, 1, -1)
    pictures = values.ndim == 3 or (values.ndim == 4 and values.shape[-1] in (1, 3, 4))
    records = [Record(str(position)) for position in range(len(values))]
    if values.dtype == np.uint8 and pictures:
        return Samples(name, "image", records, lambda position: read_image(values[position]))
    if values.dtype != np.uint8 and values.dtype.kind in "biuf":
        return Samples(name, "array", records, lambda position: values[position])
    raise DataError(
        f"{name} is neither images, uint8 (n, height, width[, 1, 3 or 4]), nor ready inputs, which are "
        "float. Type: array.astype('float32')"
    )


def open_arrays(arrays: Mapping[str, Any], *, name: str) -> Samples:
    """Arrays by name: the inputs under images, data, x or X, and perhaps labels or y, and ids."""
    inputs, labels, ids = (_first(arrays, keys) for keys in (INPUT_KEYS, LABEL_KEYS, ID_KEYS))
    if inputs is None:
        raise DataError(
            f"{name} has the arrays {', '.join(map(repr, arrays))}; needed: one of "
            f"{', '.join(map(repr, INPUT_KEYS))}. Several inputs go as (arrays, labels) or (arrays,)"
        )
    samples = open_array(inputs, name=name)
    return restate(samples, Columns.of(labels=labels, ids=ids))


def open_inputs(arrays: Mapping[str, Any]) -> Samples:
    """Several inputs of one model, by name: a sample is a dict of what each array holds at its position."""
    values = {key: to_numpy(array) for key, array in arrays.items()}
    name = "arrays " + ", ".join(map(repr, values))
    lengths = {len(array) if array.ndim else 0 for array in values.values()}
    if len(lengths) != 1:
        raise DataError(f"{name} have {', '.join(map(str, sorted(lengths)))} samples; needed: equally many")
    (length,) = lengths
    if not length:
        raise DataError(f"{name} hold no samples")
    records = [Record(str(position)) for position in range(length)]
    return Samples(name, "array", records, lambda at: {key: array[at] for key, array in values.items()})


def open_npz(file: Path) -> Samples:
    """An ``.npz`` archive with the arrays that `open_arrays` takes."""
    try:
        # NumPy leaves a file that is no archive open.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            wanted = [key for key in archive.files if key in INPUT_KEYS + LABEL_KEYS + ID_KEYS]
            arrays = {key: archive[key] for key in wanted or archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {str(file)!r}: {error}") from error
    return open_arrays(arrays, name=str(file))


def open_list(items: list[Any], *, max_pixels: int) -> Samples:
    """A list of image files, texts, Pillow images, arrays, or (input, label) pairs.

    Pairs of an image file's name and its label are what torchvision's ``ImageFolder`` has as its `samples`.
    """
    if not items:
        raise DataError("the list holds no samples")
    if all(isinstance(item, Path) for item in items) or _are_image_files(items):
        return open_files(items, max_pixels=max_pixels)
    if all(isinstance(item, tuple) and len(item) == 2 for item in items):
        names = [name for name, _ in items]
        if _are_image_files(names):
            labels = Columns(labels=[as_label(label) for _, label in items])
            return restate(open_files(names, max_pixels=max_pixels), labels)
    return open_dataset(items, name=f"list of {len(items)}", max_pixels=max_pixels)


def _are_image_files(names: list[Any]) -> bool:
    """Whether `names` are strings that name image files. Raises `DataError` where only some of them do."""
    if not all(isinstance(name, str) for name in names):
        return False
    files = [name for name in names if has_image_suffix(name) and Path(name).is_file()]
    paths = all(map(has_image_suffix, names))
    if files and paths:  # the missing ones become bad samples
        return True
    if files or paths:
        known = set(files)
        other = next(name for name in names if name not in known)
        raise DataError(
            f"the list looks like image files, but {other[:80]!r} is none. "
            "Give image files only, or texts only."
        )
    return False


def open_dataset(dataset: Any, *, name: str | None = None, max_pixels: int) -> Samples:
    """An object with ``__getitem__`` and ``__len__`` whose items are x, (x, y) or dicts: a torch `Dataset`.

    Labels are known once a sample has been read: `read` completes its record. The dataset is asked for one
    item at a time, for few are safe to ask from several threads.
    """
    name = name or f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    if len(dataset) == 0:
        raise DataError(f"{name} holds no samples")
    records = [Record(str(position)) for position in range(len(dataset))]
    lock = threading.Lock()

    def fetch(position: int) -> tuple[Any, Label, Kind]:
        with _failing_as_bad_sample():
            with lock:
                item = dataset[position]
            value, label = split_item(item)
            return value, label, _kind_of(value)

    kind = _probe(name, fetch, len(dataset))

    def read(position: int) -> Any:
        value, label, found = fetch(position)
        if label is not None:
            records[position] = Record(str(position), label)
        if found != kind:
            raise BadSample(f"expected {kind} as in the first sample, got {found}")
        with _failing_as_bad_sample():
            return _convert(value, kind, max_pixels)

    return Samples(name, kind, records, read, labels_from_reading=True)


def split_item(item: Any) -> tuple[Any, Label]:
    """The input and the label of one item of a dataset. Raises `DataError` for an item of another form."""
    if isinstance(item, Mapping):
        value = _first(item, INPUT_KEYS)
        if value is None:
            raise DataError(
                f"an item has the keys {', '.join(map(repr, item))}; needed: one of {', '.join(INPUT_KEYS)}"
            )
        return value, as_label(_first(item, LABEL_KEYS))
    if isinstance(item, tuple):
        if len(item) not in (1, 2):
            raise DataError(f"an item is a tuple of {len(item)}; needed: x, (x, y) or a dict")
        return item[0], as_label(item[1]) if len(item) == 2 else None
    return item, None


@contextmanager
def _failing_as_bad_sample() -> Iterator[None]:
    try:
        yield
    except BadSample:
        raise
    except DataError as error:
        raise BadSample(str(error)) from error
    except Exception as error:
        raise BadSample(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _probe(name: str, fetch: Callable[[int], tuple[Any, Label, Kind]], length: int) -> Kind:
    """The kind of the first sample that can be read."""
    reasons = []
    for position in range(min(length, _TRIES)):
        try:
            return fetch(position)[2]
        except BadSample as bad:
            reasons.append(str(bad))
    raise DataError(
        f"{name}: none of the first {len(reasons)} samples can be read. The first one: {reasons[0]}"
    )


def _kind_of(value: Any) -> Kind:
    if isinstance(value, str):
        return "text"
    if isinstance(value, (Image.Image, bytes, Path)) or _is_pixels(value):
        return "image"
    if hasattr(value, "shape") or isinstance(value, (int, float)):
        return "array"
    raise DataError(
        f"a sample is a {type(value).__module__}.{type(value).__qualname__}; "
        "allowed: a Pillow image, path, bytes, array, tensor or string"
    )


def _is_pixels(value: Any) -> bool:
    return str(getattr(value, "dtype", "")).endswith("uint8") and len(value.shape) in (2, 3)


def _convert(value: Any, kind: Kind, max_pixels: int) -> Any:
    if kind == "text":
        return value
    if kind == "array":
        return to_numpy(value)
    return read_image(_pixels(value) if hasattr(value, "shape") else value, max_pixels=max_pixels)


def _pixels(value: Any) -> NDArray[Any]:
    pixels = to_numpy(value)
    is_torch_image = hasattr(value, "detach") and pixels.ndim == 3  # torch puts channels first
    return np.moveaxis(pixels, 0, -1) if is_torch_image else pixels


def _first(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((mapping[key] for key in keys if mapping.get(key) is not None), None)
