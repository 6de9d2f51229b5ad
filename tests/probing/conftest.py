from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class Spec:
    name: str
    shape: tuple[int | None, ...]
    dtype: str
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class MemoryColumn:
    values: np.ndarray

    def batches(self, rows: int = 7) -> Iterator[np.ndarray]:
        for start in range(0, len(self.values), rows):
            yield self.values[start : start + rows]


class MemoryStore:
    """Points held in a dict, handed out in batches of 7 rows; nothing else of a store."""

    def __init__(
        self,
        points: Mapping[str, np.ndarray],
        labels: Sequence[Any] | np.ndarray | None,
        *,
        info: Mapping[str, Mapping[str, Any]] | None = None,
        splits: Sequence[str | None] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> None:
        self.values = dict(points)
        self.labels, self.splits, self.groups = labels, splits, groups
        self.ids = [f"sample-{i}" for i in range(len(next(iter(points.values()))))]
        self.points = {
            name: Spec(
                name,
                array.shape[1:],
                str(array.dtype),
                (info or {}).get(name, {"order": i, "macs": 1000 * (i + 1)}),
            )
            for i, (name, array) in enumerate(points.items())
        }

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, point: str) -> MemoryColumn:
        return MemoryColumn(self.values[point])


@pytest.fixture
def make_store() -> type[MemoryStore]:
    return MemoryStore


@pytest.fixture
def blobs() -> Any:
    """Rows (n, d) of `classes` Gaussian classes and their labels; `spread` 0 is noise, 3 is easy."""

    def make(
        n: int, d: int, *, classes: int = 3, spread: float = 2.0, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        y = np.arange(n) % classes
        centres = np.random.default_rng(seed + 1).normal(size=(classes, d)) * spread / np.sqrt(d)
        return rng.normal(size=(n, d)) + centres[y] * np.sqrt(d) / 2, y

    return make
