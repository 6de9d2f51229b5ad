"""Writing a store: a kill at any moment loses no sample and doubles none.

Batches are buffered, then committed. A commit is two steps: the skipped samples of its range go to the side
table, then its rows become one new fragment. Every skipped row carries how many rows the store has once its
commit is whole, and where in the source that commit ends. A resumed writer drops skipped rows that promise
more rows than there are, and goes on where the last whole commit ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spile.errors import StoreError
from spile.store import lance_io
from spile.store.arrays import Values, as_stored, label_type, to_arrow
from spile.store.lance_io import StorageOptions, one_line_errors
from spile.store.manifest import (
    COMPLETE,
    ColumnSpec,
    Manifest,
    describe,
    identities,
    require_same,
    store_schema,
)
from spile.store.reading import Store, open_store

if TYPE_CHECKING:
    import lance

    from spile.data.source import Record, Skipped

COMMIT_BYTES = 8 << 20
"""A few fragments a second at most; Lance needs several times this much memory while it writes one."""
COMMIT_SECONDS = 10.0
_SHARE_LOST = 0.02
"""A long run commits ever more rarely: a kill costs at most this share of it, and versions stay few."""

_SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("stop", pa.int64(), nullable=False),
    ]
)


def create(
    path: str | os.PathLike[str] | None,
    columns: Sequence[ColumnSpec],
    manifest: Manifest,
    *,
    storage_options: StorageOptions | None = None,
    commit_bytes: int = COMMIT_BYTES,
    commit_seconds: float = COMMIT_SECONDS,
) -> Writer:
    """A writer of a new store at `path` (a local path or a URI such as ``s3://...``), in memory for ``None``.

    Raises `StoreError` if there is something at `path` already, or it cannot be written.
    """
    names = [spec.name for spec in columns]
    if len(set(names)) < len(names):
        raise StoreError(f"Two points have the same name in {names}. Rename one: {{'my_name': address}}")
    schema = store_schema(columns, manifest)
    sink: _Sink
    if path is None:
        sink = _MemorySink(schema)
    else:
        uri = lance_io.uri_of(path)
        lance_io.require_free(uri, storage_options)
        # The side table comes first, so that whatever is found half made is known to be a store.
        side = lance_io.create_dataset(f"{uri}/{lance_io.SKIPPED}", _SKIPPED_SCHEMA, storage_options)
        sink = _LanceSink(uri, lance_io.create_dataset(uri, schema, storage_options), side, storage_options)
    return Writer(columns, sink, schema, commit_bytes=commit_bytes, commit_seconds=commit_seconds)


def resume(
    path: str | os.PathLike[str],
    columns: Sequence[ColumnSpec],
    manifest: Manifest,
    *,
    storage_options: StorageOptions | None = None,
    commit_bytes: int = COMMIT_BYTES,
    commit_seconds: float = COMMIT_SECONDS,
) -> Writer:
    """A writer that goes on at its `next_position` with the store at `path`.

    Raises `FingerprintMismatch` if `columns` or `manifest` give other values than the store holds.
    """
    store = open_store(path, storage_options=storage_options)
    stored = describe(store.dataset.schema, store.path or "")
    require_same(
        str(store.path),
        {**stored.manifest.fingerprinted, "columns": stored.created},
        {**manifest.fingerprinted, "columns": identities(columns)},
    )
    side = lance_io.open_dataset(f"{store.path}/{lance_io.SKIPPED}", storage_options)
    sink = _LanceSink(str(store.path), store.dataset, side, storage_options)
    with one_line_errors("resume", str(store.path)):
        next_position = sink.recover()
    return Writer(
        columns,
        sink,
        store.dataset.schema,
        rows=len(store),
        skipped=len(store.skipped),
        next_position=next_position,
        complete=stored.complete,
        commit_bytes=commit_bytes,
        commit_seconds=commit_seconds,
    )


class Writer:
    """Appends batches to a store; made by `create` or `resume`.

    Attributes: `next_position`, the source position to read next; `rows` and `skipped`, samples so far (with
    those not yet committed); `complete`, whether the store was finished before, so that there is nothing left
    to do.
    """

    def __init__(
        self,
        columns: Sequence[ColumnSpec],
        sink: _Sink,
        schema: pa.Schema,
        *,
        commit_bytes: int,
        commit_seconds: float,
        rows: int = 0,
        skipped: int = 0,
        next_position: int = 0,
        complete: bool = False,
    ) -> None:
        self.rows, self.skipped, self.next_position, self.complete = rows, skipped, next_position, complete
        self._columns = {spec.name: spec for spec in columns}
        self._sink, self._schema = sink, schema
        stored = describe(schema, "").columns
        self._arrow_names = [stored[name].arrow_name for name in self._columns]
        self._label_type: pa.DataType | None = schema.field("label").type if "label" in schema.names else None
        self._commit_bytes, self._commit_seconds = commit_bytes, commit_seconds
        self._started = self._committed = time.monotonic()
        self._samples: list[tuple[int, Record]] = []
        row_bytes = sum(spec.width * spec.dtype_bytes for spec in columns)
        self._blocks = {spec.name: _Block(spec, commit_bytes // row_bytes + 1) for spec in columns}
        self._skipped: list[Skipped] = []
        self._bytes = 0

    def append(
        self,
        records: Sequence[Record],
        positions: Sequence[int],
        arrays: Mapping[str, Values | Sequence[Values]],
        skipped: Sequence[Skipped] = (),
        *,
        stop: int,
    ) -> None:
        """Add one batch, which keeps or skips each source position from `next_position` to `stop`.

        `arrays` holds (n, *shape) for every column, and is copied. Commits when enough has come together.
        Raises `StoreError`, with nothing of this batch added, where a value is not finite or overflows.
        """
        self._require_whole(positions, skipped, stop)
        if records:
            self._require_columns(arrays)
            ids = [record.id for record in records]
            values = {name: to_arrow(spec, arrays[name], ids) for name, spec in self._columns.items()}
            self._samples.extend(zip(positions, records, strict=True))
            for name, array in values.items():
                self._blocks[name].add(array)
            self._bytes += sum(array.nbytes for array in values.values())
        self._skipped.extend(skipped)
        self.rows += len(records)
        self.skipped += len(skipped)
        self.next_position = stop
        if self._bytes >= self._commit_bytes or self._due():
            self.commit()

    def commit(self) -> None:
        """Make what was appended so far visible and lasting. Call it also before giving up."""
        if self._skipped:
            self._sink.write_skipped(self._skipped_table())
            self._skipped.clear()
        if self._samples:
            self._sink.write_rows(self._rows_table())
            self._samples.clear()
            for block in self._blocks.values():
                block.clear(reuse=self._sink.copies)
        self._bytes = 0
        self._committed = time.monotonic()

    def finish(self) -> Store:
        """Commit the rest, mark the store as complete, and open it."""
        self.commit()
        store = self._sink.finish()
        if len(store) != self.rows:
            raise lance_io.another_writer(store.path or "memory")
        self.complete = True
        return store

    def _due(self) -> bool:
        now = time.monotonic()
        interval = max(self._commit_seconds, _SHARE_LOST * (now - self._started))
        return now - self._committed >= interval

    def _require_whole(self, positions: Sequence[int], skipped: Sequence[Skipped], stop: int) -> None:
        if self.complete:
            raise StoreError(
                "This store is complete: nothing can be appended. store.adding(...) adds columns"
            )
        seen = sorted([*positions, *(sample.position for sample in skipped)])
        if seen != list(range(self.next_position, stop)) or list(positions) != sorted(positions):
            raise StoreError(
                f"A batch must keep or skip every position from {self.next_position} to {stop - 1} once, in "
                f"order; it keeps {list(positions)} and skips {[sample.position for sample in skipped]}"
            )

    def _require_columns(self, arrays: Mapping[str, Any]) -> None:
        if arrays.keys() != self._columns.keys():
            raise StoreError(
                f"A batch has the columns {sorted(arrays)}; the store has {sorted(self._columns)}"
            )

    def _skipped_table(self) -> pa.Table:
        columns = zip(
            *((s.position, s.id, s.reason, self.rows, self.next_position) for s in self._skipped), strict=True
        )
        return pa.table([list(column) for column in columns], schema=_SKIPPED_SCHEMA)

    def _rows_table(self) -> pa.Table:
        """The buffered rows; without a label column as long as no sample has had a label."""
        positions, records = zip(*self._samples, strict=True)
        ids = [record.id for record in records]
        labels = [record.label for record in records]
        self._label_type = label_type(labels, ids, self._label_type)
        data = {
            "id": pa.array(ids, pa.string()),
            "position": pa.array(positions, pa.int64()),
            "split": pa.array([record.split for record in records], pa.string()),
            "group": pa.array([record.group for record in records], pa.string()),
        }
        for arrow_name, block in zip(self._arrow_names, self._blocks.values(), strict=True):
            data[arrow_name] = block.rows()
        fields = [self._schema.field(name) for name in data]
        if self._label_type is not None:
            stored = [as_stored(label, self._label_type) for label in labels]
            data["label"] = pa.array(stored, self._label_type)
            fields.append(pa.field("label", self._label_type))
        return pa.table(data, schema=pa.schema(fields, metadata=self._schema.metadata))


class _Block:
    """The rows of one column that wait for a commit.

    Those of a fixed width lie in one piece of memory that every commit reuses: many small pieces among the
    large, short-lived ones of a running model would scatter the heap, and memory use would grow with the run.
    """

    def __init__(self, spec: ColumnSpec, capacity: int) -> None:
        self._spec, self._capacity = spec, capacity
        self._fixed: Values | None = None
        self._used = 0
        self._varying: list[pa.Array] = []

    def add(self, array: pa.Array) -> None:
        """Copy the rows of `array`, which `to_arrow` made."""
        if self._spec.variable:
            self._varying.append(array)
            return
        needed = self._used + len(array)
        if self._fixed is None or needed > len(self._fixed):
            larger = np.empty((max(needed, self._capacity + len(array)), self._spec.width), self._spec.dtype)
            if self._fixed is not None:
                larger[: self._used] = self._fixed[: self._used]
            self._fixed = larger
        self._fixed[self._used : needed] = array.flatten().to_numpy().reshape(len(array), -1)
        self._used = needed

    def rows(self) -> pa.Array | pa.ChunkedArray:
        """All rows, without a copy."""
        if self._fixed is None:
            return pa.chunked_array(self._varying)
        flat = pa.array(self._fixed[: self._used].reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, type=self._spec.arrow_type)

    def clear(self, *, reuse: bool) -> None:
        """Forget the rows; the memory is kept for the next ones if `reuse`."""
        self._varying = []
        self._used = 0
        if not reuse:
            self._fixed = None


class _Sink(Protocol):
    """Where a writer's commits go. `write_skipped` comes before the `write_rows` of the same commit."""

    copies: bool
    """Rows that were written may change afterwards."""

    def write_skipped(self, skipped: pa.Table) -> None: ...

    def write_rows(self, rows: pa.Table) -> None: ...

    def finish(self) -> Store: ...


class _MemorySink:
    copies = False

    def __init__(self, schema: pa.Schema) -> None:
        self._rows, self._skipped = [schema.empty_table()], [_SKIPPED_SCHEMA.empty_table()]

    def write_skipped(self, skipped: pa.Table) -> None:
        self._skipped.append(skipped)

    def write_rows(self, rows: pa.Table) -> None:
        self._rows.append(rows.combine_chunks())

    def finish(self) -> Store:
        rows = pa.concat_tables(self._rows, promote_options="default")
        if "label" not in rows.column_names:
            rows = rows.append_column(_NO_LABELS, pa.nulls(len(rows), _NO_LABELS.type))
        rows = rows.replace_schema_metadata({**rows.schema.metadata, **COMPLETE})
        return Store(rows, pa.concat_tables(self._skipped))


class _LanceSink:
    copies = True

    def __init__(
        self,
        uri: str,
        dataset: lance.LanceDataset,
        side: lance.LanceDataset,
        storage_options: StorageOptions | None,
    ) -> None:
        self._uri, self._dataset, self._side, self._storage_options = uri, dataset, side, storage_options

    def write_skipped(self, skipped: pa.Table) -> None:
        with one_line_errors("write to", self._uri):
            self._side = lance_io.append_rows(self._side, skipped, self._storage_options)

    def write_rows(self, rows: pa.Table) -> None:
        with one_line_errors("write to", self._uri):
            if "label" in rows.column_names and "label" not in self._dataset.schema.names:
                self._dataset.add_columns(rows.schema.field("label"))
            self._dataset = lance_io.append_rows(self._dataset, rows, self._storage_options)

    def recover(self) -> int:
        """Drop what a killed commit left behind; the source position that the last whole commit ended at."""
        rows = self._dataset.count_rows()
        promised = self._side.to_table(columns=["rows", "stop"])
        stops = promised.filter(pc.less_equal(promised["rows"], rows))["stop"]
        if len(stops) < len(promised):
            self._side.delete(f"rows > {rows}")
        last: int = (
            self._dataset.take([rows - 1], columns=["position"])["position"][0].as_py() if rows else -1
        )
        ends: list[int] = stops.to_pylist()
        return max([last + 1, *ends])

    def finish(self) -> Store:
        if not describe(self._dataset.schema, self._uri).complete:
            with one_line_errors("finish", self._uri):
                if "label" not in self._dataset.schema.names:
                    self._dataset.add_columns(_NO_LABELS)
                self._dataset.update_schema_metadata(COMPLETE)
                lance_io.drop_old_versions(self._dataset)
                lance_io.drop_old_versions(self._side)
        return open_store(self._uri, storage_options=self._storage_options)


_NO_LABELS = pa.field("label", pa.string())
