"""A tap, data and an engine: batches of samples in, the arrays of every point out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

import numpy as np

from spile.backend import backend_of, framework_of
from spile.data import Batch, Source, Stream, batches, open_source
from spile.errors import ModelError
from spile.interfaces import Engine, EngineName, Precision, Tap
from spile.models import LoadedModel
from spile.pipeline import automatic_batch_size, several_at_once
from spile.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing

_MASKS = {"torch": ("attention_mask",), "keras": ("attention_mask", "padding_mask")}
"""What Hugging Face and Keras Hub call the input that is 1 where a token is real.

In PyTorch's own layers `padding_mask` says the opposite.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a tap is run over data; see `spile.extract`."""

    engine: EngineName
    precision: Precision
    batch_size: int | Literal["auto"]
    preprocessing: Preprocessing | None
    workers: int | None
    half: bool
    """Floats are kept in float16."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass over data that is ready to begin."""

    tap: Tap
    source: Source | Stream
    preprocessing: Preprocessing | None
    tokenize: Callable[[list[str]], dict[str, np.ndarray[Any, Any]]] | None
    engine: Engine
    batch_size: int
    workers: int | None

    @classmethod
    def of(cls, tap: Tap, data: Any, settings: Settings) -> Pass:
        """Open the data, and find out what is left to be chosen."""
        source = open_source(data)
        origin: LoadedModel | None = tap.origin
        chosen = settings.preprocessing or (origin.preprocessing if origin else None)
        if source.kind != ("text" if isinstance(chosen, TextPreprocessing) else "image"):
            chosen = None
        size = settings.batch_size
        engine = backend_of(tap.model).engine(
            tap,
            name=settings.engine,
            preprocessing=chosen if isinstance(chosen, ImagePreprocessing) else None,
            precision=settings.precision,
            samples=_length(source),
            half=settings.half,
        )
        return cls(
            tap=tap,
            source=source,
            preprocessing=chosen,
            tokenize=origin.tokenize if origin else None,
            engine=engine,
            batch_size=automatic_batch_size(tap) if size == "auto" else index(size),
            workers=settings.workers,
        )

    @property
    def length(self) -> int | None:
        """Samples in the data, where that is known."""
        return _length(self.source)

    def read(self, start: int = 0, *, every: int = 1) -> Iterator[Batch]:
        """The batches from the position `start` on; with `every`, each such one of them."""
        return batches(
            self.source,
            self.preprocessing,
            batch_size=self.batch_size,
            start=start,
            every=every,
            workers=self.workers,
            tokenizer=self.tokenize,
        )

    def compute(self, batch: Batch, engine: Engine | None = None) -> dict[str, Any]:
        """The arrays of one batch, by point; empty where no sample of it is left."""
        if not batch.records:
            return {}
        found = (engine or self.engine)(batch.inputs)
        masks = _MASKS[str(framework_of(self.tap.model))]
        return {name: _kept(name, values, batch, masks) for name, values in found.items()}

    def results(
        self, read: Iterable[Batch], known: Callable[[Batch], dict[str, Any] | None] = lambda batch: None
    ) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """What is computed of each batch, in order; unless it is `known` already."""

        def compute(batch: Batch) -> dict[str, Any]:
            before = known(batch)
            return self.compute(batch) if before is None else before

        return several_at_once(read, compute, lambda: self.engine.at_once)


def _length(source: Source | Stream) -> int | None:
    return source.length if isinstance(source, Stream) else len(source.records)


def _kept(name: str, values: np.ndarray[Any, Any], batch: Batch, masks: Iterable[str]) -> Any:
    """The values of a batch; tokens that are padding go, which leaves samples of several lengths."""
    rows = len(values) if values.ndim else "no"
    if rows != len(batch.records):
        raise ModelError(
            f"{name} gives {rows} rows for {len(batch.records)} samples, so it cannot be stored "
            "by sample: leave it out, or give a pool that makes one row of each sample"
        )
    named = batch.inputs if isinstance(batch.inputs, dict) else {}
    mask = next((named[name] for name in masks if name in named), None)
    if mask is not None and values.ndim > 2 and values.shape[:2] == tuple(mask.shape):
        return [row[np.asarray(real, dtype=bool)] for row, real in zip(values, mask, strict=True)]
    return values
