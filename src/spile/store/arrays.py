"""Between NumPy and Arrow: activations into flat lists and back, labels into one typed column. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from spile.errors import StoreError
from spile.store.manifest import ColumnSpec

Values = np.ndarray[Any, np.dtype[Any]]
"""n samples of one column: (n, *shape), or an object array of n arrays where the length varies."""


def to_arrow(spec: ColumnSpec, values: Values | Sequence[Values], ids: Sequence[str]) -> pa.Array:
    """Arrow array of one column's `values` for the samples `ids`: a copy, buffers may be reused.

    `values` is (n, *shape), or n arrays (length, *rest) where the length varies. Raises `StoreError` where
    the shape is wrong, a value is not finite in the column's dtype, or it is complex or a whole number that
    the dtype does not hold exactly.
    """
    if len(values) != len(ids):
        raise StoreError(f"Column {spec.name!r} got {len(values)} samples, expected {len(ids)}")
    if not spec.variable:
        return _flat_lists(spec, np.asarray(values), ids)
    rows = [np.asarray(row) for row in values]
    for row, sample in zip(rows, ids, strict=True):
        _require_shape(spec, row.shape[1:], sample)
    lengths = [len(row) for row in rows]
    joined = np.concatenate(rows) if rows else np.empty((0, *spec.fixed_shape), spec.dtype)
    tokens = _flat_lists(spec, joined, np.repeat(np.asarray(ids, dtype=object), lengths))
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), tokens)


def _flat_lists(spec: ColumnSpec, values: Values, ids: Sequence[str] | Values) -> pa.Array:
    _require_shape(spec, values.shape[1:], ids[0] if len(ids) else None)
    if values.dtype.kind == "c":
        raise StoreError(
            f"Layer {spec.name!r} is complex ({values.dtype}), and a store holds real numbers. "
            f"Type: pool=lambda x: abs(x)"
        )
    with np.errstate(over="ignore"):  # an overflow becomes inf, which is found and named below
        cast = np.array(values, dtype=spec.dtype, order="C")
    if not _all_finite(cast):
        row = int(np.flatnonzero(~np.isfinite(cast.reshape(len(cast), -1)).all(axis=1))[0])
        raise StoreError(_not_finite(spec, values[row : row + 1], cast[row : row + 1], ids[row]))
    if values.dtype.kind in "iu":
        _require_exact(spec, values, cast, ids)
    flat = pa.array(cast.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(flat.type, spec.width))


def _require_exact(spec: ColumnSpec, given: Values, cast: Values, ids: Sequence[str] | Values) -> None:
    """Whole numbers are ids or counts, where a near one is another one; rounding is for measured numbers."""
    back = cast.astype(np.float64)
    beyond = 2.0 ** (8 * given.dtype.itemsize - (given.dtype.kind == "i"))
    with np.errstate(invalid="ignore"):  # what is beyond the type has no fixed value in it
        rounded = (back >= beyond) | (back.astype(given.dtype) != given)
    if not rounded.any():
        return
    row = int(np.flatnonzero(rounded.reshape(len(rounded), -1).any(axis=1))[0])
    value = int(given[row][rounded[row]].flat[0])
    remedy = 'Type: dtype="float32"'
    if spec.dtype == "float32" or int(np.float32(value)) != value:
        remedy = "float32 holds whole numbers up to 16777216 only: leave this layer out"
    raise StoreError(
        f"Layer {spec.name!r} is {value} for sample {ids[row]!r}, a whole number that {spec.dtype} does not "
        f"hold exactly. {remedy}"
    )


def _all_finite(values: Values) -> bool:
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # NumPy works on single float16 numbers, and on many integers at a time. The largest finite one is 0x7BFF.
    return not values.size or int((values.view(np.uint16) & 0x7FFF).max()) < 0x7C00


def _require_shape(spec: ColumnSpec, shape: tuple[int, ...], sample: str | None) -> None:
    if shape != spec.fixed_shape:
        tail = " after the first axis" if spec.variable else ""
        raise StoreError(
            f"Column {spec.name!r} holds shape {spec.fixed_shape}{tail}; sample {sample!r} has {shape}. "
            f"Inputs of one size, or a pool that gives one (pool='avg'), make it fixed"
        )


def _not_finite(spec: ColumnSpec, given: Values, cast: Values, sample: str) -> str:
    bad = given[~np.isfinite(cast)]
    overflowed = bad[np.isfinite(bad)] if given.dtype != np.float16 else bad[np.isinf(bad)]
    if spec.dtype == "float16" and overflowed.size:
        return (
            f"Layer {spec.name!r} is {overflowed[0]:g} for sample {sample!r}, more than float16 holds "
            f'(65504). Type: dtype="float32"'
        )
    return (
        f"Layer {spec.name!r} is {bad[0]:g} for sample {sample!r}, which is not a finite {spec.dtype}. "
        f"Check the model's weights and that sample"
    )


def to_numpy(spec: ColumnSpec, chunks: Iterable[pa.Array], rows: int) -> Values:
    """The `rows` samples held in `chunks`, copied straight into one new array."""
    if spec.variable:
        ragged = np.empty(rows, dtype=object)
        for i, row in enumerate(_ragged_rows(spec, chunks)):
            ragged[i] = row
        return ragged
    out = np.empty((rows, *spec.fixed_shape), spec.dtype)
    start = 0
    for chunk in chunks:
        out[start : start + len(chunk)] = _vectors(spec, chunk)
        start += len(chunk)
    return out


def _ragged_rows(spec: ColumnSpec, chunks: Iterable[pa.Array]) -> Iterator[Values]:
    for chunk in chunks:
        offsets = chunk.offsets.to_numpy()
        tokens = _vectors(spec, chunk.flatten())
        for start, stop in zip(offsets[:-1] - offsets[0], offsets[1:] - offsets[0], strict=True):
            yield tokens[start:stop].copy()


def _vectors(spec: ColumnSpec, lists: pa.Array) -> Values:
    flat: Values = lists.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(len(lists), *spec.fixed_shape)


def label_type(labels: Sequence[Any], ids: Sequence[str], known: pa.DataType | None) -> pa.DataType | None:
    """The one type that holds every label: string, int64, float64 or a list of strings or of int64.

    ``None`` while there is no label at all.

    `known` is the type of the labels already written, which cannot change any more.
    """
    found = known
    if any(label == frozenset() for label in labels) and found is None:
        found = next((_kind_of(label, "") for label in labels if label), pa.list_(pa.string()))
    for label, sample in zip(labels, ids, strict=True):
        if label is None or (label == frozenset() and pa.types.is_list(found)):
            continue
        kind = _kind_of(label, sample)
        if found is None or (found == pa.int64() and kind == pa.float64() and known is None):
            found = kind
        elif found != kind and not (found == pa.float64() and kind == pa.int64()):
            raise StoreError(
                f"The label of sample {sample!r} is {label!r} ({kind}), but those before it are {found}. "
                f"Give labels of one type"
            )
    return found


def as_stored(label: Any, kind: pa.DataType) -> Any:
    """A label as the Python value that Arrow makes a `kind` of; sets become sorted lists."""
    if label is None or pa.types.is_list(kind):
        return None if label is None else sorted(label)
    return {pa.string(): str, pa.int64(): int, pa.float64(): float}[kind](label)


def _kind_of(label: Any, sample: str) -> pa.DataType:
    if isinstance(label, frozenset):
        return pa.list_(_kind_of(next(iter(label), ""), sample))
    for kinds, arrow in (
        ((str,), pa.string()),
        ((int, np.integer, np.bool_), pa.int64()),
        ((float, np.floating), pa.float64()),
    ):
        if isinstance(label, kinds):
            return arrow
    raise StoreError(
        f"The label of sample {sample!r} is {label!r}. Allowed: a string, an integer, a float, a frozenset "
        "of strings or of integers, or None"
    )


def optional_values(column: pa.ChunkedArray) -> Values | None:
    """Labels, splits or groups as NumPy; ``None`` if no sample has one, objects if only some have.

    Several labels a sample are frozensets.
    """
    if column.null_count == len(column):
        return None
    values = column.to_pylist()
    if pa.types.is_list(column.type):
        sets = np.empty(len(values), dtype=object)
        sets[:] = [None if value is None else frozenset(value) for value in values]
        return sets
    if column.null_count:
        return np.array(values, dtype=object)
    return np.array(values, dtype=str if pa.types.is_string(column.type) else column.type.to_pandas_dtype())
