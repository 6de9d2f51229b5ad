"""A golden image for every kind of preprocessing, so that no change of what a model is given goes unseen.

``golden/photo.png`` is what all start from. ``golden/NAME.png`` holds the uint8 pixels that a specification
makes of it, ``golden/specs.json`` the specification and a few of the numbers that the model gets,
``golden/references.json`` the specification behind a model's name and the hash of its pixels.
``python tests/test_golden.py`` writes all of them anew after a change that is meant.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spile.data.images import apply, read_image
from spile.preprocessing import ImagePreprocessing, from_json

GOLDEN = Path(__file__).with_name("golden")
PHOTO = GOLDEN / "photo.png"
IF_MEANT = "if this is meant: python tests/test_golden.py"

SPECS = {
    "torchvision": ImagePreprocessing(resize=40, crop=(32, 32)),
    "timm": ImagePreprocessing(
        resize=36, crop=(32, 32), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    "squash": ImagePreprocessing(resize=(36, 36), crop=(32, 32), interpolation="bicubic"),
    "hugging_face": ImagePreprocessing(
        resize=37, crop=(30, 30), interpolation="bicubic", crop_rounding="down"
    ),
    "even": ImagePreprocessing(resize=37, crop=(30, 30), interpolation="bicubic"),
    "caffe": ImagePreprocessing(
        scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0,) * 3, channel_order="BGR"
    ).at(32),
    "from_minus_one_to_one": ImagePreprocessing(scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3).at(32),
    "grey": ImagePreprocessing(resize=32, crop=(28, 28), mean=(0.5,), std=(0.25,), channels=1),
    "as_it_is": ImagePreprocessing(),
    "larger_than_the_image": ImagePreprocessing(crop=(60, 100)),
    "enlarged": ImagePreprocessing(interpolation="bicubic").at(90),
    **{
        name: ImagePreprocessing(resize=(24, 40), interpolation=name)  # type: ignore[arg-type]
        for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
    },
}

REFERENCES = (
    "demo:efficientnet_lite0",
    "timm:mobilenetv3_small_050",
    "timm:resnet18",
    "timm:vit_tiny_patch16_224",
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet18",
)
KERAS_REFERENCES = ("keras:EfficientNetB0", "keras:MobileNet", "keras:ResNet50")
"""Compared in tests/keras, on every backend."""


def pixels_of(spec: ImagePreprocessing) -> np.ndarray:
    return apply(read_image(PHOTO), spec)


def inputs_of(spec: ImagePreprocessing) -> list[list[float]]:
    """What a PyTorch model gets at a few places, (channels) each."""
    import torch

    from spile.torch.inputs import model_inputs

    pixels = pixels_of(spec)
    batch = model_inputs(pixels[None], preprocessing=spec, device=torch.device("cpu"))
    values = batch[0].permute(1, 2, 0).numpy()
    return [values[y, x].tolist() for y, x in places(pixels.shape[:2])]


def places(size: tuple[int, ...]) -> list[tuple[int, int]]:
    height, width = size
    return [(0, 0), (height // 2, width // 3), (height - 1, width - 1)]


def described(spec: ImagePreprocessing) -> dict[str, Any]:
    return {"spec": spec.to_json(), "sha256": hashlib.sha256(pixels_of(spec).tobytes()).hexdigest()}


def reference(name: str) -> dict[str, Any]:
    import spile

    spec = spile.load_model(name, pretrained=False).preprocessing
    assert isinstance(spec, ImagePreprocessing)
    return described(spec)


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def listed(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


def test_every_specification_has_its_golden_image() -> None:
    assert listed("specs.json").keys() == SPECS.keys()
    assert {path.stem for path in GOLDEN.glob("*.png")} == {*SPECS, "photo"}
    assert listed("references.json").keys() == {*REFERENCES, *KERAS_REFERENCES}


@pytest.mark.parametrize("name", SPECS)
def test_pixels_and_inputs_are_those_of_the_golden_image(name: str) -> None:
    spec, golden = SPECS[name], listed("specs.json")[name]
    assert plain(spec.to_json()) == golden["spec"], IF_MEANT
    with Image.open(GOLDEN / f"{name}.png") as image:
        stored = np.asarray(image)
    pixels = pixels_of(spec)
    np.testing.assert_array_equal(pixels, stored.reshape(pixels.shape), err_msg=IF_MEANT)
    np.testing.assert_allclose(inputs_of(spec), golden["inputs"], rtol=1e-6, atol=1e-6, err_msg=IF_MEANT)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_models_name_stands_for_the_same_preprocessing(name: str) -> None:
    assert plain(reference(name)) == listed("references.json")[name], IF_MEANT


@pytest.mark.parametrize(
    "change",
    [
        {"interpolation": "bilinear"},
        {"resize": (36, 37)},
        {"crop": (32, 31)},
        {"resize": 36},
        {"channels": 1, "mean": (0.5,), "std": (0.5,)},
    ],
    ids=str,
)
def test_the_golden_image_would_notice(change: dict[str, Any]) -> None:
    with Image.open(GOLDEN / "squash.png") as image:
        stored = np.asarray(image)
    assert not np.array_equal(pixels_of(replace(SPECS["squash"], **change)), stored)


@pytest.mark.parametrize(
    "change", [{"channel_order": "RGB"}, {"scale": 1.01}, {"std": (1.0, 1.0, 1.01)}], ids=str
)
def test_the_golden_numbers_would_notice(change: dict[str, Any]) -> None:
    golden = listed("specs.json")["caffe"]["inputs"]
    assert not np.allclose(inputs_of(replace(SPECS["caffe"], **change)), golden, rtol=1e-6, atol=1e-6)


def test_specifications_are_read_back() -> None:
    for name, golden in listed("specs.json").items():
        assert from_json(golden["spec"]) == SPECS[name]


def photo() -> Image.Image:
    """Smooth colours, fine lines, an edge and some noise, from whole numbers alone."""
    y, x = np.mgrid[0:53, 0:75]
    red, green, blue = (3 * x + y) % 256, (255 - 4 * y - x % 7 * 9) % 256, (x * y // 5) % 256
    pixels = np.stack([red, green, blue], axis=2)
    pixels[::6, :, 1] = 240
    pixels[:, 40:, 2] = 255 - pixels[:, 40:, 2]
    pixels[20:34, 10:30] = [200, 30, 60]
    noise = (x * 7919 + y * 104729 + (x * y) % 31 * 131) % 41
    return Image.fromarray(np.clip(pixels + noise[..., None] - 20, 0, 255).astype(np.uint8))


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.png"):
        path.unlink()
    photo().save(PHOTO, optimize=True)
    for name, spec in SPECS.items():
        Image.fromarray(np.squeeze(pixels_of(spec))).save(GOLDEN / f"{name}.png", optimize=True)
    specs = {name: {"spec": spec.to_json(), "inputs": inputs_of(spec)} for name, spec in SPECS.items()}
    references = {name: reference(name) for name in (*REFERENCES, *KERAS_REFERENCES)}
    for file, value in (("specs.json", specs), ("references.json", references)):
        (GOLDEN / file).write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    write()
