"""The eager engine: a batch of raw inputs in, NumPy arrays out."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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
from spile.torch.accelerating import engine_for
from spile.torch.engines import EagerEngine
from spile.torch.inputs import model_inputs
from spile.torch.taps import Tap

CPU = torch.device("cpu")
SPEC = ImagePreprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), scale=1 / 255)


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, size=(2, 8, 6, 3), dtype=np.uint8)


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


@pytest.mark.parametrize("name", ["eager", "compile"])
def test_halves_are_the_float32_values_rounded(pixels: np.ndarray[Any, Any], name: Any) -> None:
    pools = {"conv": None, "at": largest}
    tap = Tap(Net(), {"conv": "conv", "at": "conv"}, pool=pools, example=(1, 3, 8, 6))
    given: dict[str, Any] = {"preprocessing": SPEC, "precision": "float32", "name": name}
    whole, half = (engine_for(tap, samples=None, half=half, **given)(pixels) for half in (False, True))
    assert (half["conv"].dtype, half["at"].dtype) == (np.float16, np.int64)
    np.testing.assert_array_equal(half["conv"], whole["conv"].astype(np.float16))
    np.testing.assert_array_equal(half["at"], whole["at"])


def largest(x: Tensor) -> Tensor:
    return x.flatten(1).argmax(1)


class Watched(nn.Module):
    """Knows whether two passes ran at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way, self.most = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        time.sleep(0.05)
        self.under_way -= 1
        return x + 1


def test_passes_follow_each_other_in_however_many_threads() -> None:
    """A pass may change the model for its time: flags, hooks."""
    model = nn.Sequential(Watched())
    engine = EagerEngine(Tap(model, "0", pool=None), preprocessing=None, precision="float32")
    batches = [np.full((2, 3), number, np.float32) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(engine, batches))
    assert [values["0"][0, 0] for values in found] == [1, 2, 3, 4]
    assert model[0].most == 1


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


class Writes(nn.Module):
    """Changes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x.sub_(0.5))


@pytest.mark.parametrize("name", ["eager", "compile", "openvino"])
def test_a_model_that_writes_into_its_input_gets_every_batch_as_it_is(name: Any) -> None:
    """An engine is compared with eager on the first batch, which so runs several times."""
    model = Writes().eval()
    x = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    kept = x.copy()
    tap = spile.tap(model, ["@in", "line"], example=(2, 6))
    store = spile.extract(tap, lambda: iter([x[:6], x[6:]]), engine=name, dtype="float32", progress=False)
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_allclose(store["@in"], kept, rtol=1e-6)
    with torch.no_grad():
        expected = model.line(torch.from_numpy(kept) - 0.5).numpy()
    np.testing.assert_allclose(store["line"], expected, rtol=1e-4, atol=1e-5)
    tap.verify(torch.from_numpy(x))
    np.testing.assert_array_equal(x, kept)


class Caches(nn.Module):
    """Keeps a tensor from its first pass, as rotary positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.linspace(0.0, 1.0, x.shape[1])
        return x * self.kept


def test_a_model_can_be_trained_after_an_extraction() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Caches(), nn.Linear(4, 2))
    x = np.ones((6, 4), np.float32)
    with spile.tap(model, "2", example=(2, 4)) as tap:
        spile.extract(tap, x, progress=False, engine="eager")
    model(torch.from_numpy(x)).sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_another_precision(pixels: np.ndarray[Any, Any], dtype: torch.dtype) -> None:
    model = Net().to(dtype).eval()
    tap = spile.tap(model, "conv", pool=None, example=(1, 3, 8, 6))
    store = spile.extract(tap, pixels, preprocessing=SPEC, dtype="float32", progress=False)
    image = model_inputs(pixels, preprocessing=SPEC, device=CPU).to(dtype)
    with torch.no_grad():
        np.testing.assert_allclose(store["conv"], model.conv(image).float().numpy(), rtol=1e-5)
    assert tap(image.float().numpy())["conv"].dtype == dtype
