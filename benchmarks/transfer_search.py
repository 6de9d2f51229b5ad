"""The search against `LogisticRegressionCV`, and its memory on many rows.

    python benchmarks/transfer_search.py speed --layers 3
    python benchmarks/transfer_search.py memory --rows 100000 --layers 12 --dims 768

``speed``: 1,000 digits, 25 penalties, 5 folds, the same features and folds; for each layer the two run one
after the other, and the ratio of their times is what counts. `LogisticRegressionCV` runs once a layer and is
credited with the score of its best penalty on the folds that chose it; spile's penalty is chosen inside the
training rows of each fold. ``--layers`` takes so many of the 18, evenly spread. ``memory``: random
activations with a weak signal in a store on disk; prints the time and the highest resident size of the search
above what the process had before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import spile
from spile.probing.ridge import RELATIVE_ALPHAS

parser = argparse.ArgumentParser()
parser.add_argument("what", choices=("speed", "memory"))
parser.add_argument("--layers", type=int, default=None)
parser.add_argument("--rows", type=int, default=100_000)
parser.add_argument("--dims", type=int, default=768)
parser.add_argument("--size", type=int, default=64)


class OnePoint:
    """A store with one of the points of another."""

    def __init__(self, store: Any, name: str) -> None:
        self.points = {name: store.points[name]}
        self.ids, self.labels, self.splits, self.groups = store.ids, store.labels, None, None
        self._column = store[name]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Any:
        return self._column


def speed(options: Any) -> None:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from spile.data.demo import digits
    from spile.probing.folds import assign_folds

    warnings.simplefilter("ignore")
    source = digits()
    y = np.array([record.label for record in source.records])[:1000]
    images = np.stack([source.read(i) for i in range(1000)])
    tap = spile.tap(
        spile.load_model("demo:efficientnet_lite0", input_size=options.size), ["blocks", "classifier@in"]
    )
    store = spile.extract(tap, (images, y), progress=False)
    started = time.perf_counter()
    everything = spile.probe(store, nested=False)
    print(
        f"all {len(store.points)} layers, {len(RELATIVE_ALPHAS)} penalties, 5 folds: "
        f"{time.perf_counter() - started:.1f} s, best {everything.best.point} {everything.best.score:.3f}"
    )
    names = list(store.points)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, options.layers or len(names)).astype(int)]
    (folds,) = assign_folds(y, folds=5)
    splits = [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(5)]
    ratios, times, gaps = [], np.zeros(2), []
    for name in chosen:
        only = OnePoint(store, name)
        started = time.perf_counter()
        ours = spile.probe(only, nested=False)
        mine = time.perf_counter() - started
        X = store[name].numpy().astype(np.float32)
        started = time.perf_counter()
        search = LogisticRegressionCV(Cs=len(RELATIVE_ALPHAS), cv=splits, max_iter=100)
        make_pipeline(StandardScaler(), search).fit(X, y)
        theirs = time.perf_counter() - started
        score = float(np.max(np.mean(next(iter(search.scores_.values())), axis=0)))
        ratios.append(theirs / mine)
        times += (mine, theirs)
        gaps.append((ours.best.score or 0.0) - score)
        print(
            f"{name} ({X.shape[1]}): spile {mine:.2f} s, {ours.best.score:.3f} ± {ours.best.stderr:.3f}; "
            f"LogisticRegressionCV {theirs:.1f} s, {score:.3f}; {ratios[-1]:.0f} times",
            flush=True,
        )
    print(
        f"{len(chosen)} layers: {times[0]:.1f} s against {times[1]:.0f} s, {times[1] / times[0]:.0f} times "
        f"(a layer: median {np.median(ratios):.0f}, least {min(ratios):.0f}); accuracy "
        f"{np.mean(gaps):+.4f} on average, {min(gaps):+.4f} to {max(gaps):+.4f}"
    )


def in_memory(what: str) -> float:
    """MiB of this process: resident, ``VmRSS``, or the peak of it, ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def memory(options: Any) -> None:
    from spile.data.source import Record
    from spile.store import ColumnSpec, Manifest, create

    layers = options.layers or 12
    with tempfile.TemporaryDirectory() as folder:
        columns = [
            ColumnSpec(
                name=f"layer{i}", shape=(options.dims,), dtype="float16", info={"order": i, "macs": i + 1}
            )
            for i in range(layers)
        ]
        writer = create(f"{folder}/store.lance", columns, Manifest(fingerprinted={}, recorded={}))
        rng = np.random.default_rng(0)
        block = 5000
        for start in range(0, options.rows, block):
            n = min(block, options.rows - start)
            labels = rng.integers(0, 10, n)
            arrays = {}
            for i, spec in enumerate(columns):
                values = rng.standard_normal((n, options.dims), dtype=np.float32)
                values[np.arange(n), labels] += 0.3 * i
                arrays[spec.name] = values
            records = [Record(str(start + j), int(label)) for j, label in enumerate(labels)]
            writer.append(records, list(range(start, start + n)), arrays, [], stop=start + n)
        writer.commit()
        store = writer.finish()
        before = in_memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        started = time.perf_counter()
        result = spile.probe(store)
        seconds = time.perf_counter() - started
        after = in_memory("VmHWM")
    whole = options.rows * options.dims * 2 * layers / 2**20
    print(
        f"{options.rows:,} rows x {layers} layers x {options.dims}: {seconds:.0f} s, "
        f"{after - before:.0f} MiB above the {before:.0f} MiB before; "
        f"the features are {whole:.0f} MiB; best {result.best.point} {result.best.score:.3f}"
    )


if __name__ == "__main__":
    options = parser.parse_args()
    {"speed": speed, "memory": memory}[options.what](options)
