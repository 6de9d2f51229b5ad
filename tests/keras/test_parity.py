"""One network with the same weights in Keras and in PyTorch: the same places, the same store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import spile

TORCH_SIDE = Path(__file__).with_name("torch_side.py")
PATTERNS = ("all", "leaves", "blocks", "stages", "**/conv@in", "-1")
POOLS = {
    "@in": "avg",
    "stem": "avg",
    "stem/act": "flatten",
    "down/conv": "grid:2",
    "down/norm": "gem",
    "deep@in": "max",
    "deep": "auto",
    "pool": "auto",
    "head": None,
}


def block(name: str, channels: int, filters: int, *, strides: int, padding: str) -> keras.Model:
    start = keras.Input((None, None, channels))
    x = layers.Conv2D(filters, 3, strides=strides, padding=padding, name="conv")(start)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(start, layers.ReLU(name="act")(x), name=name)


def network() -> keras.Model:
    start = keras.Input((9, 11, 3))
    x = block("stem", 3, 4, strides=1, padding="same")(start)
    x = block("down", 4, 6, strides=2, padding="valid")(x)
    x = block("deep", 6, 6, strides=1, padding="same")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(start, layers.Dense(5, name="head")(x))
    random = np.random.default_rng(0)
    for variable in model.weights:
        low = 0.5 if variable.path.endswith("variance") else -0.5
        variable.assign(random.uniform(low, low + 1, variable.shape))
    return model


def weights(model: keras.Model) -> dict[str, Any]:
    named = {f"{layer.name}/{inner.name}": inner for layer in model.layers[1:4] for inner in layer.layers}
    named["head"] = model.get_layer("head")
    return {
        f"{path}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for path, layer in named.items()
        for variable in layer.weights
    }


def on_torch(name: str) -> str:
    return name.replace("/", ".")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    """The Keras network, and the folder where PyTorch's half has done its work."""
    folder, model = tmp_path_factory.mktemp("parity"), network()
    images = np.random.default_rng(1).integers(0, 256, (10, 9, 11, 3), dtype="uint8")
    np.savez(folder / "data.npz", images=images, labels=np.arange(10) % 3)
    np.savez(folder / "weights.npz", **weights(model))
    (folder / "wanted.json").write_text(json.dumps({"pools": POOLS, "patterns": PATTERNS}))
    subprocess.run([sys.executable, TORCH_SIDE, folder], check=True)
    return model, folder


def test_the_same_store(both: tuple[keras.Model, Path]) -> None:
    model, folder = both
    data = np.load(folder / "data.npz")
    with spile.tap(model, list(POOLS), pool=POOLS, example=(2, 9, 11, 3)) as tap:
        spile.extract(
            tap,
            (data["images"], data["labels"]),
            folder / "keras.lance",
            dtype="float32",
            batch_size=4,
            preprocessing=spile.ImagePreprocessing(),
            progress=False,
        )
    mine, other = spile.open(folder / "keras.lance"), spile.open(folder / "torch.lance")
    assert [on_torch(name) for name in mine.points] == list(other.points)
    assert mine.ids.tolist() == other.ids.tolist()
    assert mine.labels is not None and other.labels is not None
    assert mine.labels.tolist() == other.labels.tolist() == data["labels"].tolist()
    assert mine.skipped.num_rows == other.skipped.num_rows == 0
    assert mine.manifest.fingerprinted["samples"] == other.manifest.fingerprinted["samples"]
    assert mine.manifest.fingerprinted["preprocessing"] == other.manifest.fingerprinted["preprocessing"]
    for name in mine.points:
        value, expected = mine[name], other[on_torch(name)]
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype), name
        np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
        told, known = mine.points[name].info, other.points[on_torch(name)].info
        for fact in ("pool", "macs", "baseline"):
            assert told[fact] == known[fact], (name, fact)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_places(pattern: str, both: tuple[keras.Model, Path]) -> None:
    """In the same order, at the same cost."""
    model, folder = both
    told = json.loads((folder / "torch.json").read_text())
    with spile.tap(model, pattern, pool=None, example=(2, 9, 11, 3)) as tap:
        found = [[on_torch(point.name), point.macs] for point in tap.points]
    assert found == told["patterns"][pattern]
    assert on_torch(tap.last_features) == told["last"]
