"""Samples that are read by position: the one concrete `Source`, and what is done to any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from spile.data.source import Kind, Label, Record, Source, Stream
from spile.errors import DataError


@dataclass(frozen=True)
class Samples:
    """A `Source` made of its records and a function that reads the sample at a position."""

    name: str
    kind: Kind
    records: Sequence[Record]
    reader: Callable[[int], Any]
    labels_from_reading: bool = False
    """A record tells its label only once its sample has been read."""

    def read(self, position: int) -> Any:
        """Read one sample: RGB uint8 (height, width, 3), a ready array, or a string. Raises `BadSample`."""
        return self.reader(position)


class RecordView(Sequence[Record]):
    """Records made when they are asked for."""

    def __init__(self, length: int, make: Callable[[int], Record]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        positions = range(self._length)[index]
        return self._make(positions) if isinstance(positions, int) else [self._make(p) for p in positions]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a caller states about samples, one value a sample; ``None`` keeps what the data itself says."""

    labels: Sequence[Label] | None = None
    ids: Sequence[str] | None = None
    splits: Sequence[str | None] | None = None
    groups: Sequence[str | None] | None = None

    @classmethod
    def of(cls, *, labels: Any = None, ids: Any = None, splits: Any = None, groups: Any = None) -> Columns:
        """Columns from lists, arrays or tensors."""
        return cls(
            labels=None if labels is None else as_labels(labels),
            ids=None if ids is None else [as_text(value) for value in as_list(ids)],
            splits=None if splits is None else _as_strings(splits),
            groups=None if groups is None else _as_strings(groups),
        )

    def check(self, length: int) -> None:
        """Raise `DataError` unless every column has `length` values."""
        for name, values in vars(self).items():
            if values is not None and len(values) != length:
                raise DataError(f"{name} has {len(values)} values for {length} samples; give one a sample")

    def record(self, position: int, known: Record) -> Record:
        """`known`, with the stated values in place of its own."""
        given = {"labels": "label", "ids": "id", "splits": "split", "groups": "group"}
        stated = {field: getattr(self, name) for name, field in given.items()}
        return replace(
            known, **{field: values[position] for field, values in stated.items() if values is not None}
        )

    def __bool__(self) -> bool:
        return any(values is not None for values in vars(self).values())


def restate(source: Source, columns: Columns) -> Samples:
    """The same samples with the stated labels, ids, splits or groups."""
    columns.check(len(source.records))
    records = RecordView(len(source.records), lambda p: columns.record(p, source.records[p]))
    stated = columns.labels is not None
    return Samples(source.name, source.kind, records, source.read, not stated and labels_from_reading(source))


def labels_from_reading(source: Source) -> bool:
    """Whether records of `source` tell their labels only once their samples have been read."""
    return isinstance(source, Samples) and source.labels_from_reading


def select(source: Source | Stream, positions: Sequence[int]) -> Samples:
    """The samples of `source` at `positions`, in that order; ids, labels, splits and groups come along.

    Raises `DataError` for a position that is out of range or named twice, and for a stream, which cannot be
    picked from.
    """
    if not isinstance(source, Source):
        raise DataError(
            f"{source.name} is a stream of batches: samples cannot be picked from it. Pass its dataset."
        )
    chosen = [int(position) for position in positions]
    total = len(source.records)
    outside = [position for position in chosen if not 0 <= position < total]
    if outside:
        raise DataError(f"position {outside[0]} is outside {source.name}, which has positions 0..{total - 1}")
    records = RecordView(len(chosen), lambda p: source.records[chosen[p]])
    selected = Samples(
        f"{source.name}[{len(chosen)} of {total}]",
        source.kind,
        records,
        lambda p: source.read(chosen[p]),
        labels_from_reading(source),
    )
    check_ids(selected)
    return selected


def check_ids(source: Source) -> None:
    """Raise `DataError` naming the ids that more than one sample has."""
    check_unique(source.name, (record.id for record in source.records))


def check_unique(name: str, ids: Iterable[str], seen: set[str] | None = None) -> None:
    """Raise `DataError` naming the ids that stand twice in `ids`, or in `seen`, which they are added to."""
    counts = Counter(ids)
    twice = [one for one, count in counts.items() if count > 1 or (seen is not None and one in seen)]
    if twice:
        shown = ", ".join(map(repr, twice[:3])) + (f" and {len(twice) - 3} more" if len(twice) > 3 else "")
        raise DataError(f"{name}: ids must be unique, but {shown} stand for several samples. Pass ids=[...].")
    if seen is not None:
        seen.update(counts)


def as_label(value: Any) -> Label:
    """One label as a Python string, int or float; ``None`` is no label.

    Several are a set, or a list of names. Raises `DataError` for all else, and for integers over 64 bits.
    """
    if hasattr(value, "shape"):
        array = to_numpy(value)
        value = array.item() if array.size == 1 else array
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, (str, float)):
        return value
    if isinstance(value, int):
        return _within_64_bits(value)
    names = isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    if names or isinstance(value, (set, frozenset)):
        kinds = {type(one) for one in value}
        if kinds <= {str} or kinds <= {int}:
            return frozenset(map(_within_64_bits, value) if kinds == {int} else value)
    raise DataError(
        "a label is one number or one string a sample, or a set of names where it has several, got "
        f"{type(value).__name__}: {str(value)[:60]}"
    )


def fits_64_bits(value: int) -> bool:
    """Whether a store can hold `value` as an integer."""
    return -(2**63) <= value < 2**63


def _within_64_bits(value: int) -> int:
    if not fits_64_bits(value):
        raise DataError(
            f"the label {value} is an integer over 64 bits, which a store cannot hold. "
            "Give strings: labels=[str(label) for label in labels]"
        )
    return value


def as_labels(values: Any) -> list[Label]:
    """One label a sample from a list, array or tensor of shape (n,) or (n, 1).

    Of an array of 0 and 1, (n, c), one-hot rows are the numbers of their columns, and other rows are sets of
    these.
    """
    if len(getattr(values, "shape", ())) == 2 and values.shape[1] > 1:
        held = to_numpy(values)
        if held.dtype.kind in "biuf" and np.isin(held, (0, 1)).all():
            if (held.sum(axis=1) == 1).all():
                return [int(column) for column in held.argmax(axis=1)]
            return [frozenset(np.flatnonzero(row).tolist()) for row in held]
    listed = as_list(values)
    column = all(isinstance(value, list) and len(value) == 1 for value in listed)
    return [as_label(value[0] if column else value) for value in listed]


def as_text(value: Any) -> str:
    """The string of an id or a name; bytes, which TensorFlow's strings are, are read as UTF-8."""
    return value.decode("utf-8", errors="surrogateescape") if isinstance(value, bytes) else str(value)


def as_list(values: Any) -> list[Any]:
    """The Python list of a sequence, an array, or a tensor of any framework."""
    return list(to_numpy(values).tolist()) if hasattr(values, "shape") else list(values)


def to_numpy(value: Any) -> np.ndarray[Any, Any]:
    """The NumPy array of an array or tensor, whichever framework it is from, wherever it lies."""
    if hasattr(value, "detach"):
        return np.asarray(value.detach().cpu().numpy())
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def _as_strings(values: Any) -> list[str | None]:
    return [None if value is None else as_text(value) for value in as_list(values)]
