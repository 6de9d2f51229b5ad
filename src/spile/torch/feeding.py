"""A feed as a ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

if TYPE_CHECKING:
    from spile.feeding import Feed


class Batches(Dataset[Any]):
    """Whole batches by (number, epoch), so that a worker needs to be told nothing else."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Any, ...]:
        """Images and labels, and where they come from if asked for."""
        found, origins = self.feed.traced(*place)
        return (found.images, found.labels, *([origins] if self.feed.origins else []))


class Places(Sampler[tuple[int, int]]):
    """The numbers of all batches, with the epoch."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes; Lightning calls this itself."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((number, self.epoch) for number in range(self.count))

    def __len__(self) -> int:
        return self.count


class Loader(DataLoader[Any]):
    """A ``DataLoader`` of whole batches; `set_epoch` before each."""

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes, counted from 0."""
        self.sampler.set_epoch(epoch)  # type: ignore[attr-defined]


def loader(feed: Feed, workers: int) -> Loader:
    """The loader of a feed."""
    # Workers that live on have a copy of a bank, which would stay as it was.
    settled = getattr(feed.augmenter.source, "settled", True)
    generator = torch.Generator()  # the loader would draw a seed for its workers from the global one
    return Loader(
        Batches(feed),
        batch_size=None,
        sampler=Places(len(feed)),
        num_workers=workers,
        generator=generator,
        persistent_workers=workers > 0 and settled,
    )
