"""Extract: a tap and data into a store, in one pass that reads, computes and writes at the same time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal

import numpy as np
import PIL

import spile
from spile.backend import Engine, EngineName, Precision, Tap, backend_of
from spile.data import Batch, Source, Stream, batches, open_source
from spile.errors import DataError, ModelError
from spile.models import LoadedModel
from spile.pipeline import BadSampleLimit, automatic_batch_size, several_at_once, written_behind
from spile.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing
from spile.progress import progress_bar
from spile.resolution import Point
from spile.store import ColumnSpec, Manifest, Store, Writer, create, has_store, open_store
from spile.store import resume as resume_store

Dtype = Literal["float16", "float32"]

_MASKS = ("attention_mask", "padding_mask")
"""What Hugging Face and Keras Hub call the input that says which tokens are real."""

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

    Raises `DataError`, `CaptureError`, `StoreError`, and `FingerprintMismatch` where the store at `path` was
    made by something that gives other values.
    """
    made: Mapping[str, Any] = {}
    if path is not None and resume and has_store(path, storage_options=storage_options):
        made = open_store(path, storage_options=storage_options).manifest.fingerprinted
        engine = made["engine"] if engine == "auto" else engine
        batch_size = made["batch_size"] if batch_size == "auto" else batch_size
    with _run(
        tap,
        data,
        engine,
        precision,
        batch_size,
        preprocessing,
        workers,
        half=dtype == "float16",
        again=bool(made),
    ) as run:
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
            ):
                for batch, arrays in run.results(columns, start=writer.next_position):
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
    precision, size = made["precision"], made["batch_size"]
    with _run(
        tap, data, "auto", precision, size, preprocessing, workers, half=dtype == "float16", again=False
    ) as run:
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


@dataclass
class _Run:
    """One extraction under way: opened data, the tap's engine, the first batch that had a good sample."""

    tap: Tap
    source: Source | Stream
    preprocessing: Preprocessing | None
    tokenize: Callable[[list[str]], dict[str, np.ndarray[Any, Any]]] | None
    engine: Engine
    precision: Precision
    batch_size: int
    workers: int | None
    again: bool
    """The run goes on with a store: its first batch is computed for the shapes alone, in eager."""
    bytes: int = 0

    @property
    def length(self) -> int | None:
        """Samples in the data, where that is known."""
        return self.source.length if isinstance(self.source, Stream) else len(self.source.records)

    def __post_init__(self) -> None:
        self._first = self._read(0)
        self._lead: list[Batch] = []
        for batch in self._first:
            self._lead.append(batch)
            if batch.records:
                break
        else:
            raise DataError(_nothing_read(self.source.name, self._lead))
        images = self.preprocessing if isinstance(self.preprocessing, ImagePreprocessing) else None
        first = self.engine
        if self.again:
            first = backend_of(self.tap.model).engine(
                self.tap, name="eager", preprocessing=images, precision=self.precision
            )
        self._lead_arrays = self._compute(self._lead[-1], first)

    def _read(self, start: int) -> Iterator[Batch]:
        return batches(
            self.source,
            self.preprocessing,
            batch_size=self.batch_size,
            start=start,
            workers=self.workers,
            tokenizer=self.tokenize,
        )

    def _compute(self, batch: Batch, engine: Engine) -> dict[str, Any]:
        if not batch.records:
            return {}
        return {name: self._kept(name, values, batch) for name, values in engine(batch.inputs).items()}

    def _kept(self, name: str, values: np.ndarray[Any, Any], batch: Batch) -> Any:
        """The values of a batch; tokens that are padding go, which leaves samples of several lengths."""
        if len(values) != len(batch.records):
            raise ModelError(
                f"{name} gives {len(values)} rows for {len(batch.records)} samples, so it cannot be stored "
                "by sample: leave it out, or give a pool that makes one row of each sample"
            )
        named = batch.inputs if isinstance(batch.inputs, dict) else {}
        mask = next((named[name] for name in _MASKS if name in named), None)
        if mask is not None and values.ndim > 2 and values.shape[:2] == tuple(mask.shape):
            return [row[np.asarray(real, dtype=bool)] for row, real in zip(values, mask, strict=True)]
        return values

    def columns(self, dtype: Dtype) -> list[ColumnSpec]:
        """One column a point, shaped like the first batch."""
        baselines = {"@in": "raw", self.tap.last_features: "last"}
        return [
            ColumnSpec(
                name=point.name,
                shape=_shape(self._lead_arrays[point.name]),
                dtype=dtype,
                info=_info(point, baselines),
            )
            for point in self.tap.points
        ]

    def manifest(self) -> Manifest:
        """What determines the values, and what is only recorded."""
        backend = backend_of(self.tap.model)
        origin = self.tap.origin
        return Manifest(
            fingerprinted={
                "architecture": backend.architecture_hash(self.tap.model),
                "weights": backend.weights_hash(self.tap.model),
                "mode": self.tap.mode,
                "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
                "samples": _samples_hash(self.source),
                "engine": self.engine.name,
                "precision": self.precision,
                "batch_size": self.batch_size,
                "versions": {
                    **backend.versions(self.tap.model),
                    **self.engine.versions,
                    "pillow": PIL.__version__,
                    "spile": spile.__version__,
                },
            },
            recorded={
                "model": origin.reference
                if origin
                else f"{type(self.tap.model).__module__}.{type(self.tap.model).__qualname__}",
                "data": self.source.name,
                "kind": self.source.kind,
                "engine": dict(self.engine.notes),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "numpy": np.__version__,
            },
        )

    def results(self, columns: Sequence[ColumnSpec], *, start: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Every batch from `start` on with its arrays; what was read to learn shapes is not read again."""
        empty = {spec.name: np.empty((0, *spec.fixed_shape), np.float32) for spec in columns}
        ahead: Iterator[Batch] = chain(self._lead, self._first)
        if start:
            self.close()
            ahead = self._read(start)

        def compute(batch: Batch) -> dict[str, Any]:
            known = batch is self._lead[-1] and not self.again
            return self._lead_arrays if known else self._compute(batch, self.engine)

        for batch, found in several_at_once(ahead, compute, lambda: self.engine.at_once):
            arrays = found or empty
            self.bytes += (
                sum(_size(values) for values in arrays.values()) * np.dtype(columns[0].dtype).itemsize
            )
            yield batch, arrays

    def close(self) -> None:
        """Stop the reading threads."""
        close = getattr(self._first, "close", None)
        if close is not None:
            close()


@contextmanager
def _run(
    tap: Tap,
    data: Any,
    engine: EngineName,
    precision: Precision,
    batch_size: int | Literal["auto"],
    preprocessing: Preprocessing | None,
    workers: int | None,
    *,
    half: bool,
    again: bool,
) -> Iterator[_Run]:
    source = open_source(data)
    origin: LoadedModel | None = tap.origin
    chosen = preprocessing or (origin.preprocessing if origin else None)
    if source.kind != ("text" if isinstance(chosen, TextPreprocessing) else "image"):
        chosen = None
    images = chosen if isinstance(chosen, ImagePreprocessing) else None
    run = _Run(
        tap=tap,
        source=source,
        preprocessing=chosen,
        tokenize=origin.tokenize if origin else None,
        engine=backend_of(tap.model).engine(
            tap,
            name=engine,
            preprocessing=images,
            precision=precision,
            samples=source.length if isinstance(source, Stream) else len(source.records),
            half=half,
        ),
        precision=precision,
        batch_size=automatic_batch_size(tap) if batch_size == "auto" else batch_size,
        workers=workers,
        again=again,
    )
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


def _samples_hash(source: Source | Stream) -> dict[str, Any] | None:
    """How many samples, and a hash of their ids; ``None`` for a stream, which does not tell beforehand."""
    if isinstance(source, Stream):
        return None
    digest = hashlib.sha256()
    for record in source.records:
        digest.update(record.id.encode() + b"\0")
    return {"count": len(source.records), "ids": digest.hexdigest()}
