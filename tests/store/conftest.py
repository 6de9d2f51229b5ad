from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spile.data.source import Record, Skipped
from spile.store import ColumnSpec, Manifest, Store, Writer, create, has_store, resume

BATCH = 4
SAMPLES = 30
SKIPPED = {0, 6, 7, 8, 9, 10, 11, 17, 29}  # the first, whole batches, the end of a batch, the last

MANIFEST = Manifest(
    fingerprinted={"weights": "abc", "precision": "float32", "batch_size": BATCH},
    recorded={"model": "timm:tiny"},
)
COLUMNS = (
    ColumnSpec(
        name="layer4.0.conv2@in",
        shape=(6,),
        dtype="float16",
        info={"address": "layer4.0.conv2@in", "pool": "avg"},
    ),
    ColumnSpec(name="map", shape=(2, 3), dtype="float32", info={"address": "map", "pool": None, "macs": 12}),
    ColumnSpec(name="tokens", shape=(None, 5), dtype="float16", info={"address": "tokens", "pool": None}),
)


def features(position: int) -> dict[str, np.ndarray]:
    """What a model would give for the sample at `position`."""
    rng = np.random.default_rng(position)
    return {
        "layer4.0.conv2@in": rng.standard_normal(6).astype(np.float16),
        "map": rng.standard_normal((2, 3)).astype(np.float32),
        "tokens": rng.standard_normal((position % 4, 5)).astype(np.float16),
    }


def arrays(positions: list[int]) -> dict[str, object]:
    each = [features(p) for p in positions]
    stacked = (
        {name: np.stack([one[name] for one in each]) for name in ("layer4.0.conv2@in", "map")} if each else {}
    )
    return {**stacked, "tokens": [one["tokens"] for one in each]}


def record(position: int) -> Record:
    return Record(f"s{position}", f"class{position % 3}", "train" if position % 2 else "test", None)


def feed(writer: Writer, *, samples: int = SAMPLES, skip: set[int] = SKIPPED, batch: int = BATCH) -> None:
    while writer.next_position < samples:
        start, stop = writer.next_position, min(writer.next_position + batch, samples)
        kept = [p for p in range(start, stop) if p not in skip]
        bad = [Skipped(p, f"s{p}", f"broken {p}") for p in range(start, stop) if p in skip]
        writer.append([record(p) for p in kept], kept, arrays(kept), bad, stop=stop)


def extract(path: Path | None, *, commit_bytes: int = 1, commit_seconds: float = 1e9) -> Store:
    """Make the store at `path`, or go on with what is there of it."""
    start = resume if path is not None and has_store(path) else create
    writer = start(path, COLUMNS, MANIFEST, commit_bytes=commit_bytes, commit_seconds=commit_seconds)
    if not writer.complete:
        feed(writer)
    return writer.finish()


def contents(store: Store) -> dict[str, object]:
    """Everything a store holds, as plain bytes and lists."""
    tokens = store["tokens"].numpy()
    return {
        "ids": store.ids.tolist(),
        "positions": store.positions.tolist(),
        "labels": None if store.labels is None else store.labels.tolist(),
        "splits": None if store.splits is None else store.splits.tolist(),
        "skipped": store.skipped.to_pylist(),
        "conv": store["layer4.0.conv2@in"].numpy().tobytes(),
        "map": store["map"].numpy().tobytes(),
        "tokens": ([len(row) for row in tokens], b"".join(row.tobytes() for row in tokens)),
        "fingerprint": store.fingerprint,
        "complete": store.complete,
    }


class Tools:
    """The helpers above, for the test files."""

    BATCH, SAMPLES, SKIPPED, MANIFEST, COLUMNS = BATCH, SAMPLES, SKIPPED, MANIFEST, COLUMNS
    features, arrays, record, feed, extract, contents = map(
        staticmethod, (features, arrays, record, feed, extract, contents)
    )


@pytest.fixture
def tools() -> type[Tools]:
    return Tools


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return extract(None if request.param == "memory" else tmp_path / "feats.lance")


@pytest.fixture
def simple(tmp_path: Path) -> Callable[..., Store]:
    """Make a store of one column `x` from an array (n, ...) and, if given, labels."""

    def make(x: np.ndarray, labels: object = None, *, path: str | None = "x.lance", **info: object) -> Store:
        spec = ColumnSpec(name="x", shape=x.shape[1:], dtype=str(x.dtype), info=info)
        writer = create(None if path is None else tmp_path / path, [spec], MANIFEST)
        records = [Record(f"s{i}", None if labels is None else labels[i]) for i in range(len(x))]
        writer.append(records, range(len(x)), {"x": x}, stop=len(x))
        return writer.finish()

    return make
