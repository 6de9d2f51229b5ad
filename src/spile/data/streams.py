"""Batches that a user's own loader makes: taken as they are, in the order they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spile.data.samples import Columns, Label, as_labels
from spile.data.sequences import INPUT_KEYS, LABEL_KEYS
from spile.data.source import Batch, Kind, Record
from spile.errors import DataError

_SHUFFLING = {"RandomSampler", "WeightedRandomSampler", "SubsetRandomSampler"}


@dataclass
class BatchStream:
    """A `Stream` over a DataLoader, a ``tf.data`` dataset, or any iterable of batches.

    A batch is x, (x, y) or a dict; x is a tensor or array that the model takes as it is, or a dict of them.
    Samples are named by their position. What can be iterated over once only can be read once only.
    """

    loader: Iterable[Any]
    name: str
    length: int | None = None
    columns: Columns = field(default_factory=Columns)
    kind: Kind = "array"
    _used_up: bool = field(default=False, init=False)

    def batches(self) -> Iterator[Batch]:
        """Yield the user's batches, from the beginning."""
        if self._used_up:
            raise DataError(
                f"{self.name} can be read once only and has been. "
                "Pass something that starts over, such as a DataLoader."
            )
        iterator = iter(self.loader)
        self._used_up = iterator is self.loader
        start = 0
        for batch in iterator:
            inputs, labels = split_batch(batch)
            stop = start + batch_length(inputs)
            labels = [None] * (stop - start) if labels is None or self.columns.labels else as_labels(labels)
            if len(labels) != stop - start:
                raise DataError(
                    f"{self.name}: a batch of {stop - start} samples came with {len(labels)} labels"
                )
            positions = tuple(range(start, stop))
            records = tuple(self._record(p, label) for p, label in zip(positions, labels, strict=True))
            yield Batch(inputs, self.kind, positions, records, start, stop)
            start = stop
        self.columns.check(start)

    def _record(self, position: int, label: Label) -> Record:
        try:
            return self.columns.record(position, Record(str(position), label))
        except IndexError:
            raise DataError(
                f"{self.name} has more samples than the labels, ids, splits or groups given"
            ) from None


def open_stream(loader: Iterable[Any], columns: Columns) -> BatchStream:
    """A user's loader as a stream. Raises `DataError` for one that shuffles: its ids would not be stable."""
    sampler = getattr(loader, "sampler", None)
    if type(sampler).__name__ in _SHUFFLING:
        raise DataError(
            "the loader shuffles, so its samples would be others on every run. "
            "Type: DataLoader(..., shuffle=False)"
        )
    name = f"{type(loader).__module__}.{type(loader).__qualname__}"
    return BatchStream(loader, name, length=_length(loader, sampler), columns=columns)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """The inputs and the labels of a batch. Raises `DataError` for a batch of another form."""
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        inputs = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
        if "input_ids" in inputs:
            return inputs, labels
        chosen = next((inputs[key] for key in INPUT_KEYS if key in inputs), None)
        if chosen is None:
            raise DataError(
                f"a batch has the keys {', '.join(map(repr, batch))}; needed: 'input_ids' or one of "
                + ", ".join(map(repr, INPUT_KEYS))
            )
        return chosen, labels
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        inputs, labels = (*batch, None)[:2]
    else:
        inputs, labels = batch, None
    if isinstance(inputs, Mapping):
        return dict(inputs), labels
    if len(getattr(inputs, "shape", ())) == 0:
        raise DataError(
            f"a batch is {_form(batch)}; needed: x, (x, y) or a dict, where x is a tensor or array of "
            "samples. For single samples, pass the dataset itself, or a list of them."
        )
    return inputs, labels


def batch_length(inputs: Any) -> int:
    """How many samples the inputs of a batch hold."""
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    return int(first.shape[0])


def _form(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch[:4])}"
    return f"a {type(batch).__name__}"


def _length(loader: Any, sampler: Any) -> int | None:
    """How many samples a DataLoader will yield; ``None`` where it does not say."""
    try:
        if getattr(loader, "drop_last", False):
            return len(loader) * int(loader.batch_size)
        return len(sampler) if loader.batch_size is not None else None
    except (TypeError, AttributeError):
        return None
