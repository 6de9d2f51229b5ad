"""What a store says about itself: its columns, what determines their values, its fingerprint. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from typing import Any, Literal

import pyarrow as pa

from spile.errors import FingerprintMismatch, StoreError

SAMPLE_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("position", pa.int64(), nullable=False),
    pa.field("split", pa.string()),
    pa.field("group", pa.string()),
)
"""What every row has; `label` joins when the first label shows its type."""

RESERVED = ("id", "position", "label", "split", "group")

FORMAT = 1
_MANIFEST, _COLUMN, _COMPLETE = b"spile.manifest", b"spile.column", b"spile.complete"
_ABSENT = object()

COMPLETE = {_COMPLETE.decode(): "true"}
"""The schema metadata that marks a store as finished."""


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """One point of a store: the shape and type of what is kept of one sample, and what is recorded about it.

    `shape` is that of one sample, after pooling; a first axis of ``None`` is a variable length (tokens).
    `info` is JSON: its ``"address"`` and ``"pool"`` determine values and are part of the fingerprint, the
    rest is only recorded.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: Literal["float16", "float32"]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise StoreError(
                f'Column {self.name!r} has dtype {self.dtype!r}. Type: dtype="float16" or dtype="float32"'
            )
        if self.name in RESERVED:
            raise StoreError(
                f"A point cannot be called {self.name!r}: every store has a column of that name. "
                f"Type another name, e.g. {{'{self.name}_features': address}}"
            )
        if not all(isinstance(n, int) and n > 0 for n in self.fixed_shape):
            raise StoreError(
                f"Column {self.name!r} has shape {self.shape}. Allowed: positive sizes, with None for "
                f"the first axis where the length varies"
            )

    @property
    def variable(self) -> bool:
        """Whether samples differ in length along the first axis."""
        return self.shape[:1] == (None,)

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The axes that are the same for every sample."""
        return self.shape[1:] if self.variable else self.shape  # type: ignore[return-value]

    @property
    def width(self) -> int:
        """Numbers a sample holds (numbers a token holds, where the length varies)."""
        return prod(self.fixed_shape)

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number."""
        return 2 if self.dtype == "float16" else 4

    @property
    def arrow_type(self) -> pa.DataType:
        """A flat fixed-size list; a list of them where the length varies."""
        vector = pa.list_(pa.from_numpy_dtype(self.dtype), self.width)
        return pa.list_(vector) if self.variable else vector

    @property
    def identity(self) -> dict[str, Any]:
        """What of this column determines its values."""
        return {
            "address": self.info.get("address"),
            "pool": self.info.get("pool"),
            "shape": list(self.shape),
            "dtype": self.dtype,
        }


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How a store's values came about: `fingerprinted` determines them, `recorded` is only told. JSON."""

    fingerprinted: Mapping[str, Any]
    recorded: Mapping[str, Any] = field(default_factory=dict)


def fingerprint(manifest: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of all that determines the values: the fingerprinted fields and each column's identity."""
    return sha256(_canonical({"fingerprinted": manifest, "columns": columns}).encode()).hexdigest()


def identities(columns: Sequence[ColumnSpec]) -> dict[str, dict[str, Any]]:
    """Column name to what determines its values."""
    return {spec.name: spec.identity for spec in columns}


def require_same(
    path: str, stored: Mapping[str, Any], given: Mapping[str, Any], only: Collection[str] | None = None
) -> None:
    """Raise `FingerprintMismatch` with every field that differs; `only` restricts which are compared."""
    if only is not None:
        stored, given = ({k: v for k, v in fields.items() if k in only} for fields in (stored, given))
    differing = list(_differences(json.loads(_canonical(stored)), json.loads(_canonical(given))))
    if differing:
        raise FingerprintMismatch(
            f"The store at {path} was made by something that gives other values: {'; '.join(differing)}. "
            f"Give the settings it was made with, or another path"
        )


def _differences(stored: Any, given: Any, at: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            name = f"{at}.{key}" if at else key
            yield from _differences(stored.get(key, _ABSENT), given.get(key, _ABSENT), name)
    elif stored != given:
        old, new = ("absent" if v is _ABSENT else json.dumps(v) for v in (stored, given))
        yield f"{at}: stored {old}, given {new}"


def _canonical(value: Any) -> str:
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"A manifest and a column's info must be JSON (finite numbers, strings, lists, dicts): {error}"
        ) from None


def _plain(value: Any) -> Any:
    """Mappings of any kind as dicts, which is what `json` takes."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def store_schema(columns: Sequence[ColumnSpec], manifest: Manifest) -> pa.Schema:
    """The Arrow schema of an empty store, which carries the manifest."""
    description = {
        "format": FORMAT,
        "fingerprinted": manifest.fingerprinted,
        "recorded": manifest.recorded,
        "columns": identities(columns),
    }
    return pa.schema([*SAMPLE_FIELDS, *column_fields(columns)], metadata={_MANIFEST: _canonical(description)})


def column_fields(
    columns: Sequence[ColumnSpec], *, taken: Collection[str] = (), manifest: Manifest | None = None
) -> list[pa.Field]:
    """One Arrow field a column, avoiding the `taken` names; an added column carries its own `manifest`."""
    used = {*RESERVED, *taken}
    fields = []
    for spec in columns:
        name = _arrow_name(spec.name, used)
        used.add(name)
        metadata = {_COLUMN: _canonical(vars(spec))}
        if manifest is not None:
            metadata[_MANIFEST] = _canonical(vars(manifest))
        fields.append(pa.field(name, spec.arrow_type, metadata=metadata))
    return fields


def _arrow_name(name: str, used: Collection[str]) -> str:
    """The column's name in the file: Lance reads a dot as a path into a struct and a backtick as a quote."""
    candidate = name.replace(".", "/").replace("`", "'")
    while candidate in used:
        candidate += "_"
    return candidate


@dataclass(frozen=True)
class StoredColumn:
    """A column as found in a store: its spec, its Arrow name, its values' manifest and fingerprint."""

    spec: ColumnSpec
    arrow_name: str
    manifest: Manifest
    fingerprint: str


@dataclass(frozen=True)
class Description:
    """Everything that a store's Arrow schema says about it."""

    manifest: Manifest
    created: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, StoredColumn]
    complete: bool

    @property
    def fingerprint(self) -> str:
        """Of the store as it was created; columns added later have their own."""
        return fingerprint(self.manifest.fingerprinted, self.created)


def describe(schema: pa.Schema, path: str) -> Description:
    """Read back what `store_schema` and `column_fields` wrote. `path` is for the errors."""
    metadata = schema.metadata or {}
    if _MANIFEST not in metadata:
        raise StoreError(f"{path} is a Lance dataset, but not a store that spile made. Give another path")
    stored = json.loads(metadata[_MANIFEST])
    if stored["format"] != FORMAT:
        raise StoreError(
            f"The store at {path} has format {stored['format']}; this version of spile reads {FORMAT}. "
            f"Type: pip install --upgrade spile"
        )
    manifest = Manifest(fingerprinted=stored["fingerprinted"], recorded=stored["recorded"])
    columns = [_stored_column(f, manifest) for f in schema if _COLUMN in (f.metadata or {})]
    return Description(
        manifest=manifest,
        created=stored["columns"],
        columns={column.spec.name: column for column in columns},
        complete=_COMPLETE in metadata,
    )


def _stored_column(field: pa.Field, of_store: Manifest) -> StoredColumn:
    values = json.loads(field.metadata[_COLUMN])
    spec = ColumnSpec(**{**values, "shape": tuple(values["shape"])})
    own = field.metadata.get(_MANIFEST)
    manifest = Manifest(**json.loads(own)) if own else of_store
    return StoredColumn(spec, field.name, manifest, fingerprint(manifest.fingerprinted, identities([spec])))
