"""`keras.applications` by name: preprocessing, sizes, weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from spile.errors import ModelError
from spile.keras import applications
from spile.keras.applications import normalisation, preprocessing_of
from spile.models import example_for, load_model
from spile.preprocessing import ImagePreprocessing

BUILDERS = {key: value for key, value in vars(keras.applications).items() if inspect.isfunction(value)}
SIDE = 32


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of the models, which takes 32x32 and has no weights to fetch."""

    def build(*, weights: str | None = None, input_shape: tuple[int, ...] | None = None) -> keras.Model:
        inputs = keras.Input(input_shape or (SIDE, SIDE, 3))
        x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
        return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="mobilenet")

    build.__module__ = keras.applications.MobileNet.__module__
    monkeypatch.setattr(keras.applications, "MobileNet", build)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_preprocessing_is_that_of_the_family(name: str) -> None:
    family = BUILDERS[name].__module__.rpartition(".")[2]
    preprocess_input = getattr(keras.applications, family).preprocess_input
    spec = preprocessing_of(name, preprocess_input)
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3), dtype=np.uint8)
    pixels = image[..., ::-1] if spec.channel_order == "BGR" else image
    ours = (pixels.astype(np.float32) * spec.scale - spec.mean) / spec.std
    theirs = preprocess_input(image.astype(np.float32), data_format="channels_last")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        ("efficientnet", ImagePreprocessing(scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)),
        ("mobilenet_v2", ImagePreprocessing(scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3)),
        ("densenet", ImagePreprocessing()),
        (
            "resnet",
            ImagePreprocessing(
                scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0,) * 3, channel_order="BGR"
            ),
        ),
    ],
)
def test_the_numbers_are_plain(family: str, spec: ImagePreprocessing) -> None:
    assert preprocessing_of(family, getattr(keras.applications, family).preprocess_input) == spec


@pytest.mark.parametrize(
    "preprocess_input",
    [
        lambda x, data_format: x**2 / 255,
        lambda x, data_format: x[..., [1, 0, 2]],
        lambda x, data_format: x - x.mean(axis=-1, keepdims=True),
    ],
    ids=["curved", "another order", "mixed"],
)
def test_preprocessing_that_cannot_be_said_is_refused(preprocess_input: Any) -> None:
    with pytest.raises(ModelError, match="keras:Net prepares pixels in a way"):
        preprocessing_of("Net", preprocess_input)


def test_slopes_and_offsets_as_scale_mean_and_std() -> None:
    slopes = [1 / 255 / 0.229, 1 / 255 / 0.224, 1 / 255 / 0.225]
    offsets = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert ImagePreprocessing(**normalisation(slopes, offsets)) == ImagePreprocessing()


def test_a_model_at_its_own_size() -> None:
    loaded = load_model("keras:MobileNet", pretrained=False)
    assert loaded.model.input_shape == (None, 224, 224, 3)
    assert (loaded.reference, loaded.classes, loaded.channels_last) == ("keras:MobileNet", None, True)
    assert loaded.preprocessing == ImagePreprocessing(
        resize=224, crop=(224, 224), scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3
    )
    assert example_for(loaded) == (2, 224, 224, 3)


def test_another_input_size() -> None:
    loaded = load_model("keras:MobileNet", pretrained=False, input_size=64)
    assert loaded.model.input_shape == (None, 64, 64, 3)
    assert example_for(loaded) == (2, 64, 64, 3)
    with pytest.raises(
        ModelError, match=r"keras:VGG16 cannot be built for inputs of 16x16: .*at least 32x32"
    ):
        load_model("keras:VGG16", pretrained=False, input_size=16)


def test_channels_first_where_keras_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    shapes = []

    def build(*, weights: str | None, input_shape: Any) -> Any:
        shapes.append(input_shape)
        return SimpleNamespace(input_shape=(None, *input_shape))

    build.__module__ = keras.applications.MobileNet.__module__
    monkeypatch.setattr(keras.applications, "MobileNet", build)
    loaded = load_model("keras:MobileNet", pretrained=False, input_size=48)
    assert shapes == [(3, 48, 48)]
    assert example_for(loaded) == (2, 3, 48, 48)


def test_an_unknown_name_gets_three_suggestions() -> None:
    with pytest.raises(ModelError, match=r"has no model 'Resnet50'. Nearest: keras:ResNet50") as caught:
        load_model("keras:Resnet50")
    assert str(caught.value).count("keras:") == 3


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_of_a_local_file(tmp_path: Path, suffix: str) -> None:
    source = load_model("keras:MobileNet", pretrained=False).model
    path = tmp_path / f"mine{suffix}"
    source.save_weights(path) if suffix == ".weights.h5" else source.save(path)
    loaded = load_model("keras:MobileNet", weights=path)
    for ours, theirs in zip(loaded.model.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.classes is None


@pytest.mark.usefixtures("small")
def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "broken.h5").write_text("no")
    with pytest.raises(ModelError, match="do not fit mobilenet"):
        load_model("keras:MobileNet", weights=tmp_path / "other.weights.h5")
    with pytest.raises(ModelError, match="do not fit mobilenet"):
        load_model("keras:MobileNet", weights=tmp_path / "broken.h5")
    with pytest.raises(ModelError, match=r"There is no weights file .*absent.weights.h5"):
        load_model("keras:MobileNet", weights=tmp_path / "absent.weights.h5")
    (tmp_path / "net.pth").write_text("no")
    with pytest.raises(ModelError, match=r"net.pth is not a weights file that Keras reads: use .weights.h5"):
        load_model("keras:MobileNet", weights=tmp_path / "net.pth")


@pytest.mark.usefixtures("small")
def test_pretrained_weights_move_to_another_input_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = keras.applications.MobileNet
    own = []

    def pretrained(*, weights: str | None, input_shape: Any = None) -> keras.Model:
        model = build(weights=weights, input_shape=input_shape)
        if weights == "imagenet":
            assert input_shape is None
            own.append(model)
        return model

    pretrained.__module__ = build.__module__
    monkeypatch.setattr(keras.applications, "MobileNet", pretrained)
    model = load_model("keras:MobileNet", input_size=48).model
    assert model.input_shape == (None, 48, 48, 3)
    for ours, theirs in zip(model.get_weights(), own[0].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_that_are_bound_to_a_size_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*, weights: str | None, input_shape: Any = None) -> keras.Model:
        return keras.Sequential(
            [keras.Input(input_shape or (8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
        )

    build.__module__ = keras.applications.VGG16.__module__
    monkeypatch.setattr(keras.applications, "VGG16", build)
    with pytest.raises(ModelError, match=r"takes inputs of 8x8 only, not 16x16: leave out input_size"):
        load_model("keras:VGG16", input_size=16)
    assert load_model("keras:VGG16", input_size=8).model.input_shape == (None, 8, 8, 3)


@pytest.mark.parametrize(
    "failure", [Exception("URL fetch failure on https://x: None -- no network"), TimeoutError("too slow")]
)
def test_weights_out_of_reach(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        print("Downloading data")
        raise failure

    monkeypatch.setattr(inspect.getmodule(keras.applications.MobileNet).file_utils, "get_file", refuse)
    with pytest.raises(ModelError, match=r"weights of keras:MobileNet .*--weights FILE.weights.h5") as caught:
        load_model("keras:MobileNet")
    assert str(failure) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("small")
def test_classes_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applications, "keras_home", lambda: tmp_path)
    assert load_model("keras:MobileNet").classes is None
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "imagenet_class_index.json"
    path.write_text(json.dumps({str(n): [f"n{n}", f"name {n}"] for n in range(1000)}))
    classes = load_model("keras:MobileNet").classes
    assert classes is not None
    assert (classes[7], len(classes)) == ("name 7", 1000)
    assert load_model("keras:MobileNet", pretrained=False).classes is None
    path.write_text("{}")
    assert load_model("keras:MobileNet").classes is None
