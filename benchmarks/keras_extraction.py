"""Extraction from a Keras model against `keras.Model(inputs, layer.output).predict`, on the backend of Keras.

    KERAS_BACKEND=jax python benchmarks/keras_extraction.py --samples 250 --rounds 5

Everything runs in one process, in turns, so that a busy machine slows all alike: what counts is the ratio of
two times of the same round. Compilation is over before the rounds begin, and is reported as the first run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import spile

LAYER = "conv3_block4_out"
BATCH_SIZE = 32
RTOL = 1e-3
WIDTHS = (8, 9, 8, 8, 8, 10, 14)

Array = np.ndarray[Any, Any]


@dataclass
class Contender:
    """One way to get the same features."""

    name: str
    run: Callable[[], Array]
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def turn(self) -> Array:
        """Run once and keep the time."""
        begun, used = time.perf_counter(), time.process_time()
        found = self.run()
        self.seconds.append(time.perf_counter() - begun)
        self.cpu.append(time.process_time() - used)
        return found


def duels(model: keras.Model, images: Array) -> dict[str, list[Contender]]:
    """For each kind of result spile, and what it is compared with."""
    layer = model.get_layer(LAYER)
    whole = keras.Model(model.inputs, layer.output)
    pooled = keras.Model(model.inputs, keras.layers.GlobalAveragePooling2D()(layer.output))

    def predict(part: keras.Model) -> Array:
        return part.predict(images, batch_size=BATCH_SIZE, verbose=0)

    def extract(tap: Any) -> Array:
        store = spile.extract(tap, images, dtype="float32", batch_size=BATCH_SIZE, progress=False)
        return store[LAYER].numpy()

    whole_tap, pooled_tap = (spile.tap(model, LAYER, pool=pool) for pool in (None, "avg"))
    return {
        "whole maps": [
            Contender("spile.extract", lambda: extract(whole_tap)),
            Contender("predict", lambda: predict(whole)),
        ],
        "averaged maps": [
            Contender("spile.extract", lambda: extract(pooled_tap)),
            Contender("predict, pooled in the model", lambda: predict(pooled)),
            Contender("predict, then numpy.mean", lambda: predict(whole).mean((1, 2))),
        ],
    }


def fight(contenders: list[Contender], rounds: int) -> None:
    """Let all run in turns, in alternating order, and check that they give the same."""
    expected: Array | None = None
    for contender in contenders:
        found = contender.turn()
        contender.first = contender.seconds.pop()
        contender.cpu.clear()
        if expected is None:
            expected = found
        scale = float(np.abs(expected).max())
        assert found.shape == expected.shape, (contender.name, found.shape, expected.shape)
        assert np.abs(found - expected).max() <= RTOL * scale, f"{contender.name} gives other values"
    for turn in range(rounds):
        for contender in contenders[:: 1 if turn % 2 else -1]:
            contender.turn()


def report(kind: str, contenders: list[Contender], samples: int) -> None:
    spile_, *others = contenders
    print(f"\n{kind}")
    print(
        f"  {'':30}{'first':>8}{'median':>9}{'least':>8}{'most':>8}{'CPU':>8}{'images/s':>10}{'spile is':>14}"
    )
    for contender in contenders:
        times = contender.seconds
        median = statistics.median(times)
        cpu = statistics.median(contender.cpu)
        columns = [f"{t:.2f}s" for t in (contender.first, median, min(times), max(times), cpu)]
        columns += [f"{samples / median:.1f}", speed(spile_, contender) if contender in others else ""]
        row = zip(columns, WIDTHS, strict=True)
        print(f"  {contender.name:30}" + "".join(f"{column:>{width}}" for column, width in row))


def speed(one: Contender, other: Contender) -> str:
    """How many times as fast one is as the other: the median over the rounds."""
    ratio = statistics.median(b / a for a, b in zip(one.seconds, other.seconds, strict=True))
    return f"{ratio:.2f} x as fast"


def machine() -> str:
    backend = keras.backend.backend()
    names = ("spile", "keras", backend, "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} processors; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=250, help="images; 250 leaves an odd last batch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None)
    images = np.random.default_rng(0).normal(size=(options.samples, 224, 224, 3)).astype("float32")
    print(machine())
    print(f"ResNet50 to {LAYER}, {options.samples} images of 224 x 224 in batches of {BATCH_SIZE}, float32")
    for kind, contenders in duels(model, images).items():
        fight(contenders, options.rounds)
        report(kind, contenders, options.samples)


if __name__ == "__main__":
    main()
