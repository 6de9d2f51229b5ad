"""Every layer of an application with weights from NumPy, into an npz file: ``every_layer.py NAME FILE``."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

import spile


def main(name: str, path: Path) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=7)
    random = np.random.default_rng(0)
    for variable in model.weights:
        scale = np.prod(variable.shape[:-1]) ** -0.5 if len(variable.shape) > 1 else 0.2
        offset = 1.0 if variable.path.endswith(("variance", "gamma")) else 0.0
        variable.assign(random.normal(size=variable.shape) * scale * (0.1 if offset else 1) + offset)
    images = random.normal(size=(3, 64, 64, 3)).astype("float32")
    with spile.tap(model, "all", pool=None, example=images) as tap:
        found = {place: keras.ops.convert_to_numpy(value) for place, value in tap(images).items()}
        store = spile.extract(tap, images, dtype="float32", batch_size=2, progress=False)
    found |= {f"extracted {place}": store[place].numpy() for place in store.points}
    np.savez(path, **{place.replace("/", "|"): value for place, value in found.items()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
