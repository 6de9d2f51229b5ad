"""Samples to batches: threads read ahead, the order stays, memory use does not grow with the data."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spile.cores import usable_cores
from spile.data.images import apply, read_image
from spile.data.source import BadSample, Batch, Kind, Record, Skipped, Source, Stream
from spile.errors import DataError
from spile.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing

Form = tuple[tuple[str, Any, tuple[int, ...]], ...]
"""Of a sample: name, dtype and shape of each array; one without a name, or several inputs."""
Tokenizer = Callable[[list[str]], dict[str, np.ndarray[Any, Any]]]

_CHUNK = 8
"""Samples a thread reads at a time: few enough to share the work, enough to outweigh the hand-over."""


@dataclass(frozen=True, slots=True)
class _Read:
    """One sample that has been read, or the reason why not."""

    position: int
    record: Record
    value: Any
    reason: str | None = None


def batches(
    source: Source | Stream,
    preprocessing: Preprocessing | None,
    *,
    batch_size: int,
    start: int = 0,
    every: int = 1,
    workers: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Generator[Batch, None, None]:
    """Read `source` in order, in batches that are ready for a model.

    Batch k covers the positions ``k * batch_size`` up to ``(k + 1) * batch_size``; what cannot be read is in
    its `skipped`, so it may be smaller, or have no inputs at all (``None``). Images are resized and cropped,
    not yet normalised. A stream's batches are taken as they are, but for uint8 images, which are prepared;
    `batch_size` does not apply to them.

    Args:
        source: samples or a stream of batches.
        preprocessing: how images are resized and cropped; ``None`` where all have one size already. Arrays
            ignore it.
        batch_size: samples a batch.
        start: how many samples to leave out at the beginning; a boundary between batches.
        every: of the batches from there on, take the first of so many; not for a stream.
        workers: threads that read and decode; by default one a processor, 16 at most.
        tokenizer: texts to a dict of arrays of shape (n, tokens); needed for a source of texts.

    Raises `DataError` at once where the arguments do not fit, and on reading where image sizes differ.
    Closing the generator stops the threads.
    """
    if isinstance(source, Stream):
        return _stream(source, preprocessing, start)
    workers = _processors() if workers is None else workers
    _check(source, preprocessing, batch_size, start, workers, tokenizer)
    return _load(source, preprocessing, batch_size, start, every, workers, tokenizer)


def _check(
    source: Source,
    preprocessing: Preprocessing | None,
    batch_size: int,
    start: int,
    workers: int,
    tokenizer: Tokenizer | None,
) -> None:
    if batch_size < 1 or workers < 1:
        raise DataError(f"batch_size and workers must be 1 or more, got {batch_size} and {workers}")
    if start < 0 or start % batch_size:
        raise DataError(f"start must be a multiple of batch_size {batch_size}, got {start}")
    if source.kind == "text" and tokenizer is None:
        raise DataError(
            f"{source.name} holds texts: a tokenizer is needed. Use a model that reads text, such as hf:NAME"
        )
    if source.kind == "image" and isinstance(preprocessing, TextPreprocessing):
        raise DataError(
            f"{source.name} holds images, but the model reads text (tokenizer {preprocessing.tokenizer!r})"
        )


def _stream(stream: Stream, preprocessing: Preprocessing | None, start: int) -> Generator[Batch, None, None]:
    for batch in stream.batches():
        if batch.start < start < batch.stop:
            raise DataError(
                f"{stream.name}: its batches end at {batch.start} and {batch.stop}, so it cannot start at "
                f"{start}. Use the batch size of the first run."
            )
        if batch.start >= start:
            yield _prepared(batch, stream.name, preprocessing) if stream.kind == "image" else batch


def _prepared(batch: Batch, name: str, preprocessing: Preprocessing | None) -> Batch:
    """The batch with its uint8 images (n, height, width, 1, 3 or 4) in RGB, resized and cropped."""
    images = batch.inputs
    if getattr(images, "dtype", None) != np.uint8:
        raise DataError(f"{name} began with batches of uint8 images, and this one is not: give all one type")
    try:
        pixels = [read_image(image) for image in images]
        if isinstance(preprocessing, ImagePreprocessing):
            pixels = [apply(image, preprocessing) for image in pixels]
    except BadSample as bad:
        raise DataError(f"{name}: images {batch.start} to {batch.stop - 1}: {bad}") from bad
    return replace(batch, inputs=np.stack(pixels) if pixels else None)


def _load(
    source: Source,
    preprocessing: Preprocessing | None,
    batch_size: int,
    start: int,
    every: int,
    workers: int,
    tokenizer: Tokenizer | None,
) -> Generator[Batch, None, None]:
    total = len(source.records)
    assemble = _Assembly(source.kind, source.name, tokenizer)
    if start and source.kind != "text":
        assemble.expect_like_first(source, preprocessing)
    stop = threading.Event()

    def read_chunk(positions: range) -> list[_Read]:
        return [_read(source, position, preprocessing) for position in positions if not stop.is_set()]

    ahead: deque[tuple[range, list[Future[list[_Read]]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="spile-read")
    try:
        for first in range(start, total, batch_size * every):
            positions = range(first, min(first + batch_size, total))
            chunks = [positions[i : i + _CHUNK] for i in range(0, len(positions), _CHUNK)]
            ahead.append((positions, [pool.submit(read_chunk, chunk) for chunk in chunks]))
            if len(ahead) > _batches_ahead(batch_size, workers):
                yield assemble(*_gather(ahead.popleft()))
        while ahead:
            yield assemble(*_gather(ahead.popleft()))
    finally:
        stop.set()
        pool.shutdown()


def _gather(batch: tuple[range, Iterable[Future[list[_Read]]]]) -> tuple[range, list[_Read]]:
    positions, chunks = batch
    return positions, [read for chunk in chunks for read in chunk.result()]


def _read(source: Source, position: int, preprocessing: Preprocessing | None) -> _Read:
    try:
        value = source.read(position)
        if source.kind == "image" and isinstance(preprocessing, ImagePreprocessing):
            value = apply(value, preprocessing)
    except BadSample as bad:
        return _Read(position, source.records[position], None, str(bad))
    # The record as it is after reading: a dataset tells its label only then.
    return _Read(position, source.records[position], value)


class _Assembly:
    """Puts samples together, all of the form (type and shape) of the first good one."""

    def __init__(self, kind: Kind, name: str, tokenizer: Tokenizer | None) -> None:
        self.kind = kind
        self.name = name
        self.tokenizer = tokenizer
        self.form: Form | None = None

    def expect_like_first(self, source: Source, preprocessing: Preprocessing | None) -> None:
        """Take the form from the beginning of `source`, so that a later part is judged as the whole is."""
        for position in range(len(source.records)):
            read = _read(source, position, preprocessing)
            if read.reason is None:
                self.form = _form(read.value)
                return

    def __call__(self, positions: range, reads: list[_Read]) -> Batch:
        if self.kind != "text":
            reads = [self._checked(read) for read in reads]
        good = [read for read in reads if read.reason is None]
        return Batch(
            inputs=self._stack([read.value for read in good]) if good else None,
            kind=self.kind,
            positions=tuple(read.position for read in good),
            records=tuple(read.record for read in good),
            start=positions.start,
            stop=positions.stop,
            skipped=tuple(Skipped(r.position, r.record.id, r.reason) for r in reads if r.reason is not None),
        )

    def _checked(self, read: _Read) -> _Read:
        if read.reason is not None:
            return read
        form = _form(read.value)
        self.form = self.form or form
        if form == self.form:
            return read
        found, expected = _described(form), _described(self.form)
        if self.kind == "image":
            raise DataError(
                f"{self.name}: {read.record.id!r} is {found}, the images before it are {expected}. "
                "Images of several sizes need preprocessing with a crop or a (height, width) resize."
            )
        return _Read(read.position, read.record, None, f"{found} where the first sample is {expected}")

    def _stack(self, values: list[Any]) -> Any:
        if self.kind == "text":
            assert self.tokenizer is not None
            return self.tokenizer(values)
        if isinstance(values[0], Mapping):
            return {key: np.stack([value[key] for value in values]) for key in values[0]}
        return np.stack(values)


def _form(value: Any) -> Form:
    if isinstance(value, Mapping):
        return tuple((key, array.dtype, array.shape) for key, array in value.items())
    return (("", value.dtype, value.shape),)


def _described(form: Form) -> str:
    return ", ".join(
        f"{key} {dtype} {'x'.join(map(str, shape)) or 'scalar'}".lstrip() for key, dtype, shape in form
    )


def _batches_ahead(batch_size: int, workers: int) -> int:
    """How many batches are read beyond the one asked for: one, or as many as give each thread two chunks."""
    return max(1, math.ceil(2 * workers * _CHUNK / batch_size))


def _processors() -> int:
    return min(usable_cores(), 16)
