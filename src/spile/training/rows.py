"""Which rows are learnt from and which measure, and in what order they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.data import Batch, Samples, Skipped, Source, Stream, batches, open_source
from spile.data.samples import RecordView
from spile.errors import DataError, TrainingError
from spile.fitting import LabelledBatch
from spile.models import LoadedModel
from spile.pipeline import BadSampleLimit
from spile.probing.folds import split_names
from spile.probing.rows import draw, split_rows

Rows = npt.NDArray[np.intp]
Label = str | int


@dataclass(frozen=True, eq=False)
class _Column:
    """The records of a source, as a store shows them."""

    labels: Any
    splits: Any
    groups: Any

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingRows:
    """Positions in the source, disjoint."""

    labelled: Rows
    unlabelled: Rows
    """Learnt from without their labels, where a target can."""
    validation: Rows
    """Decides when to stop; empty where nothing does."""
    test: Rows
    """Only measures."""
    classes: tuple[Label, ...]
    codes: npt.NDArray[np.int64]
    """(n,) of every row of the source; -1 without a label, ``len(classes)`` for a class not learnt."""
    unseen: tuple[Label, ...] = ()
    """Classes of test rows alone. No answer for them is right."""

    @property
    def train(self) -> Rows:
        """All rows that are learnt from."""
        return np.concatenate([self.labelled, self.unlabelled])


def open_rows(data: Any) -> Source:
    """The data, if its samples can be read in any order."""
    source = open_source(data)
    if isinstance(source, Stream):
        raise DataError(
            f"{source.name} is a stream of batches, and training reads samples in an order of its own: pass "
            "its dataset, a folder, a manifest or arrays (x, y). In your own loop use spile.supervise"
        )
    return source


def choose_rows(
    source: Source, *, shots: int | None, validate: bool, seed: int, unlabelled: bool
) -> TrainingRows:
    """Training and test rows as `spile.transfer` makes them, from the data's splits or a fifth set aside.

    With `shots`, that many rows of every class keep their label; the other training rows are unlabelled (they
    never measure). With `validate`, a fifth of the labelled rows is set aside to decide when to stop.
    """
    records = list(source.records)
    labels = [record.label for record in records]
    _check(labels, source.name)
    column = _Column(
        _array(labels), _array([r.split for r in records]), _optional([r.group for r in records])
    )
    split = split_rows(column, shots=None, seed=seed)
    kept = split.train
    if shots is not None:
        kept = draw(column.labels[kept], kept, shots, seed)
    validation: Rows = np.empty(0, np.intp)
    if validate:
        inner = _Column(column.labels[kept], None, None if column.groups is None else column.groups[kept])
        part = split_rows(inner, shots=None, seed=seed)
        kept, validation = kept[part.train], kept[part.test]
    classes = _ordered({labels[i] for i in kept})
    numbers: dict[Any, int] = {label: number for number, label in enumerate(classes)}
    codes = [numbers.get(label, -1 if label is None or label != label else len(classes)) for label in labels]
    named = split_names([record.split for record in records])
    without = [i for i, name in enumerate(named) if labels[i] is None and name in (None, "train")]
    rest = np.setdiff1d(np.concatenate([split.train, np.asarray(without, np.intp)]), [*kept, *validation])
    return TrainingRows(
        labelled=kept,
        unlabelled=rest if unlabelled else rest[:0],
        validation=validation,
        test=split.test,
        classes=classes,
        codes=np.array(codes, np.int64),
        unseen=_ordered({labels[i] for i in split.test} - set(classes)),
    )


def _ordered(labels: set[Label]) -> tuple[Label, ...]:
    return tuple(sorted(labels, key=lambda label: (isinstance(label, str), label)))


def _check(labels: Sequence[Any], name: str) -> None:
    if any(isinstance(label, frozenset) for label in labels):
        raise TrainingError(
            f"{name}: samples have several labels, and spile.train learns one class a sample. Use "
            "spile.transfer, or spile.supervise in your own loop"
        )
    if any(isinstance(label, float) and label == label for label in labels):
        raise TrainingError(
            f"{name}: the labels are fractional numbers, and spile.train learns classes. For regression use "
            "spile.supervise(..., task='regression') in your own loop"
        )


def _array(values: Sequence[Any]) -> npt.NDArray[Any]:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def _optional(values: Sequence[Any]) -> npt.NDArray[Any] | None:
    return _array(values) if any(value is not None for value in values) else None


def epoch_order(
    labelled: int, unlabelled: int, *, batch_size: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Positions of one epoch, (batches, rows a batch): 0 up to `labelled` have labels, those after have not.

    A permutation made of (seed, epoch) alone; what does not fill a batch is left out, unless it is all there
    is. With unlabelled rows, half of every batch has labels: an epoch is one pass over the more numerous
    kind, and the other is gone through several times, shuffled anew each time (as in FixMatch, Sohn et al.
    2020).
    """
    rng = np.random.default_rng([seed, epoch])
    if not unlabelled:
        width = min(batch_size, labelled)
        count = labelled // width
        return rng.permutation(labelled)[: count * width].reshape(count, width)
    half = max(1, batch_size // 2)
    count = max(1, max(labelled, unlabelled) // half)
    first = _cycled(labelled, count * half, rng).reshape(count, half)
    second = labelled + _cycled(unlabelled, count * half, rng).reshape(count, half)
    return np.concatenate([first, second], axis=1)


def _cycled(length: int, wanted: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    rounds = [rng.permutation(length) for _ in range(-(-wanted // length))]
    return np.concatenate(rounds)[:wanted]


@dataclass(frozen=True, eq=False)
class Reader:
    """Batches of a source, with class numbers.

    Reading raises `DataError` where more than the share `max_bad` of the rows cannot be read.
    """

    source: Source
    rows: TrainingRows
    loaded: LoadedModel
    batch_size: int
    seed: int
    max_bad: float = 0.01
    skipped: dict[int, Skipped] = field(default_factory=dict)
    """What could not be read so far, by its position in the source."""
    _limit: BadSampleLimit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        total = sum(map(len, (self.rows.train, self.rows.validation, self.rows.test)))
        limit = BadSampleLimit(self.max_bad, total, skipped=0, kept=None)
        object.__setattr__(self, "_limit", limit)

    @property
    def batches(self) -> int:
        """An epoch."""
        return len(self._order(0))

    @property
    def width(self) -> int:
        """Rows a batch."""
        return int(self._order(0).shape[1])

    def train(self, epoch: int) -> Iterator[LabelledBatch]:
        """The training batches of an epoch."""
        order, train = self._order(epoch), self.rows.train
        hidden = np.arange(len(train)) >= len(self.rows.labelled)
        for batch in self._read(train[order.ravel()], order.shape[1]):
            at = order.ravel()[list(batch.positions)]
            codes = np.where(hidden[at], -1, self.rows.codes[train[at]])
            yield LabelledBatch(batch.inputs, codes, at)

    def measuring(self, rows: Rows) -> Callable[[], Iterator[LabelledBatch]]:
        """What reads `rows` in order."""

        def read() -> Iterator[LabelledBatch]:
            for batch in self._read(rows, self.batch_size):
                at = np.asarray(batch.positions, np.int64)
                yield LabelledBatch(batch.inputs, self.rows.codes[rows[at]], at)

        return read

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        sizes = len(self.rows.labelled), len(self.rows.unlabelled)
        return epoch_order(*sizes, batch_size=self.batch_size, seed=self.seed, epoch=epoch)

    def _read(self, positions: Rows, width: int) -> Iterator[Batch]:
        """Batches of these samples; a sample may stand there twice. What is unreadable is noted."""
        records, read = self.source.records, self.source.read
        view = RecordView(len(positions), lambda p: records[int(positions[p])])
        chosen = Samples(self.source.name, self.source.kind, view, lambda p: read(int(positions[p])))
        preprocessing = None if self.source.kind == "array" else self.loaded.preprocessing
        reading = batches(chosen, preprocessing, batch_size=width, tokenizer=self.loaded.tokenize)
        for batch in reading:
            self._note(batch, positions)
            if batch.records:
                yield batch

    def _note(self, batch: Batch, positions: Rows) -> None:
        """Every sample counts once, however many epochs read it."""
        found = {int(positions[bad.position]): bad for bad in batch.skipped}
        new = {at: replace(bad, position=at) for at, bad in found.items() if at not in self.skipped}
        self.skipped.update(new)
        self._limit.count(replace(batch, skipped=tuple(new.values())))
