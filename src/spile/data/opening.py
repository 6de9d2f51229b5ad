"""One door to every kind of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from spile.data import manifests
from spile.data.demo import DEMOS, open_demo
from spile.data.folders import has_image_suffix, open_files, open_folder
from spile.data.huggingface import is_hugging_face, open_hugging_face
from spile.data.images import MAX_PIXELS
from spile.data.samples import Columns, as_text, check_ids, restate, to_numpy
from spile.data.sequences import open_array, open_arrays, open_dataset, open_inputs, open_list, open_npz
from spile.data.source import Source, Stream
from spile.data.streams import is_function, is_py_dataset, open_function, open_py_dataset, open_stream
from spile.data.tf_data import is_tf_data, open_tf_data
from spile.errors import DataError, nearest

ALLOWED = (
    "a folder, a .csv, .parquet or .npz file, 'demo:NAME', an array, (x, y), a list of images, files or "
    "texts, a torch Dataset or DataLoader, a batched tf.data.Dataset, a keras.utils.PyDataset, a Hugging "
    "Face dataset, an iterable of batches, or a function that makes one"
)


def open_source(
    data: Any,
    *,
    labels: Any = None,
    ids: Any = None,
    splits: Any = None,
    groups: Any = None,
    max_pixels: int = MAX_PIXELS,
) -> Source | Stream:
    """Open `data` of any supported kind; nothing but its listing, or the first batch, is read.

    Args:
        data: a folder of class folders, a CSV, Parquet or npz file, ``demo:NAME``, an array, ``(x, y)``, a
            dict of arrays with inputs, labels and ids, a list of images, files or texts, a torch `Dataset` or
            `DataLoader`, a batched ``tf.data.Dataset``, a `keras.utils.PyDataset`, a Hugging Face dataset, an
            iterable of batches, a function that makes one, or an opened source. uint8 arrays and Pillow
            images are images that will get the model's preprocessing; float arrays and torch tensors in
            batches are taken as ready.
        labels: one label a sample, in place of what the data says.
        ids: one unique string a sample, the same.
        splits: one split name a sample, the same.
        groups: one group name a sample, the same; a group is not parted between training and testing.
        max_pixels: image files with more pixels than this become bad samples.

    Raises `DataError` where there is nothing to read, columns are missing, ids are not unique, or lengths
    differ.
    """
    columns = Columns.of(labels=labels, ids=ids, splits=splits, groups=groups)
    opened = _open(data, columns, max_pixels)
    if isinstance(opened, Stream):
        return opened
    if columns:
        opened = restate(opened, columns)
    check_ids(opened)
    return opened


def _open(data: Any, columns: Columns, max_pixels: int) -> Source | Stream:
    if isinstance(data, Source):
        return data
    if isinstance(data, Stream):
        if columns:
            raise DataError(
                f"{data.name} is an opened stream: give labels, ids, splits and groups when opening it"
            )
        return data
    if isinstance(data, (str, Path)):
        return _open_path(str(data), max_pixels)
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        if getattr(data.dtype, "kind", None) in ("O", "T", "U"):
            return open_list(list(data), max_pixels=max_pixels)
        if getattr(data.dtype, "name", None) == "string":  # of TensorFlow
            return open_list([as_text(value) for value in to_numpy(data).ravel()], max_pixels=max_pixels)
        return open_array(data)
    if isinstance(data, tuple):
        return _open_tuple(data, max_pixels)
    if isinstance(data, list):
        return open_list(data, max_pixels=max_pixels)
    return _open_object(data, columns, max_pixels)


def _open_path(data: str, max_pixels: int) -> Source:
    if data.startswith("demo:"):
        return open_demo(data.removeprefix("demo:"))
    path = Path(data).expanduser()
    if path.is_dir():
        return open_folder(path, max_pixels=max_pixels)
    if not path.exists():
        raise DataError(_not_found(data, path))
    if path.suffix.lower() == ".npz":
        return open_npz(path)
    if path.suffix.lower() in manifests.SUFFIXES:
        return manifests.open_manifest(path, max_pixels=max_pixels)
    if has_image_suffix(path):
        return open_files([path], max_pixels=max_pixels)
    raise DataError(f"cannot tell what {data!r} is by its ending {path.suffix!r}; allowed: {ALLOWED}")


def _not_found(data: str, path: Path) -> str:
    if data in DEMOS:
        return f"no such file or folder: {data!r}. For the demo data type: demo:{data}"
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, siblings)
    hint = f" Nearest there: {', '.join(map(repr, close))}." if close else ""
    return f"no such file or folder: {data!r}.{hint} Allowed: {ALLOWED}"


def _open_tuple(data: tuple[Any, ...], max_pixels: int) -> Source:
    if 1 <= len(data) <= 2 and _are_arrays(data[0]):
        inputs = open_inputs(data[0])
        return inputs if len(data) == 1 else restate(inputs, Columns.of(labels=data[1]))
    if len(data) != 2 or isinstance(data[0], (str, bytes, Path, Image.Image)):
        return open_list(list(data), max_pixels=max_pixels)
    opened = _open(data[0], Columns(), max_pixels)
    if not isinstance(opened, Source):
        raise DataError(f"(x, y) needs an x that is an array or a list, got {opened.name}")
    return restate(opened, Columns.of(labels=data[1]))


def _open_object(data: Any, columns: Columns, max_pixels: int) -> Source | Stream:
    if any(base.__name__ == "DataFrame" for base in type(data).__mro__):
        raise DataError(
            "a DataFrame is a table, and its columns are no samples. Type: frame.to_numpy(), or with labels "
            "(frame[['a', 'b']].to_numpy(), frame['label']); for files or texts, pass the path of a CSV or "
            "Parquet file with the columns path (or text) and label"
        )
    if is_hugging_face(data) and not isinstance(data, Mapping):
        return open_hugging_face(data, max_pixels=max_pixels)
    if is_tf_data(data):
        return open_tf_data(data, columns)
    if is_py_dataset(data):
        return open_py_dataset(data, columns)
    if is_function(data):
        return open_function(data, columns)
    if _are_arrays(data):
        return open_arrays(data, name="the dict")
    if isinstance(data, Mapping):
        keys = ", ".join(map(repr, list(data)[:5]))
        raise DataError(
            f"got a {type(data).__name__} with the keys {keys}; pass one of them: data[key], or (x, y)"
        )
    if any(base.__name__ == "IterableDataset" for base in type(data).__mro__):
        raise DataError(
            "an IterableDataset yields samples, not batches. Type: DataLoader(dataset, batch_size=32)"
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return open_dataset(data, max_pixels=max_pixels)
    if isinstance(data, Iterable):
        return open_stream(data, columns)
    raise DataError(f"cannot read samples from a {type(data).__name__}; allowed: {ALLOWED}")


def _are_arrays(data: Any) -> bool:
    """Whether `data` is a dict of arrays."""
    return isinstance(data, Mapping) and bool(data) and all(hasattr(x, "dtype") for x in data.values())
