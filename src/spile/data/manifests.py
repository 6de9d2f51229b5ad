"""CSV and Parquet manifests: one row a sample."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from spile.data.images import Pixels, read_image
from spile.data.samples import Samples, as_label, fits_64_bits
from spile.data.source import BadSample, Label, Record
from spile.errors import DataError

SUFFIXES = frozenset({".csv", ".parquet", ".pq"})
_INTEGER = re.compile(r"-?(0|[1-9]\d*)")  # "007" is a name
_DECIMAL = re.compile(r"[+-]?((\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+[eE][+-]?\d+)")
COLUMNS = ("path", "text", "label", "labels", "split", "group", "id")
_BETWEEN = "|"
"""What stands between the names of a sample that has several."""


def open_manifest(file: Path, *, max_pixels: int) -> Samples:
    """A CSV or Parquet file: ``path`` (or ``text``), perhaps ``label``, ``split``, ``group`` and ``id``.

    What is to be predicted needs no ``label``. In its place ``labels`` holds any number of names a row,
    ``cat|dog``, or lists of them. Paths are relative to the manifest's folder. Without an ``id`` column the
    path is the id, or for texts the row number.
    """
    table = _read(file)
    _check_columns(file, table.column_names)
    rows = {name: table[name].to_pylist() for name in COLUMNS if name in table.column_names}
    if table.num_rows == 0:
        raise DataError(f"{str(file)!r} has no rows")
    kind = "image" if "path" in rows else "text"
    named = rows.get("id") or rows.get("path") or range(table.num_rows)
    empty = [None] * table.num_rows
    labels: list[Label] = [None] * table.num_rows
    if "label" in rows:
        labels = _labels(rows["label"])
    elif "labels" in rows:
        labels = [_several(value) for value in rows["labels"]]
    records = [
        Record(str(name), label, _string(split), _string(group))
        for name, label, split, group in zip(
            named, labels, rows.get("split", empty), rows.get("group", empty), strict=True
        )
    ]

    def read_path(position: int) -> Pixels:
        path = rows["path"][position]
        if path is None:
            raise BadSample("the manifest has no path here")
        return read_image(file.parent / str(path), max_pixels=max_pixels)

    def read_text(position: int) -> str:
        text = rows["text"][position]
        return "" if text is None else str(text)

    if kind == "image":
        return Samples(str(file), "image", records, read_path)
    return Samples(str(file), "text", records, read_text)


def _read(file: Path) -> pa.Table:
    try:
        if file.suffix.lower() != ".csv":
            return pa.parquet.read_table(file)
        # Every column is read as strings, so that ids keep their zeros and no block of rows changes a type.
        with pa.csv.open_csv(file) as reader:
            names = reader.schema.names
        return pa.csv.read_csv(
            file,
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(file)!r}: {' '.join(str(error).split())}") from error


def _check_columns(file: Path, found: list[str]) -> None:
    """Other columns are ignored, but for one that is written almost as one of ours: it would be lost."""
    almost = any(name not in COLUMNS and name.strip().lower() in COLUMNS for name in found)
    known = {"path", "text"} & set(found) and not {"label", "labels"} <= set(found)
    if len(set(found)) < len(found) or not known or almost:
        raise DataError(
            f"{str(file)!r} has the columns {', '.join(map(repr, found))}; needed: 'path' (or 'text'), and "
            "to learn from, 'label', each once; allowed besides: 'split', 'group', 'id', and in place of "
            "'label' 'labels', several a row as cat|dog. Rename the columns in the file."
        )


def _labels(values: list[Any]) -> list[Label]:
    """Labels of one type: ints if every one is written as an int, else floats, else strings.

    Where an int is over 64 bits, as long ids are, all are strings.
    """
    if not all(value is None or isinstance(value, str) for value in values):
        if any(isinstance(value, int) and not fits_64_bits(value) for value in values):
            values = [_string(value) for value in values]
        return [as_label(value) for value in values]
    written = [value for value in values if value is not None]
    if all(_INTEGER.fullmatch(value) for value in written):
        if not all(fits_64_bits(int(value)) for value in written):
            return list(values)
        return [None if value is None else int(value) for value in values]
    if all(_INTEGER.fullmatch(value) or _DECIMAL.fullmatch(value) for value in written):
        return [None if value is None else float(value) for value in values]
    return list(values)


def _several(value: Any) -> Label:
    """The names of one row; an empty cell is none of them."""
    if value is None or isinstance(value, str):
        value = [name.strip() for name in (value or "").split(_BETWEEN)]
    return as_label([name for name in value if name != ""])


def _string(value: Any) -> str | None:
    return None if value is None else str(value)
