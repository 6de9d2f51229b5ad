"""Adding columns to the rows of a store."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, auto
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from spile.errors import StoreError
from spile.store.arrays import Values, to_arrow
from spile.store.manifest import ColumnSpec

if TYPE_CHECKING:
    from spile.store.reading import Store


class ColumnWriter:
    """Takes new columns in row order; they become visible all at once, in `finish`. Made by `Store.adding`.

    Lance pulls the batches while they are pushed here, so `commit` runs in a thread of its own, one batch
    behind. Left without `finish` (an exception inside ``with``, `abort`, a killed process), the store stays
    as it was.
    """

    def __init__(
        self,
        columns: Sequence[ColumnSpec],
        schema: pa.Schema,
        ids: Values,
        *,
        commit: Callable[[pa.RecordBatchReader], Store],
    ) -> None:
        self.rows = 0
        self._columns, self._schema, self._ids, self._commit = columns, schema, ids, commit
        self._queue: _Items = queue.Queue(maxsize=1)
        self._store: Store | None = None
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name="spile-add-columns", daemon=True)
        # Also when the interpreter exits: it aborts if a thread is still inside Lance by then.
        self._stop = weakref.finalize(self, _stop, self._queue, self._thread)

    def append(self, ids: Sequence[str], arrays: Mapping[str, Values | Sequence[Values]]) -> None:
        """Add the next rows: `ids` as the store has them, in its order; (n, *shape) for every new column."""
        names = [spec.name for spec in self._columns]
        if arrays.keys() != set(names):
            raise StoreError(f"A batch has the columns {sorted(arrays)}; to be added are {sorted(names)}")
        self._require_next(ids)
        values = [to_arrow(spec, arrays[spec.name], ids) for spec in self._columns]
        if len(ids):
            self._push(pa.record_batch(values, schema=self._schema))
        self.rows += len(ids)

    def finish(self) -> Store:
        """Commit the columns and open the store with them. Raises `StoreError` if rows are missing."""
        if self.rows != len(self._ids):
            self.abort()
            raise StoreError(
                f"The store has {len(self._ids)} rows, the new columns {self.rows}: nothing was added"
            )
        self._push(_End.FINISHED)
        self._thread.join()
        if self._store is None:
            raise self._failure()
        return self._store

    def abort(self) -> None:
        """Give up: the store stays as it was."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is None:
            self.abort()

    def _require_next(self, ids: Sequence[str]) -> None:
        expected = self._ids[self.rows : self.rows + len(ids)]
        for row, (given, stored) in enumerate(zip(ids, expected, strict=False), self.rows):
            if given != stored:
                raise StoreError(
                    f"Row {row} of the store is sample {stored!r}, but the new columns have {given!r} there. "
                    f"Add with the data the store was made from, in its order"
                )
        if len(ids) > len(expected):
            raise StoreError(
                f"The store ends after {len(self._ids)} rows, but sample {ids[len(expected)]!r} follows"
            )

    def _push(self, item: pa.RecordBatch | _End) -> None:
        if self._thread.ident is None:
            self._thread.start()
        if not _put(item, self._queue, self._thread):
            raise self._failure()

    def _run(self) -> None:
        try:
            self._store = self._commit(pa.RecordBatchReader.from_batches(self._schema, self._pull()))
        except Exception as error:  # raised again where the user waits
            self._error = error

    def _pull(self) -> Iterator[pa.RecordBatch]:
        while (item := self._queue.get()) is not _End.FINISHED:
            if isinstance(item, _End):
                raise StoreError("Adding columns was given up")
            yield item

    def _failure(self) -> Exception:
        return self._error or StoreError("These columns were added already")


class _End(Enum):
    FINISHED = auto()
    ABORTED = auto()


_Items = queue.Queue[pa.RecordBatch | _End]


def _put(item: pa.RecordBatch | _End, items: _Items, thread: Thread) -> bool:
    """Hand `item` to `thread`; False if it has ended, so that nobody would take it."""
    while thread.is_alive():
        try:
            items.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _stop(items: _Items, thread: Thread) -> None:
    if _put(_End.ABORTED, items, thread):
        thread.join()
