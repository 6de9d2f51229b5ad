"""What every kind of data looks like to the rest of spile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Label = str | int | float | frozenset[str] | frozenset[int] | None
"""Of a sample; a set where it has several, or perhaps none, of them."""
Kind = Literal["image", "array", "text"]
"""image: uint8 pixels to be preprocessed; array: numbers taken as ready; text: strings to tokenize."""


class BadSample(Exception):  # noqa: N818 - a verdict on one sample, not a failure of the run
    """One sample cannot be used; the message is the reason that the store's `skipped` table records."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a sample without reading it. `id` is unique in its source and stable."""

    id: str
    label: Label = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that could not be used: where it stood in the source, its id, and why."""

    position: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, ready for a model: `inputs` hold ``len(records)`` samples, in source order.

    `inputs` is a uint8 array (n, height, width, channels) for images, a ready array for arrays, a dict of
    arrays for tokenized text or several inputs, or what a user's own loader yields: torch tensors, else NumPy
    arrays, or a dict, list or tuple of them; ``None`` if no sample is left. `start` and `stop` bound the
    source positions the batch covers; those that are not in `positions` are in `skipped`.
    """

    inputs: Any
    kind: Kind
    positions: tuple[int, ...]
    records: tuple[Record, ...]
    start: int
    stop: int
    skipped: tuple[Skipped, ...] = field(default=())


@runtime_checkable
class Source(Protocol):
    """Samples that can be read one by one, by position, from several threads."""

    @property
    def name(self) -> str:
        """What the manifest records, e.g. the folder or ``demo:mnist5k``."""
        ...

    @property
    def kind(self) -> Kind:
        """What `read` returns."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """One record a sample. A user's own dataset tells the label only when the sample has been read."""
        ...

    def read(self, position: int) -> Any:
        """Read one sample: RGB uint8 (height, width, 3), a ready array, or a string. Raises `BadSample`."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Samples that only come as the user's own batches, in order: a DataLoader, ``tf.data``, an iterator."""

    @property
    def name(self) -> str:
        """What the manifest records."""
        ...

    @property
    def kind(self) -> Kind:
        """What the batches hold."""
        ...

    @property
    def length(self) -> int | None:
        """Number of samples if known."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield the user's batches, from the beginning."""
        ...
