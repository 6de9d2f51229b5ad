"""From a Keras model and labelled arrays to a folder that gives the same labels, in other processes too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import spile
from spile.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
"""Of NumPy, when Keras saves a model."""


@keras.saving.register_keras_serializable("spile-tests")
class Registered(keras.Model):
    """Runs by Python alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stem = layers.Conv2D(6, 3, strides=2)
        self.body = keras.Sequential([layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(8, 3)])
        self.pool, self.head = layers.GlobalAveragePooling2D(), layers.Dense(4)

    def call(self, x: Any) -> Any:
        return self.head(self.pool(self.body(self.stem(x))))


class Unregistered(Registered):
    """The same, unknown to Keras."""


def subclass(kind: type[keras.Model] = Registered) -> keras.Model:
    model = kind()
    model(np.zeros((2, 16, 16, 3), np.float32))
    return model


def functional() -> keras.Model:
    x = keras.Input((16, 16, 3))
    y = layers.ReLU()(layers.Conv2D(6, 3, strides=2)(x))
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="body")(y))
    return keras.Model(x, layers.Dense(4)(y))


def sequential() -> keras.Model:
    stack = [layers.Conv2D(6, 3, name="stem"), layers.ReLU(), layers.Conv2D(8, 3, strides=2)]
    return keras.Sequential([keras.Input((16, 16, 3)), *stack, layers.Flatten(), layers.Dense(4)])


def nested() -> keras.Model:
    inner_in = keras.Input((16, 16, 3))
    y = layers.Conv2D(6, 3, strides=2, name="stem")(inner_in)
    inner = keras.Model(inner_in, layers.Conv2D(8, 3, name="body")(layers.ReLU()(y)), name="encoder")
    x = keras.Input((16, 16, 3))
    y = layers.GlobalAveragePooling2D()(inner(x))
    return keras.Model(x, layers.Dense(4)(y))


def images(size: int = 16) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Noise whose red channel tells the class, ready for a model."""
    labels = [i % 2 for i in range(40)]
    pixels = np.random.default_rng(0).normal(0, 0.2, (40, size, size, 3)).astype(np.float32)
    pixels[..., 0] += np.array(labels, np.float32)[:, None, None]
    return pixels, labels


def run(model: Any, out: Path, size: int = 16, **options: Any) -> Any:
    """Transfer, and load what was written: the same labels."""
    pixels, labels = images(size=size)
    found = spile.transfer(model, (pixels, labels), out, progress=False, cv=3, **options)
    again = spile.load(out)
    np.testing.assert_array_equal(again.predict(pixels), found.model.predict(pixels))
    assert again.predict(pixels).tolist() == labels
    return found


def files(out: Path) -> set[str]:
    return {path.name for path in (out / "model").iterdir()}


@pytest.mark.parametrize(
    ("make", "addresses"),
    [
        (functional, ["body"]),
        (sequential, ["stem"]),
        (nested, ["encoder/stem", "encoder/body"]),
        (subclass, ["stem", "body/2"]),
    ],
)
def test_a_model_object_becomes_a_folder_that_needs_nothing_else(
    make: Any, addresses: list[str], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    model = make()
    addresses = [address.replace("body/2", f"body/{_last(model)}") for address in addresses]

    found = run(model, tmp_path, addresses=addresses)

    assert files(tmp_path) == {"model.json", "network.keras", "head.safetensors"}
    assert set(addresses) <= {row.point for row in found.result.table}


def _last(model: keras.Model) -> str:
    body = getattr(model, "body", None)
    return str(body.layers[-1].name) if body is not None else ""


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:.*near-duplicate")  # untrained, it tells nothing apart
def test_a_reference_becomes_its_name_and_the_weights_that_are_needed(tmp_path: Path) -> None:
    loaded = spile.load_model("keras:MobileNetV2", pretrained=False, input_size=32)

    run(loaded, tmp_path, size=32, addresses=["block_2_project_BN", "block_4_project_BN"])

    assert files(tmp_path) == {"model.json", "network.safetensors", "head.safetensors"}
    whole = sum(4 * int(np.prod(w.shape)) for w in loaded.model.weights)
    assert (tmp_path / "model" / "network.safetensors").stat().st_size < whole / 10


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:.*near-duplicate")  # untrained, it tells nothing apart
def test_names_that_keras_makes_up_are_not_kept_as_a_reference(tmp_path: Path) -> None:
    """The activations of MobileNetV3 are called ``re_lu_3`` or otherwise, as others came before."""
    loaded = spile.load_model("keras:MobileNetV3Small", pretrained=False, input_size=32)
    made_up = next(layer.name for layer in loaded.model.layers if layer.name.startswith("re_lu"))

    run(loaded, tmp_path, size=32, addresses=[made_up])

    assert "network.keras" in files(tmp_path)


@pytest.mark.zoo
def test_another_process_gives_the_same_labels(tmp_path: Path) -> None:
    pixels, _ = images()
    found = run(functional(), tmp_path / "run", addresses=["body"])
    np.save(tmp_path / "pixels.npy", pixels)
    code = "import sys, numpy, spile; run, pixels = sys.argv[1:]\n"
    code += "print(spile.load(run).predict(numpy.load(pixels)).tolist())"
    there = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "pixels.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == str(found.model.predict(pixels).tolist())


def test_an_unregistered_class_is_told_before_the_long_work(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Unregistered cannot be saved .*register_keras_serializable"):
        run(subclass(Unregistered), tmp_path / "run", addresses=["stem"])
    assert not (tmp_path / "run").exists()


def test_a_file_of_python_that_makes_a_keras_model(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import keras\n"
        "def make():\n"
        "    x = keras.Input((16, 16, 3))\n"
        "    y = keras.layers.Conv2D(6, 3, name='stem')(x)\n"
        "    y = keras.layers.GlobalAveragePooling2D()(y)\n"
        "    return keras.Model(x, keras.layers.Dense(2)(y))\n"
    )
    run(f"{tmp_path / 'net.py'}:make", tmp_path / "run", addresses=["stem"])
    assert "network.keras" in files(tmp_path / "run")


def test_a_keras_file_is_exported_again(tmp_path: Path) -> None:
    functional().save(tmp_path / "net.keras")
    run(str(tmp_path / "net.keras"), tmp_path / "run", addresses=["body"])
    (tmp_path / "net.keras").unlink()
    assert spile.load(tmp_path / "run").predict(images()[0]).tolist() == images()[1]


def test_pictures_get_the_preprocessing_that_is_saved(tmp_path: Path) -> None:
    pixels, labels = images()
    pictures = (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    ready = spile.ImagePreprocessing(resize=None, crop=None)

    found = spile.transfer(
        functional(),
        (pictures, labels),
        tmp_path,
        addresses=["body"],
        preprocessing=ready,
        progress=False,
        cv=3,
    )

    again = spile.load(tmp_path)
    assert again.preprocessing == ready
    assert again.predict(pictures).tolist() == labels == found.model.predict(pictures).tolist()
