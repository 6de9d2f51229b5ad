"""Extract: a tap and data into a store, in one pass that reads, computes and writes at the same time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal, cast

import numpy as np
import PIL

import spile
from spile.backend import backend_of
from spile.computing import Pass, Settings
from spile.data import BadSample, Batch, Record, Source, Stream
from spile.data.parts import leaves
from spile.data.samples import labels_from_reading, to_numpy
from spile.devices import Processes
from spile.errors import DataError
from spile.interfaces import EngineName, Precision, Tap
from spile.pipeline import BadSampleLimit, written_behind
from spile.preprocessing import ImagePreprocessing, Preprocessing
from spile.progress import progress_bar
from spile.resolution import Point
from spile.store import ColumnSpec, Manifest, Store, Writer, create, has_store, open_store
from spile.store import resume as resume_store

Dtype = Literal["float16", "float32"]

_LOOKED_AT = 5
"""Samples that are read to tell whether data is what it was: the first, the last, and some between."""

_SAME_MODEL = ("architecture", "weights", "mode", "preprocessing", "precision", "samples")
"""What columns that are added to a store must share with it."""


def extract(
    tap: Tap,
    data: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    dtype: Dtype = "float16",
    engine: EngineName = "auto",
    precision: Precision = "float32",
    batch_size: int | Literal["auto"] = "auto",
    preprocessing: Preprocessing | None = None,
    resume: bool = True,
    progress: bool = True,
    max_bad: float = 0.01,
    workers: int | None = None,
    devices: Sequence[str] | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Store:
    """Write the activations of all samples at all points of a tap into a store, and return it.

    Args:
        tap: made by `spile.tap`; one made from a model reference brings the model's preprocessing.
        data: anything `spile.data.open_source` takes: a folder, a manifest, arrays, a DataLoader, a demo set.
        path: of the Lance dataset to write, local or ``s3://…``; ``None`` keeps the store in memory.
        dtype: what is stored. ``float16`` halves the size; what it cannot hold is an error, not an infinity.
        engine: how the tap is run: ``eager``, ``compile``, ``openvino``; with ``auto`` the first batch is
            compared and timed, and the store's manifest says what was chosen and why. A resumed run keeps it.
        precision: what is computed in; ``bfloat16`` is faster where the processor has it, and less exact.
        batch_size: samples a batch. A resumed run must use the same, which ``auto`` does; otherwise it goes
            by the cost of a sample and the size of what is kept.
        preprocessing: what uint8 images or texts get, where the tap does not bring it.
        resume: go on with a store at `path` that a killed run left; a finished one is returned as it is. With
            ``False``, anything at `path` is an error.
        max_bad: share of samples that may be unreadable (one always may); they become rows of
            ``store.skipped``.
        workers: threads that read and decode.
        devices: of this machine, e.g. ``["cuda:0", "cuda:1"]``: a process on each reads and computes its
            share of the batches (PyTorch). Tap and data are sent to it, so they must be such that can be
            pickled, and a script does its work under ``if __name__ == "__main__":``.

    Raises `DataError`, `CaptureError`, `StoreError`, and `FingerprintMismatch` where the store at `path` was
    made by something that gives other values.
    """
    made: Mapping[str, Any] = {}
    if path is not None and resume and has_store(path, storage_options=storage_options):
        made = open_store(path, storage_options=storage_options).manifest.fingerprinted
        engine = made["engine"] if engine == "auto" else engine
        batch_size = made["batch_size"] if batch_size == "auto" else batch_size
    settings = Settings(
        engine=engine,
        precision=precision,
        batch_size=batch_size,
        preprocessing=preprocessing,
        workers=workers,
        half=dtype == "float16",
    )
    with _run(tap, data, settings, again=bool(made), devices=devices) as run:
        columns = run.columns(dtype)
        manifest = run.manifest()
        writer = _open_writer(path, columns, manifest, again=resume, storage_options=storage_options)
        if not writer.complete:
            limit = BadSampleLimit(
                max_bad, run.length, skipped=writer.skipped, kept=None if path is None else str(path)
            )
            with (
                progress_bar(
                    "extract", total=run.length, done=writer.next_position, shown=progress
                ) as report,
                written_behind(lambda batch, arrays: _append(writer, batch, arrays), writer.commit) as write,
                closing(run.results(columns, start=writer.next_position)) as results,
            ):
                for batch, arrays in results:
                    write(batch, arrays)
                    limit.count(batch)
                    report(samples=batch.stop - batch.start, written=run.bytes, skipped=limit.skipped)
    return writer.finish()


def add(
    store: Store,
    tap: Tap,
    data: Any,
    *,
    dtype: Dtype = "float16",
    preprocessing: Preprocessing | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Store:
    """Add the points of `tap` to `store` as new columns, from the `data` the store was made from.

    Nothing that is written already is rewritten, and a run that is cut off leaves the store as it was. The
    model, its preprocessing, precision and samples must be those of the store (`FingerprintMismatch`).
    """
    made = store.manifest.fingerprinted
    settings = Settings(
        engine="auto",
        precision=made["precision"],
        batch_size=made["batch_size"],
        preprocessing=preprocessing,
        workers=workers,
        half=dtype == "float16",
    )
    with _run(tap, data, settings, again=False) as run:
        columns = run.columns(dtype)
        known = set(store.ids.tolist())
        with (
            store.adding(columns, run.manifest(), same=_SAME_MODEL) as writer,
            progress_bar("add", total=run.length, done=0, shown=progress) as report,
        ):
            for batch, arrays in run.results(columns, start=0):
                keep = [i for i, record in enumerate(batch.records) if record.id in known]
                ids = [batch.records[i].id for i in keep]
                chosen = {
                    name: [values[i] for i in keep] if isinstance(values, list) else values[keep]
                    for name, values in arrays.items()
                }
                writer.append(ids, chosen)
                report(samples=batch.stop - batch.start, written=run.bytes, skipped=len(batch.skipped))
            return writer.finish()


def _open_writer(
    path: str | os.PathLike[str] | None,
    columns: Sequence[ColumnSpec],
    manifest: Manifest,
    *,
    again: bool,
    storage_options: Mapping[str, str] | None,
) -> Writer:
    if path is not None and again and has_store(path, storage_options=storage_options):
        return resume_store(path, columns, manifest, storage_options=storage_options)
    return create(path, columns, manifest, storage_options=storage_options)


def _append(writer: Writer, batch: Batch, arrays: Mapping[str, Any]) -> None:
    writer.append(batch.records, batch.positions, arrays, batch.skipped, stop=batch.stop)


class _Run:
    """One extraction under way: opened data, the tap's engine, the first batch that had a good sample."""

    def __init__(
        self, tap: Tap, data: Any, settings: Settings, *, again: bool, devices: Sequence[str] | None = None
    ) -> None:
        self.bytes = 0
        self._again = again
        """The run goes on with a store: its first batch is computed for the shapes alone, in eager."""
        self._precision = settings.precision
        self._pass = own = Pass.of(tap, data, settings)
        self._others: Processes | None = None
        if devices is not None:
            if isinstance(own.source, Stream):
                raise DataError(
                    f"{own.source.name} is a stream of batches, which comes to one process: leave out "
                    "devices, or give its dataset"
                )
            self._others = Processes.of(devices, tap, data, settings)
        self._first = own.read()
        self._lead: list[Batch] = []
        for batch in self._first:
            self._lead.append(batch)
            if batch.records:
                break
        else:
            raise DataError(_nothing_read(own.source.name, self._lead))
        eager = None
        if again:
            images = own.preprocessing if isinstance(own.preprocessing, ImagePreprocessing) else None
            eager = backend_of(tap.model).engine(
                tap, name="eager", preprocessing=images, precision=settings.precision
            )
        self._lead_arrays = own.compute(self._lead[-1], eager)

    @property
    def length(self) -> int | None:
        """Samples in the data, where that is known."""
        return self._pass.length

    def columns(self, dtype: Dtype) -> list[ColumnSpec]:
        """One column a point, shaped like the first batch."""
        tap = self._pass.tap
        baselines = {"@in": "raw", tap.last_features: "last"}
        return [
            ColumnSpec(
                name=point.name,
                shape=_shape(self._lead_arrays[point.name]),
                dtype=dtype,
                info=_info(point, baselines),
            )
            for point in tap.points
        ]

    def manifest(self) -> Manifest:
        """What determines the values, and what is only recorded."""
        own, tap = self._pass, self._pass.tap
        backend = backend_of(tap.model)
        origin = tap.origin
        return Manifest(
            fingerprinted={
                "architecture": backend.architecture_hash(tap.model),
                "weights": backend.weights_hash(tap.model),
                "mode": tap.mode,
                "preprocessing": own.preprocessing.to_json() if own.preprocessing else None,
                "samples": _samples(own.source, self._lead[-1]),
                "engine": own.engine.name,
                "precision": self._precision,
                "batch_size": own.batch_size,
                "versions": {
                    **backend.versions(tap.model),
                    **own.engine.versions,
                    "pillow": PIL.__version__,
                    "spile": spile.__version__,
                },
            },
            recorded={
                "model": origin.reference
                if origin
                else f"{type(tap.model).__module__}.{type(tap.model).__qualname__}",
                "data": own.source.name,
                "kind": own.source.kind,
                "engine": dict(own.engine.notes),
                **({"devices": list(self._others.devices)} if self._others else {}),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "numpy": np.__version__,
            },
        )

    def results(
        self, columns: Sequence[ColumnSpec], *, start: int
    ) -> Generator[tuple[Batch, dict[str, Any]], None, None]:
        """Every batch from `start` on with its arrays; what was read to learn shapes is not read again.

        To be closed where it is left early: an error keeps it alive, and with it threads and processes.
        """
        empty = {spec.name: np.empty((0, *spec.fixed_shape), np.float32) for spec in columns}
        for batch, found in self._on_devices(start) if self._others else self._here(start):
            arrays = found or empty
            self.bytes += (
                sum(_size(values) for values in arrays.values()) * np.dtype(columns[0].dtype).itemsize
            )
            yield batch, arrays

    def _here(self, start: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        if start:
            self.close()
            return self._pass.results(self._pass.read(start))
        return self._pass.results(chain(self._lead, self._first), self._known)

    def _on_devices(self, start: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        assert self._others is not None and self.length is not None
        self.close()
        if not start:
            yield from self._pass.results(self._lead, self._known)
            start = self._lead[-1].stop
        if start < self.length:
            engine = cast(EngineName, self._pass.engine.name)
            yield from self._others.results(start=start, engine=engine, batch_size=self._pass.batch_size)

    def _known(self, batch: Batch) -> dict[str, Any] | None:
        return self._lead_arrays if batch is self._lead[-1] and not self._again else None

    def close(self) -> None:
        """Stop the reading threads."""
        close = getattr(self._first, "close", None)
        if close is not None:
            close()


@contextmanager
def _run(
    tap: Tap, data: Any, settings: Settings, *, again: bool, devices: Sequence[str] | None = None
) -> Iterator[_Run]:
    run = _Run(tap, data, settings, again=again, devices=devices)
    try:
        yield run
    finally:
        run.close()


def _nothing_read(name: str, lead: Sequence[Batch]) -> str:
    reasons = [f"{s.id}: {s.reason}" for batch in lead for s in batch.skipped][:3]
    return f"{name}: not one sample can be used" + (f" ({'; '.join(reasons)})" if reasons else "")


def _shape(values: Any) -> tuple[int | None, ...]:
    return (None, *values[0].shape[1:]) if isinstance(values, list) else values.shape[1:]


def _size(values: Any) -> int:
    return sum(row.size for row in values) if isinstance(values, list) else values.size


def _info(point: Point, baselines: Mapping[str, str]) -> dict[str, Any]:
    return {
        "address": point.address,
        "pool": point.pool.fingerprint(),
        "type": point.type,
        "layout": point.layout,
        "order": point.order,
        "macs": point.macs,
        "params": point.params,
        "baseline": baselines.get(point.address),
    }


def _samples(source: Source | Stream, first: Batch) -> dict[str, Any]:
    """What tells other data: how many samples, hashes of their ids and labels, and of what a few of them are.

    Of a stream, which does not tell beforehand, of the first batch alone.
    """
    if isinstance(source, Stream):
        return {"content": _hash([*map(_stated, first.records), first.inputs])}
    total = len(source.records)
    looked_at = sorted({round(part * (total - 1) / (_LOOKED_AT - 1)) for part in range(_LOOKED_AT)})
    told = {} if labels_from_reading(source) else {"labels": _hash(map(_stated, source.records))}
    return {
        "count": total,
        "ids": _hash(record.id for record in source.records),
        **told,
        "content": _hash(part for position in looked_at for part in _told(source, position)),
    }


def _told(source: Source, position: int) -> tuple[Any, str]:
    try:
        value = source.read(position)
    except BadSample as bad:
        value = str(bad)
    return value, _stated(source.records[position])  # which may know its label only now


def _stated(record: Record) -> str:
    """The same text in every process, which the order of a set is not."""
    label = sorted(record.label) if isinstance(record.label, frozenset) else record.label
    return f"{record.id} {label!r} {record.split} {record.group}"


def _hash(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for leaf in leaves(part):
            if hasattr(leaf, "shape"):
                array = np.ascontiguousarray(to_numpy(leaf))
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
                continue
            digest.update(f"{leaf}".encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
