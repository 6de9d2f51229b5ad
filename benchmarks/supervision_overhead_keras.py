"""What a training step of a Keras model costs with heads, against a plain step plus the heads' operations.

    KERAS_BACKEND=tensorflow python benchmarks/supervision_overhead_keras.py --model ResNet50 --size 128

The twin of ``supervision_overhead.py``: compiled steps of both kinds in turns, the median of the ratios and
its interval. Expected is 1 + (MACs of the heads / MACs of the model). On the torch backend Keras compiles
nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from steps import paired, tell

import spile
from spile.supervision.operations import macs

CLASSES = 10


def step_of(model: Any, images: Any, labels: Any) -> Callable[[], float]:
    """Seconds of one training step; its loss is read, so that all of it is done."""

    def step() -> float:
        start = time.perf_counter()
        float(model.train_on_batch(images, labels, return_dict=True)["loss"])
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ResNet50", help="of keras.applications")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--head", default="bottleneck")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    shape = (options.size, options.size, 3)
    make = getattr(keras.applications, options.model)
    plain, base = (make(weights=None, classes=CLASSES, input_shape=shape) for _ in range(2))
    base.set_weights(plain.get_weights())
    supervised: Any = spile.supervise(base, num_classes=CLASSES, head=options.head)
    plain.compile(optimizer=keras.optimizers.SGD(1e-3), loss="sparse_categorical_crossentropy")
    supervised.compile(optimizer=keras.optimizers.SGD(1e-3))

    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, *shape)).astype("float32")
    labels = rng.integers(0, CLASSES, options.batch)
    own = [macs(head.operations, supervised._plan.features(name)) for name, head in supervised.heads.items()]
    expected = 1 + sum(own) / spile.layers(base, example=(1, *shape))[-1].macs
    ratios = paired(step_of(plain, images, labels), step_of(supervised, images, labels), options.pairs)
    where = f"Keras on {keras.backend.backend()}, {options.model}, {options.size} px, batch {options.batch}"
    tell(f"{where}, heads at {', '.join(supervised.heads)}", ratios, expected)


if __name__ == "__main__":
    main()
