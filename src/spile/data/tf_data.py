"""``tf.data`` datasets: what they tell of themselves before they are read. TensorFlow is not imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spile.data.parts import is_images, leaves, rank, split_batch
from spile.data.samples import Columns
from spile.data.source import Kind, Label
from spile.data.streams import BatchStream
from spile.errors import DataError

_BATCHING = {"_BatchDataset", "_ParallelBatchDataset", "_PaddedBatchDataset", "_RebatchDataset"}
_SAME_SAMPLES = _BATCHING | {
    *("_MapDataset", "_ParallelMapDataset", "_PrefetchDataset", "CacheDataset", "_OptionsDataset"),
    *("_TakeDataset", "_UnbatchDataset", "_RestructuredDataset"),
}
"""Steps that keep the samples and their order; the last ones may be missing."""

_INFINITE = -1


def is_tf_data(data: Any) -> bool:
    """Whether `data` is a ``tf.data.Dataset``."""
    return any(
        base.__name__ == "DatasetV2" and base.__module__.startswith("tensorflow.")
        for base in type(data).__mro__
    )


def open_tf_data(dataset: Any, columns: Columns) -> BatchStream:
    """A batched ``tf.data.Dataset`` as a stream of NumPy arrays.

    What `keras.utils.image_dataset_from_directory` made keeps its files as ids and its folders as labels,
    also through ``map``, ``cache``, ``prefetch`` and ``take``. Raises `DataError` for single samples, for
    ragged or sparse ones, and where the samples would come in another order on every run, or for ever.
    """
    name = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    _check_order(dataset)
    files = _files(dataset)
    return BatchStream(
        _Arrays(dataset),
        name,
        length=len(files.ids) if files else _length(dataset),
        columns=columns,
        kind=_kind(dataset, name),
        files=files,
    )


@dataclass(frozen=True)
class _Arrays:
    """The batches of a dataset as NumPy arrays, which share its memory."""

    dataset: Any

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset.as_numpy_iterator())


def _kind(dataset: Any, name: str) -> Kind:
    """What the batches hold. Raises `DataError` where there are none."""
    parts = split_batch(dataset.element_spec)
    specs = [spec for part in (parts.inputs, parts.targets, parts.ids) for spec in leaves(part)]
    for spec in specs:
        if type(spec).__name__ in ("RaggedTensorSpec", "SparseTensorSpec"):
            raise DataError(
                f"{name} has batches of {type(spec).__name__.removesuffix('Spec')}s; needed: dense tensors. "
                "Ragged ones become dense with .to_tensor(), sparse ones with tf.sparse.to_dense"
            )
    first = next(leaves(parts.inputs))
    if _is_single(dataset, first, parts.targets):
        raise DataError(
            f"{name} yields single samples of shape {_shape(first)}, not batches. Type: dataset.batch(32)"
        )
    return "image" if is_images(parts.inputs) else "array"


def _is_single(dataset: Any, inputs: Any, targets: Any) -> bool:
    """Whether an element is one sample, by its axes and by the steps that made it."""
    if rank(inputs) == 0 or any(rank(target) == 0 for target in leaves(targets)):
        return True
    mapped = False  # what a function makes of a sample may be a batch
    for step in _chain(dataset):
        name = type(step).__name__
        if name in _BATCHING:
            return False
        if name in ("_UnbatchDataset", "_TensorSliceDataset") and not mapped:
            return True
        if name not in _SAME_SAMPLES:
            break
        mapped = mapped or "Map" in name
    return rank(inputs) == 3 and inputs.shape[-1] in (1, 3, 4)


def _shape(spec: Any) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in spec.shape)})"


def _check_order(dataset: Any) -> None:
    """Raise `DataError` where another run would meet other samples, or where there is no end."""
    if int(dataset.cardinality()) == _INFINITE:
        raise DataError(
            "the dataset repeats for ever. Leave .repeat() out, or type: dataset.take(NUMBER_OF_BATCHES)"
        )
    for step in _steps(dataset):
        if type(step).__name__ in ("_ShuffleDataset", "_RandomDataset") and not _is_repeatable(step):
            raise DataError(
                "the dataset shuffles, so its samples would be others on every run. Leave .shuffle(...) out; "
                "for keras.utils.image_dataset_from_directory and list_files, type: shuffle=False"
            )
        if getattr(step, "_deterministic", None) == "false":
            raise DataError(
                f"{type(step).__name__} of the dataset has deterministic=False, so its samples come in "
                "another order on every run. Leave that out"
            )
    if dataset.options().deterministic is False:
        raise DataError(
            "the dataset has the option deterministic=False, so its samples come in another order on every "
            "run. Leave that out (for tensorflow_datasets, type: shuffle_files=False)"
        )


def _is_repeatable(step: Any) -> bool:
    """Whether a random step has a seed and uses it in the same way every time."""
    again = getattr(step, "_reshuffle_each_iteration", getattr(step, "_rerandomize_each_iteration", False))
    return not again and any(int(getattr(step, seed, 0)) for seed in ("_seed", "_seed2"))


def _inputs(dataset: Any) -> Sequence[Any]:
    inputs = getattr(dataset, "_inputs", None)
    return list(inputs()) if callable(inputs) else []


def _steps(dataset: Any) -> Iterator[Any]:
    """The dataset and all that it is made of, back to the sources."""
    yield dataset
    for made_of in _inputs(dataset):
        yield from _steps(made_of)


def _chain(dataset: Any) -> Iterator[Any]:
    """The dataset, what it is made of, and so on, by the first input of each step."""
    yield dataset
    for made_of in _inputs(dataset)[:1]:
        yield from _chain(made_of)


def _length(dataset: Any) -> int | None:
    """How many samples the batches will hold; ``None`` where the dataset does not tell."""
    for step in _chain(dataset):
        if type(step).__name__ in ("_BatchDataset", "_ParallelBatchDataset", "_PaddedBatchDataset"):
            (single,) = _inputs(step)
            count, size = int(single.cardinality()), int(step._batch_size)
            if count < 0:
                return None
            return count - count % size if bool(step._drop_remainder) else count
        if type(step).__name__ not in ("_MapDataset", "_ParallelMapDataset", "_PrefetchDataset"):
            return None
    return None


@dataclass(frozen=True)
class ClassFolders:
    """The files and the classes that `keras.utils.image_dataset_from_directory` found."""

    ids: Sequence[str]
    classes: Sequence[str]

    def label(self, position: int, label: Label) -> Label:
        """The name of the folder in place of its number; what is no number of a folder stays."""
        if not isinstance(label, (int, float)) or not 0 <= label < len(self.classes):
            return label
        name = self.classes[int(label)]
        folders = self.ids[position].replace(os.sep, "/").split("/")[:-1]
        return name if name in folders else label


def _files(dataset: Any) -> ClassFolders | None:
    for step in _chain(dataset):
        files = getattr(step, "file_paths", None)
        if files is not None:
            return ClassFolders([str(file) for file in files], list(getattr(step, "class_names", None) or ()))
        if type(step).__name__ not in _SAME_SAMPLES:
            return None
    return None
