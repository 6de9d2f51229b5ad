from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spile.data.source import Record
from spile.store import ColumnSpec, Manifest, Store, create

MANIFEST = Manifest(
    fingerprinted={
        "architecture": "net",
        "weights": "abc",
        "mode": "eval",
        "preprocessing": None,
        "precision": "float32",
        "versions": {"torch": "2"},
    },
    recorded={"model": "timm:tiny", "data": "photos"},
)


def stored(
    points: Mapping[str, np.ndarray],
    *,
    labels: Sequence[Any] | None = None,
    splits: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    path: Path | None = None,
    manifest: Manifest = MANIFEST,
) -> Store:
    """A store of these points (n, ...), float32, deeper ones later."""
    n = len(next(iter(points.values())))
    columns = [
        ColumnSpec(
            name=name,
            shape=values.shape[1:],
            dtype="float32",
            info={"address": name, "pool": "avg", "order": order, "macs": 1000 * (order + 1)},
        )
        for order, (name, values) in enumerate(points.items())
    ]

    def of(values: Sequence[Any] | None, row: int) -> Any:
        return None if values is None else values[row]

    writer = create(path, columns, manifest)
    records = [Record(of(ids, i) or f"s{i}", of(labels, i), of(splits, i), of(groups, i)) for i in range(n)]
    writer.append(records, range(n), {name: v.astype(np.float32) for name, v in points.items()}, [], stop=n)
    return writer.finish()


@pytest.fixture
def make_store() -> Callable[..., Store]:
    return stored


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def manifest() -> Manifest:
    return MANIFEST
