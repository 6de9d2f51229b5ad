"""Extraction from a Keras model against `keras.Model(inputs, layer.output).predict`, on the backend of Keras.

    KERAS_BACKEND=jax python benchmarks/keras_extraction.py --samples 250 --rounds 5

Everything runs in one process, in turns, so that a busy machine slows all alike: what counts is the ratio of
two times of the same round. Compilation is over before the rounds begin, but for OpenVINO's (on TensorFlow),
which is part of every run and not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from pairing import Contender, Duel

import spile
from spile.interfaces import EngineName

LAYER = "conv3_block4_out"
BATCH_SIZE = 32

Array = np.ndarray[Any, Any]


def duels(model: keras.Model, images: Array) -> Iterator[Duel]:
    """For each kind of result what is compared with spile, and spile."""
    layer = model.get_layer(LAYER)
    whole = keras.Model(model.inputs, layer.output)
    pooled = keras.Model(model.inputs, keras.layers.GlobalAveragePooling2D()(layer.output))

    def predict(part: keras.Model) -> Array:
        return part.predict(images, batch_size=BATCH_SIZE, verbose=0)

    def extracting(pool: Any, engine: EngineName) -> Contender:
        tap, spent = spile.tap(model, LAYER, pool=pool), {"seconds": 0.0}

        def run() -> Array:
            store = spile.extract(
                tap, images, engine=engine, dtype="float32", batch_size=BATCH_SIZE, progress=False
            )
            spent["seconds"] = store.manifest.recorded["engine"].get("preparation_seconds", 0.0)
            return store[LAYER].numpy()

        return Contender(f"spile.extract, {engine}", run, spared=lambda: spent["seconds"])

    engines: list[EngineName] = ["compile"]
    if keras.backend.backend() == "tensorflow":
        engines.append("openvino")
    size = f"ResNet50 to {LAYER}, {len(images)} images of 224x224 in batches of {BATCH_SIZE}"
    yield Duel(
        f"{size}, whole maps",
        len(images),
        (Contender("predict", lambda: predict(whole)), *(extracting(None, each) for each in engines)),
    )
    yield Duel(
        f"{size}, averaged maps",
        len(images),
        (
            Contender("predict, pooled in the model", lambda: predict(pooled)),
            Contender("predict, then numpy.mean", lambda: predict(whole).mean((1, 2))),
            *(extracting("avg", each) for each in engines),
        ),
    )


def machine() -> str:
    backend = keras.backend.backend()
    names = ("spile", "keras", backend, "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{platform.machine()}, {os.cpu_count()} processors; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=250, help="images; 250 leaves an odd last batch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None)
    images = np.random.default_rng(0).normal(size=(options.samples, 224, 224, 3)).astype("float32")
    print(machine())
    for duel in duels(model, images):
        print(f"\n{duel.fight(options.rounds).markdown()}")


if __name__ == "__main__":
    main()
