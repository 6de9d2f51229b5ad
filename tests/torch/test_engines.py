"""The eager engine: a batch of raw inputs in, NumPy arrays out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import spile
from spile.errors import ModelError
from spile.preprocessing import ImagePreprocessing
from spile.torch.engines import EagerEngine, model_inputs
from spile.torch.taps import Tap

CPU = torch.device("cpu")
SPEC = ImagePreprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), scale=1 / 255)


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, size=(2, 8, 6, 3), dtype=np.uint8)


def test_pixels_are_normalised(pixels: np.ndarray[Any, Any]) -> None:
    found = model_inputs(pixels, preprocessing=SPEC, device=CPU)
    expected = (pixels.astype(np.float64) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("form", [np.uint8, np.float32])
def test_images_are_channels_last_but_for_a_batch_of_few_pixels(form: Any, order: Any) -> None:
    """Laying out the weights of a network anew for it takes longer than it saves."""
    for samples, memory in ((63, torch.contiguous_format), (64, torch.channels_last)):
        images = np.zeros((samples, 32, 32, 3), form)
        given = images if form is np.uint8 else images.transpose(0, 3, 1, 2)
        ready = model_inputs(given, preprocessing=replace(SPEC, channel_order=order), device=CPU)
        assert ready.shape == (samples, 3, 32, 32)
        assert ready.is_contiguous(memory_format=memory)


def test_channels_are_taken_in_the_order_of_the_model(pixels: np.ndarray[Any, Any]) -> None:
    found = model_inputs(pixels, preprocessing=replace(SPEC, channel_order="BGR"), device=CPU)
    expected = (pixels[..., ::-1].astype(np.float64) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_grey_pixels(pixels: np.ndarray[Any, Any]) -> None:
    spec = ImagePreprocessing(mean=(0.5,), std=(0.25,), channels=1)
    found = model_inputs(pixels[..., :1], preprocessing=spec, device=CPU)
    assert found.shape == (2, 1, 8, 6)


def test_pixels_without_preprocessing_are_refused(pixels: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ModelError, match="uint8 images need the model's preprocessing"):
        model_inputs(pixels, preprocessing=None, device=CPU)


def test_memory_that_cannot_be_written_is_copied(pixels: np.ndarray[Any, Any]) -> None:
    for array in (pixels, pixels.astype(np.float32)):
        array.flags.writeable = False
        found = model_inputs(array, preprocessing=SPEC, device=CPU)  # PyTorch would warn
        before = array.copy()
        found.zero_()
        assert np.array_equal(array, before)


def test_other_inputs_are_taken_as_ready() -> None:
    double = np.ones((2, 3))
    found = model_inputs({"a": double, "b": np.arange(4), "c": torch.ones(2, dtype=torch.float64), "d": None},
                         preprocessing=SPEC, device=CPU)  # fmt: skip
    assert {k: v.dtype for k, v in found.items() if v is not None} == {
        "a": torch.float32, "b": torch.int64, "c": torch.float64
    }  # fmt: skip
    ready = model_inputs(np.zeros((2, 3, 4, 5), dtype=np.float32), preprocessing=SPEC, device=CPU)
    assert not ready.any()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image))


@pytest.mark.parametrize("example", [(1, 3, 8, 6), None])
def test_it_gives_what_the_tap_gives(pixels: np.ndarray[Any, Any], example: Any) -> None:
    model = Net()
    tap = Tap(model, {"avg": "conv", "whole": "norm"}, pool={"avg": "avg", "whole": None}, example=example)
    found = EagerEngine(tap, preprocessing=SPEC, precision="float32")(pixels)
    image = model_inputs(pixels, preprocessing=SPEC, device=CPU)
    for name, expected in tap(image).items():
        assert isinstance(found[name], np.ndarray)
        np.testing.assert_array_equal(found[name], expected.detach().numpy())
    assert model.training
    assert model.norm.num_batches_tracked == 0


class Flattened(nn.Module):
    """Ends with a `view` across channels, which memory that is channels last forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 6 * 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.conv(image)
        return self.head(maps.view(maps.size(0), -1))


@pytest.mark.parametrize("engine", ["eager", "compile", "openvino"])
@pytest.mark.parametrize(("ready", "example"), [(False, (1, 3, 8, 6)), (True, None)])
def test_a_model_that_takes_views_runs_on_every_engine(
    pixels: np.ndarray[Any, Any], ready: bool, engine: Any, example: Any
) -> None:
    model = Flattened().eval()
    pixels = np.repeat(pixels, 700, axis=0)  # enough to be channels last
    image = model_inputs(pixels, preprocessing=SPEC, device=CPU).contiguous()
    tap = spile.tap(model, ["conv", "head"], pool=None, example=example)
    data = image.numpy() if ready else pixels
    store = spile.extract(tap, data, engine=engine, preprocessing=SPEC, dtype="float32", progress=False)
    with torch.no_grad():
        np.testing.assert_allclose(store["head"], model(image).numpy(), rtol=1e-4, atol=1e-5)
    tap.verify(image.contiguous(memory_format=torch.channels_last))
    if not ready:
        tap.origin = SimpleNamespace(preprocessing=SPEC)
        np.testing.assert_allclose(tap(pixels)["head"].detach().numpy(), store["head"], rtol=1e-4, atol=1e-5)


def test_a_dict_is_keywords(pixels: np.ndarray[Any, Any]) -> None:
    image = model_inputs(pixels, preprocessing=SPEC, device=CPU)
    found = EagerEngine(Tap(Net(), "conv"), preprocessing=None, precision="float32")({"image": image.numpy()})
    assert found["conv"].shape == (2, 4)


@pytest.mark.parametrize("example", [(1, 3, 8, 6), None])
def test_bfloat16_computes_in_it_and_gives_float32(pixels: np.ndarray[Any, Any], example: Any) -> None:
    model = Net()
    tap = Tap(model, ["conv"], pool=None, example=example)
    found = EagerEngine(tap, preprocessing=SPEC, precision="bfloat16")(pixels)["conv"]
    image = model_inputs(pixels, preprocessing=SPEC, device=CPU)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.conv(image)
    assert expected.dtype == torch.bfloat16
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.float().numpy())


def test_whole_numbers_stay_whole() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    tap = Tap(nn.Sequential(Counting()), "0", pool=None, example=(1, 5))
    found = EagerEngine(tap, preprocessing=None, precision="float32")(np.eye(5, dtype=np.float32))
    assert found["0"].tolist() == [0, 1, 2, 3, 4]
    assert found["0"].dtype == np.int64


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown precision 'int8'"):
        EagerEngine(Tap(Net(), "conv"), preprocessing=None, precision="int8")  # type: ignore[arg-type]


def test_a_tap_of_a_reference_normalises_uint8_images_of_its_size() -> None:
    loaded = spile.load_model("demo:efficientnet_lite0", input_size=32)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    tap = spile.tap(loaded, "blocks.1")
    ready = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    assert torch.allclose(tap(pixels)["blocks.1"], tap(ready)["blocks.1"], atol=1e-5)
    tap.verify(pixels)
    with pytest.raises(spile.ModelError, match=r"28x28.*32x32.*spile\.extract"):
        tap(pixels[:, :28, :28])
    with pytest.raises(spile.ModelError, match=r"JpegImageFile|Image.*spile\.extract"):
        tap(Image.fromarray(pixels[0]))


def test_a_tap_of_a_bare_model_says_that_uint8_images_need_preprocessing() -> None:
    tap = spile.tap(torch.nn.Conv2d(3, 4, 3), "@out", example=(1, 3, 8, 8))
    with pytest.raises(spile.ModelError, match="preprocessing="):
        tap(np.zeros((1, 8, 8, 3), np.uint8))


AFTER_TENSORFLOW = """
import tensorflow, numpy as np, torch, spile
tap = spile.tap(torch.nn.Sequential(torch.nn.Linear(3, 3)), "0", example=torch.ones(2, 3))
for engine in ("eager", "openvino"):
    spile.extract(tap, np.ones((8, 3), "float32"), engine=engine, progress=False)
import torchvision
print("fine")
"""


def test_a_process_that_has_loaded_tensorflow_goes_on() -> None:
    """Triton after TensorFlow would end it without a word."""
    pytest.importorskip("tensorflow")
    done = subprocess.run([sys.executable, "-c", AFTER_TENSORFLOW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout == "fine\n"
