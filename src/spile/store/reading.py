"""Reading a store: samples, columns in sample order, tables, SQL."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spile.errors import MissingDependency, StoreError, nearest
from spile.store import lance_io
from spile.store.adding import ColumnWriter
from spile.store.arrays import Values, optional_values, to_numpy
from spile.store.duplicates import Duplicates, deepest, linked, near_pairs, require_radius
from spile.store.lance_io import StorageOptions
from spile.store.manifest import (
    RESERVED,
    ColumnSpec,
    Manifest,
    StoredColumn,
    column_fields,
    describe,
    require_same,
)
from spile.store.search import Metric, Neighbors, build_index, find_neighbors, require_vectors

if TYPE_CHECKING:
    import duckdb
    import pandas

BLOCK_ROWS = 8192
"""Rows read at a time, unless asked otherwise."""

_BLOCK_BYTES = 16 << 20
_READ_AHEAD = {"batch_readahead": 1, "io_buffer_size": 32 << 20}
"""Lance's own defaults read ahead by gigabytes."""


def open_store(path: str | os.PathLike[str], *, storage_options: StorageOptions | None = None) -> Store:
    """Open the store at `path`, as far as it is committed. Raises `StoreError` if there is none."""
    uri = lance_io.uri_of(path)
    dataset = lance_io.open_dataset(uri, storage_options)
    describe(dataset.schema, uri)
    side = lance_io.open_dataset(f"{uri}/{lance_io.SKIPPED}", storage_options)
    promised = side.to_table()
    skipped = promised.filter(pc.less_equal(promised["rows"], dataset.count_rows()))
    return Store(dataset, skipped, path=uri, storage_options=storage_options)


def has_store(path: str | os.PathLike[str], *, storage_options: StorageOptions | None = None) -> bool:
    """Whether there is a store at `path`, complete or not, that can be opened or resumed."""
    return lance_io.find_dataset(lance_io.uri_of(path), storage_options) is not None


class Store:
    """Activations of many samples: one row a sample, one column a point.

    ``store["layer3"]`` is a `Column`, read only when asked for its values. A store is a snapshot:
    open it again to see what was written later.
    """

    def __init__(
        self,
        dataset: Any,
        skipped: pa.Table,
        *,
        path: str | None = None,
        storage_options: StorageOptions | None = None,
    ) -> None:
        self.dataset = dataset
        """The Lance dataset, or the Arrow table of a store in memory; a point's dots are slashes there."""
        self.path = path
        """Where it is; ``None`` in memory."""
        self._storage_options = storage_options
        self._skipped = skipped
        self._description = describe(dataset.schema, path or "memory")

    @property
    def points(self) -> Mapping[str, ColumnSpec]:
        """Column name to what it holds."""
        return {name: column.spec for name, column in self._description.columns.items()}

    @property
    def manifest(self) -> Manifest:
        """How the store's values came about; ``store[name].manifest`` where a column was added later."""
        return self._description.manifest

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the values of the columns the store was created with."""
        return self._description.fingerprint

    @property
    def complete(self) -> bool:
        """Whether the extraction ran to its end."""
        return self._description.complete

    def __len__(self) -> int:
        return int(self.dataset.count_rows() if self.path else self.dataset.num_rows)

    def __contains__(self, name: object) -> bool:
        return name in self._description.columns

    def __getitem__(self, name: str) -> Column:
        columns = self._description.columns
        if name not in columns:
            raise StoreError(
                f"The store has no point {name!r}. Nearest: {', '.join(nearest(str(name), columns))}"
            )
        return Column(self.dataset, columns[name], len(self))

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        names = ", ".join(self.points)
        counts = f"{len(self)} rows, {len(self.skipped)} skipped"
        return f"Store({self.path or 'in memory'}: {counts}, {state}; points {names})"

    @cached_property
    def ids(self) -> Values:
        """(n,) strings, in sample order."""
        return np.array(self._read("id").to_pylist(), dtype=object)

    @cached_property
    def positions(self) -> Values:
        """(n,) int64, increasing: where each sample stood in its source."""
        return np.asarray(self._read("position").to_numpy())

    @cached_property
    def labels(self) -> Values | None:
        """(n,) strings, int64 or float64, or frozensets where samples have several.

        ``None`` if no sample has a label; objects if only some have.
        """
        return optional_values(self._read("label")) if "label" in self.dataset.schema.names else None

    @cached_property
    def splits(self) -> Values | None:
        """(n,) strings, or ``None`` if no sample has a split."""
        return optional_values(self._read("split"))

    @cached_property
    def groups(self) -> Values | None:
        """(n,) strings, or ``None`` if no sample has a group."""
        return optional_values(self._read("group"))

    @property
    def skipped(self) -> pa.Table:
        """The samples that could not be used: `position`, `id`, `reason`."""
        return self._skipped.select(["position", "id", "reason"])

    def neighbors(self, name: str, query: Any, k: int = 10, metric: Metric = "cosine") -> Neighbors:
        """The `k` samples nearest to each query at the point `name`; `query` is one sample's, or (q, d).

        Exact (one pass over the column), unless `index` has built an index of the same metric: then close to
        exact, and fast. ``"cosine"`` is ``1 - cos``, 1 for a vector of zeros; ``"l2"`` is the Euclidean
        distance.
        """
        rows, distances = find_neighbors(self[name], query, k, metric, self.positions)
        return Neighbors(ids=self.ids[rows], rows=rows, distances=distances)

    def near_duplicates(self, name: str | None = None, *, max_distance: float | None = None) -> Duplicates:
        """Samples that are there more than once, or nearly so, by their activations at the point `name`.

        By default the deepest point that holds one row of numbers a sample, where two pictures of one thing
        are near. The distance is ``1 - cos`` of rows less their mean; `max_distance` is by default
        0.13 of the median distance to a nearest sample (see `spile.store.duplicates`). Raises
        `StoreError` where no point fits or more than a million pairs are that near.
        """
        require_radius(max_distance)
        point = deepest(self.points) if name is None else name
        column = self[point]
        require_vectors(column)
        pairs = near_pairs(column, radius=max_distance)
        if not pairs.complete:
            raise StoreError(
                f"More than {len(pairs.rows):,} pairs of samples are nearer than {pairs.radius:.2g} at "
                f"{point!r}. Name another point, or type a smaller distance: "
                f"max_distance={pairs.radius / 10:.1g}"
            )
        return Duplicates(point, pairs, self.ids[pairs.rows], linked(len(self), pairs.rows, self.groups))

    def index(
        self, name: str, *, metric: Metric = "cosine", kind: str = "IVF_HNSW_SQ", **options: Any
    ) -> None:
        """Build an approximate index on the point `name` for `neighbors`; `kind`, `options` are Lance's."""
        if self.path is None:
            raise StoreError(
                "A store in memory has no index; its neighbors are exact. Type: extract(tap, data, path)"
            )
        build_index(self[name], metric, kind, options)

    def adding(
        self, columns: Sequence[ColumnSpec], manifest: Manifest, *, same: Sequence[str] | None = None
    ) -> ColumnWriter:
        """A writer of new columns for the rows there are; nothing already written is touched.

        The fingerprinted fields named in `same` (all by default) must be the store's own, else
        `FingerprintMismatch`.
        """
        for spec in columns:
            if spec.name in self:
                raise StoreError(f"The store has a point {spec.name!r} already. Add it under another name")
        if not self.complete:
            raise StoreError(
                "The store is not complete: finish its extraction (run it again), then add to it"
            )
        require_same(self.path or "memory", self.manifest.fingerprinted, manifest.fingerprinted, same)
        fields = column_fields(columns, taken=self.dataset.schema.names, manifest=manifest)
        return ColumnWriter(columns, pa.schema(fields), self.ids, commit=self._with_columns)

    def add(self, tap: Any, data: Any, **options: Any) -> Store:
        """Add the points of `tap` as new columns, from the data the store was made from."""
        from spile.extraction import add

        return add(self, tap, data, **options)

    def _with_columns(self, reader: pa.RecordBatchReader) -> Store:
        if self.path is None:
            table = self.dataset
            for field, column in zip(reader.schema, reader.read_all().columns, strict=True):
                table = table.append_column(field, column)
            return Store(table, self._skipped)
        with lance_io.one_line_errors("add columns to", self.path):
            latest = lance_io.open_dataset(self.path, self._storage_options)
            latest.add_columns(reader)
            lance_io.drop_old_versions(latest)
        return open_store(self.path, storage_options=self._storage_options)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """A data frame of `columns` (all by default): `id`, `position`, `label`, `split`, `group` and points.

        A point's cells are arrays of one sample's shape.
        """
        try:
            import pandas
        except ImportError:
            raise MissingDependency("pandas", extra="data", purpose="to_pandas") from None
        names = list(columns) if columns is not None else [*RESERVED, *self.points]
        return pandas.DataFrame({name: self._series(name) for name in names})

    def _series(self, name: str) -> Any:
        if name in RESERVED:
            return self._read(name).to_pandas()
        return list(self[name].numpy())

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Run SQL over the table ``store`` with DuckDB.

        E.g. ``store.sql("select label, count(*) from store group by label")``. Points are float32 arrays
        named as in `points` (quote a name with dots). Only the points that the query names (all, for a ``*``)
        are read, into memory.
        """
        try:
            import duckdb
        except ImportError:
            raise MissingDependency("duckdb", extra="data", purpose="sql") from None
        table = self._sql_table(query)
        connection = duckdb.connect()
        connection.register("store", table)
        try:
            return connection.sql(query)
        except duckdb.Error as error:
            raise StoreError(
                f"DuckDB: {str(error).splitlines()[0]} The table is called store: {table.column_names}"
            ) from error

    def _sql_table(self, query: str) -> pa.Table:
        text = query.lower()
        everything = "*" in re.sub(r"count\(\s*\*\s*\)", "", text) or "columns(" in text
        table = {name: self._read(name) for name in RESERVED if name in self.dataset.schema.names}
        for name, column in self._description.columns.items():
            if everything or name.lower() in text:
                wide = ColumnSpec(name=name, shape=column.spec.shape, dtype="float32").arrow_type
                table[name] = pc.cast(self._read(column.arrow_name), wide)  # DuckDB has no float16
        return pa.table(table)

    def _read(self, arrow_name: str) -> pa.ChunkedArray:
        source = (
            self.dataset.select([arrow_name])
            if self.path is None
            else self.dataset.to_table(columns=[arrow_name])
        )
        return source[arrow_name]


class Column:
    """One point of a store, in sample order; read when `numpy`, `torch`, `batches` or ``[...]`` asks."""

    def __init__(self, dataset: Any, stored: StoredColumn, rows: int) -> None:
        self.dataset, self.arrow_name, self.spec = dataset, stored.arrow_name, stored.spec
        self.manifest, self.fingerprint = stored.manifest, stored.fingerprint
        self._rows = rows

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(samples, *shape of one); ``None`` where the length varies."""
        return (self._rows, *self.spec.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""
        return np.dtype(self.spec.dtype)

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"Column({self.spec.name!r}, shape {self.shape}, {self.spec.dtype})"

    def numpy(self) -> Values:
        """(n, *shape), read straight into one array; an object array of n arrays where the length varies."""
        return to_numpy(self.spec, self._chunks(), self._rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Values:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def torch(self) -> Any:
        """The same as a tensor; a list of tensors where the length varies."""
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            raise MissingDependency("torch", extra="torch", purpose="Column.torch") from None
        values = self.numpy()
        return [torch.from_numpy(row) for row in values] if self.spec.variable else torch.from_numpy(values)

    def __getitem__(self, rows: int | slice | Sequence[int] | Values) -> Values:
        """One sample for an integer; (m, *shape) for a slice, a list of integers or a boolean mask."""
        if not isinstance(rows, int | slice):
            rows = np.asarray(rows)
            rows = rows if rows.size else rows.astype(int)  # of an empty list NumPy makes floats
        chosen = np.arange(self._rows)[rows]
        values = self.take(np.atleast_1d(chosen))
        return values[0] if chosen.ndim == 0 else values

    def take(self, rows: Values) -> Values:
        """(m, *shape): the samples `rows` (m integers, not negative), in that order."""
        if len(rows) == 0:
            return to_numpy(self.spec, [], 0)
        indices = pa.array(rows, pa.int64())
        if isinstance(self.dataset, pa.Table):
            table = self.dataset.select([self.arrow_name]).take(indices)
        else:
            table = self.dataset.take(indices, columns=[self.arrow_name])
        return to_numpy(self.spec, table[self.arrow_name].chunks, len(rows))

    def batches(self, rows: int = BLOCK_ROWS) -> Iterator[Values]:
        """Yield (rows, *shape) after (rows, *shape), the last one shorter; memory stays at a few of them."""
        if isinstance(self.dataset, pa.Table):
            column = self.dataset[self.arrow_name]
            blocks = (column.slice(start, rows).chunks for start in range(0, self._rows, rows))
        else:
            blocks = ([batch[self.arrow_name]] for batch in self._scan(rows, strict_batch_size=True))
        for chunks in blocks:
            yield to_numpy(self.spec, chunks, sum(map(len, chunks)))

    def _chunks(self) -> Iterator[pa.Array]:
        if isinstance(self.dataset, pa.Table):
            return iter(self.dataset[self.arrow_name].chunks)
        rows = max(1, min(BLOCK_ROWS, _BLOCK_BYTES // (self.dtype.itemsize * self.spec.width)))
        return (batch[self.arrow_name] for batch in self._scan(rows))

    def _scan(self, rows: int, **options: Any) -> Iterator[pa.RecordBatch]:
        return iter(
            self.dataset.to_batches(columns=[self.arrow_name], batch_size=rows, **_READ_AHEAD, **options)
        )
