"""The few Lance calls the store makes, with errors that say in one line what is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from spile.errors import StoreError

if TYPE_CHECKING:
    import lance

StorageOptions = Mapping[str, str]

SKIPPED = "skipped.lance"
_LANCE_ENTRIES = {SKIPPED, "_versions", "_transactions", "data"}
_NOT_FOUND = re.compile(r"was not found|^Not found", re.IGNORECASE)


def uri_of(path: str | os.PathLike[str]) -> str:
    """An absolute local path, or the URI as it is (``s3://...``)."""
    text = os.fspath(path)
    return text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute())


def load_lance() -> ModuleType:
    """Import Lance; its log of recoverable events stays off the user's terminal unless asked for."""
    os.environ.setdefault("LANCE_LOG", "error")
    import lance

    module: ModuleType = lance
    return module


@contextmanager
def one_line_errors(action: str, uri: str) -> Iterator[None]:
    """Turn what Lance and the operating system raise into a `StoreError` of one line."""
    try:
        yield
    except StoreError:
        raise
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise StoreError(f"Cannot {action} the store at {uri}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    number = re.search(r"\(os error (\d+)\)", text)
    code = int(number[1]) if number else getattr(error, "errno", None)
    if code is None:
        first = re.split(r",? /\S+\.rs:\d+:\d+|\n", text)[0]
        return re.sub(r"^LanceError\(\w+\): ", "", first)
    hints = {
        28: "Free some space and run the same again: what was committed is kept",
        13: "Give a path that can be written",
        20: "Give a path below a folder",
        30: "Give a path that can be written",
    }
    return f"{os.strerror(code)}. {hints.get(code, 'Check the path')}"


def find_dataset(uri: str, storage_options: StorageOptions | None) -> lance.LanceDataset | None:
    """The latest version of the dataset at `uri`, or ``None`` if there is none."""
    _require_folder(uri)
    try:
        return load_lance().dataset(uri, storage_options=_plain(storage_options))
    except ValueError as error:
        if _NOT_FOUND.search(str(error)):
            return None
        with one_line_errors("open", uri):
            raise


def _require_folder(uri: str) -> None:
    """Say at once, and by name, that a file stands where a folder should; Lance retries for a while first."""
    if "://" in uri:
        return
    there = next(place for place in (Path(uri), *Path(uri).parents) if place.exists())
    if not there.is_dir():
        raise StoreError(f"{there} is a file. A store is a folder: give another path, e.g. feats.lance")


def open_dataset(uri: str, storage_options: StorageOptions | None) -> lance.LanceDataset:
    """The latest version of the dataset at `uri`. Raises `StoreError` if there is none."""
    dataset = find_dataset(uri, storage_options)
    if dataset is None:
        raise StoreError(
            f"There is no store at {uri}. Check the path; spile.extract(tap, data, path) makes one"
        )
    return dataset


def require_free(uri: str, storage_options: StorageOptions | None) -> None:
    """Raise `StoreError` unless a new store can be put at `uri` without touching anything of the user's."""
    if find_dataset(uri, storage_options) is not None:
        raise StoreError(f"There is a store at {uri} already. Resume it, open it, or give another path")
    if "://" in uri or not Path(uri).exists():
        return
    entries = {entry.name for entry in Path(uri).iterdir()}
    interrupted = SKIPPED in entries and entries <= _LANCE_ENTRIES
    if entries and not interrupted:
        raise StoreError(
            f"{uri} is a folder with other files in it. Give a path that is not there yet, e.g. feats.lance"
        )


def create_dataset(uri: str, schema: pa.Schema, storage_options: StorageOptions | None) -> lance.LanceDataset:
    """An empty dataset of `schema`, in place of one that may be there."""
    exists = find_dataset(uri, storage_options) is not None
    with one_line_errors("create", uri):
        return load_lance().write_dataset(
            schema.empty_table(),
            uri,
            mode="overwrite" if exists else "create",
            storage_options=_plain(storage_options),
        )


def append_rows(dataset: lance.LanceDataset, rows: pa.Table, storage_options: StorageOptions | None) -> Any:
    """Commit `rows` as one new version; returns the dataset at that version.

    A store has one writer: anything that another process committed meanwhile stops this one before it doubles
    rows.
    """
    if dataset.latest_version != dataset.version:
        raise another_writer(dataset.uri)
    written = load_lance().write_dataset(
        rows, dataset, mode="append", storage_options=_plain(storage_options)
    )
    if written.version != dataset.version + 1:  # Lance puts an append after whatever came meanwhile
        _take_back(written, len(rows))
        raise another_writer(dataset.uri)
    return written


def another_writer(uri: str) -> StoreError:
    """What to raise where another process has written to the dataset at `uri`."""
    return StoreError(
        f"Another process has written to {uri} meanwhile; this one stops, so that no sample is stored twice. "
        f"Let the other finish, then run again"
    )


def _take_back(written: lance.LanceDataset, rows: int) -> None:
    """Drop the fragments of the `rows` that were appended last in this version, and no one else's."""
    own: list[int] = []
    for fragment in reversed(written.get_fragments()):
        if rows <= 0:
            break
        own.append(fragment.fragment_id)
        rows -= fragment.count_rows()
    # A deletion goes with whatever the other writer does next; restoring a version would end its run too.
    dropped = load_lance().LanceOperation.Delete([], own, "rows stored twice")
    load_lance().LanceDataset.commit(written, dropped, read_version=written.version)


def drop_old_versions(dataset: lance.LanceDataset) -> None:
    """Delete the manifests of all versions but the latest; data files are all in use and stay."""
    dataset.cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)


def _plain(storage_options: StorageOptions | None) -> dict[str, str] | None:
    return dict(storage_options) if storage_options else None
