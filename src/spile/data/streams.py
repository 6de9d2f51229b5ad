"""Batches that a user's own loader makes: taken as they are, in the order they come."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol

from spile.data.parts import Parts, as_ids, as_inputs, as_targets, batch_length, is_images, split_batch
from spile.data.samples import Columns, check_unique
from spile.data.source import Batch, Kind, Label, Record
from spile.errors import DataError

_SHUFFLING = {"RandomSampler", "WeightedRandomSampler", "SubsetRandomSampler"}


class Files(Protocol):
    """Names for the samples of a stream, known before it is read."""

    @property
    def ids(self) -> Sequence[str]:
        """One a sample, in order; there may be more of them than samples."""
        ...

    def label(self, position: int, label: Label) -> Label:
        """The label of a sample in place of the one that came with its batch."""
        ...


@dataclass
class BatchStream:
    """A `Stream` over a DataLoader, a ``tf.data`` dataset, a `PyDataset`, or any iterable of batches.

    A batch is x, (x, y), (x, y, sample weights) or a dict; x is a tensor or array that the model takes as it
    is, or a dict, list or tuple of them; uint8 images in NumPy arrays are prepared first. Samples are named
    by the ids given, those that come with the batches, or their position. What can be iterated over once only
    can be read once only.
    """

    loader: Iterable[Any]
    name: str
    length: int | None = None
    columns: Columns = field(default_factory=Columns)
    kind: Kind = "array"
    files: Files | None = None
    weights: bool = True
    """Whether a batch of three is (x, y, sample weights)."""
    _begun: Iterator[Any] | None = field(default=None, init=False)
    _used_up: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_unique(self.name, self.columns.ids or (self.files.ids if self.files else ()))

    def first(self) -> Any:
        """The first batch, ``None`` if there is none; the next reading goes on from it."""
        iterator = self._start()
        batches = list(zip(range(1), iterator, strict=False))
        self._begun = chain((batch for _, batch in batches), iterator)
        return batches[0][1] if batches else None

    def batches(self) -> Iterator[Batch]:
        """Yield the user's batches, from the beginning."""
        start = 0
        seen: set[str] = set()
        for batch in self._start():
            parts = split_batch(batch, weights=self.weights)
            inputs = as_inputs(parts.inputs)
            stop = start + batch_length(inputs)
            records = self._records(parts, range(start, stop))
            if parts.ids is not None:
                check_unique(self.name, [record.id for record in records], seen)
            yield Batch(inputs, self.kind, tuple(range(start, stop)), records, start, stop)
            start = stop
        self.columns.check(start)

    def _start(self) -> Iterator[Any]:
        if self._begun is not None:
            iterator, self._begun = self._begun, None
            return iterator
        if self._used_up:
            raise DataError(
                f"{self.name} can be read once only and has been. "
                "Pass something that starts over, such as a DataLoader, or the function that makes it."
            )
        iterator = iter(self.loader)
        self._used_up = iterator is self.loader
        return iterator

    def _records(self, parts: Parts, positions: range) -> tuple[Record, ...]:
        count = len(positions)
        unlabelled = parts.targets is None or self.columns.labels is not None
        labels = [None] * count if unlabelled else as_targets(parts.targets)
        ids = None if parts.ids is None else as_ids(parts.ids)
        for name, values in (("labels", labels), ("ids", ids)):
            if values is not None and len(values) != count:
                raise DataError(f"{self.name}: a batch of {count} samples came with {len(values)} {name}")
        try:
            return tuple(
                self._record(position, labels[i], None if ids is None else ids[i])
                for i, position in enumerate(positions)
            )
        except IndexError:
            raise DataError(
                f"{self.name} has more samples than the labels, ids, splits or groups given"
            ) from None

    def _record(self, position: int, label: Label, known: str | None) -> Record:
        if self.files is not None:
            label = self.files.label(position, label)
            known = known or self.files.ids[position]
        return self.columns.record(position, Record(known or str(position), label))


def open_stream(loader: Iterable[Any], columns: Columns) -> BatchStream:
    """A user's loader as a stream. Raises `DataError` for one that shuffles: its ids would not be stable."""
    sampler, batches = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    for one in (sampler, batches, getattr(batches, "sampler", None)):
        if type(one).__name__ in _SHUFFLING or getattr(one, "shuffle", False) is True:
            raise DataError(
                f"the loader shuffles ({type(one).__name__}), so its samples would be others on every run. "
                "Type: DataLoader(..., shuffle=False); a sampler of your own needs a fixed order too"
            )
    name = f"{type(loader).__module__}.{type(loader).__qualname__}"
    if any(base.__module__.startswith("torch.") for base in type(loader).__mro__):
        return BatchStream(loader, name, length=_length(loader, sampler), columns=columns, weights=False)
    stream = BatchStream(loader, name, length=_length(loader, sampler), columns=columns)
    _begin(stream)
    return stream


def is_function(data: Any) -> bool:
    """Whether `data` is a function, which may make batches."""
    return inspect.isfunction(data) or inspect.ismethod(data) or isinstance(data, partial)


def open_function(function: Callable[[], Iterable[Any]], columns: Columns) -> BatchStream:
    """A function of no arguments that makes batches, a generator function say: called for every reading."""
    made_of = function.func if isinstance(function, partial) else function
    name = getattr(made_of, "__qualname__", type(made_of).__qualname__)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise DataError(
            f"{name} takes arguments ({error}); needed: a function of none that makes batches. "
            f"Type: lambda: {name}(...)"
        ) from None
    stream = BatchStream(_Calls(function, name), name, columns=columns)
    _begin(stream)
    return stream


def is_py_dataset(data: Any) -> bool:
    """Whether `data` gives a batch for an index: a `keras.utils.PyDataset`, or its forerunner `Sequence`."""
    owners = {(base.__module__.split(".")[0], base.__name__) for base in type(data).__mro__}
    if any(
        library in ("keras", "tf_keras") and name in ("PyDataset", "Sequence") for library, name in owners
    ):
        return True
    alike = hasattr(data, "__getitem__") and hasattr(data, "on_epoch_end")
    return alike and not any(library == "torch" for library, _ in owners)


def open_py_dataset(dataset: Any, columns: Columns) -> BatchStream:
    """A `keras.utils.PyDataset` as a stream: its batches by index, one after the other, in this process.

    ``on_epoch_end`` is not called and ``workers`` are not started. The first and the last batch are read to
    know how many samples there are. Raises `DataError` for one that shuffles or has no end.
    """
    name = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    if getattr(dataset, "shuffle", False) is True:
        raise DataError(
            f"{name} has shuffle=True, so its samples would be others on every run. Type: shuffle=False"
        )
    count = _batch_count(dataset)
    if count is None:
        raise DataError(
            f"{name} has no number of batches, so it would never end. Give it __len__ or num_batches"
        )
    stream = BatchStream(_ByIndex(dataset, count), name, columns=columns)
    first = _begin(stream)
    stream.length = first if count < 2 else first * (count - 1) + _samples_in(dataset[count - 1])
    return stream


def _batch_count(dataset: Any) -> int | None:
    try:
        count = dataset.num_batches if hasattr(type(dataset), "num_batches") else len(dataset)
    except (NotImplementedError, TypeError):
        return None
    return None if count is None else int(count)


def _samples_in(batch: Any) -> int:
    return batch_length(as_inputs(split_batch(batch).inputs))


@dataclass(frozen=True)
class _ByIndex:
    """The batches of something that is asked by their index."""

    dataset: Any
    count: int

    def __iter__(self) -> Iterator[Any]:
        return (self.dataset[index] for index in range(self.count))


@dataclass(frozen=True)
class _Calls:
    """What a function makes, made anew for every iteration."""

    function: Callable[[], Any]
    name: str

    def __iter__(self) -> Iterator[Any]:
        made = self.function()
        if not isinstance(made, Iterable):
            raise DataError(f"{self.name}() gave a {type(made).__name__}; needed: an iterable of batches")
        return iter(made)


def _begin(stream: BatchStream) -> int:
    """Read the first batch and take the stream's kind from it. Returns how many samples it has."""
    first = stream.first()
    if first is None:
        return 0
    inputs = as_inputs(split_batch(first, weights=stream.weights).inputs)
    stream.kind = "image" if is_images(inputs) else "array"
    return batch_length(inputs)


def _length(loader: Any, sampler: Any) -> int | None:
    """How many samples a DataLoader will yield; ``None`` where it does not say."""
    try:
        if getattr(loader, "drop_last", False):
            return len(loader) * int(loader.batch_size)
        return len(sampler) if loader.batch_size is not None else None
    except (TypeError, AttributeError):
        return None
