"""How much memory extraction to disk takes, and `predict`, on few and on many samples.

    KERAS_BACKEND=jax python benchmarks/keras_memory.py

The samples, images of 32 x 32, are made while they are read; the layer gives 4096 numbers a sample. Every run
has a process of its own. What it prints is the largest resident memory, and how much that is above the memory
after two batches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

BATCH_SIZE = 50
WAYS = ("extract", "predict")
MIB = 2**20
SECONDS_BETWEEN_LOOKS = 0.02


@dataclass
class Peak:
    """The largest resident memory of this process, seen by looking every now and then."""

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    # Not `getrusage`: its maximum can be that of the process that started this one.
    process, peak, done = psutil.Process(), Peak(), threading.Event()

    def look() -> None:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss)


def batches(samples: int) -> Iterator[Any]:
    random = np.random.default_rng(0)
    for _ in range(samples // BATCH_SIZE):
        yield random.random((BATCH_SIZE, 32, 32, 3), "float32")


def network() -> Any:
    import keras

    start = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(start)
    x = keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu", name="conv")(x)
    return keras.Model(start, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def extracting(folder: Path) -> Callable[[int], int]:
    import spile

    tap = spile.tap(network(), "conv", pool="flatten")

    def run(samples: int) -> int:
        path = folder / f"{samples}.lance"
        return len(spile.extract(tap, lambda: batches(samples), path, progress=False))

    return run


def predicting(folder: Path) -> Callable[[int], int]:
    import keras

    model = network()
    part = keras.Model(model.inputs, keras.layers.Flatten()(model.get_layer("conv").output))
    return lambda samples: len(part.predict(((x,) for x in batches(samples)), verbose=0))


def measured(way: str, samples: int) -> dict[str, float]:
    """One run in this process: its peak in MiB, the memory before it, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = {"extract": extracting, "predict": predicting}[way](Path(folder))
        run(2 * BATCH_SIZE)
        before, begun = psutil.Process().memory_info().rss, time.perf_counter()
        with peak_memory() as peak:
            assert run(samples) == samples
    return {
        "peak": peak.bytes / MIB,
        "before": before / MIB,
        "seconds": time.perf_counter() - begun,
    }


def in_own_process(way: str, samples: int) -> dict[str, float]:
    """The same as `measured`, in a process that has done nothing before."""
    command = [sys.executable, __file__, "--one", way, str(samples)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, nargs=2, default=(5_000, 50_000), metavar=("FEW", "MANY"))
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SAMPLES"), help="one run, as a line of JSON")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if options.one:
        way, samples = options.one
        print(json.dumps(measured(way, int(samples))))
        return
    import keras

    print(f"keras on {keras.backend.backend()}: peak memory, and what of it came after the first batches")
    for way in WAYS:
        few, many = (in_own_process(way, samples) for samples in options.samples)
        for samples, run in zip(options.samples, (few, many), strict=True):
            above = run["peak"] - run["before"]
            told = f"{run['peak']:7.0f} MiB, {above:+6.0f} MiB, {run['seconds']:.0f} s"
            print(f"  {way:8} {samples:7} samples: {told}")
        print(f"  {way:8} {'more for the many':>17}: {many['peak'] - few['peak']:+.0f} MiB")


if __name__ == "__main__":
    main()
