"""What becomes of a batch before a model gets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from spile.errors import ModelError
from spile.preprocessing import ImagePreprocessing
from spile.torch.inputs import model_inputs

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


@pytest.mark.parametrize("given", [np.ones((2, 3), np.float32), torch.ones(2, 3), {"x": torch.ones(2, 3)}])
def test_a_batch_is_the_models_own_memory(given: Any) -> None:
    """A model may write into what it is given, and the batch is run more than once."""
    made = model_inputs(given, preprocessing=None, device=CPU)
    for tensor in made.values() if isinstance(made, dict) else [made]:
        tensor.zero_()
    for kept in given.values() if isinstance(given, dict) else [given]:
        assert kept.min() == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pixels_and_floats_get_the_dtype_of_the_model(
    pixels: np.ndarray[Any, Any], dtype: torch.dtype
) -> None:
    given: dict[str, Any] = {"preprocessing": SPEC, "device": CPU, "floating": dtype}
    assert model_inputs(pixels, **given).dtype == dtype
    assert model_inputs(np.ones((2, 3)), **given).dtype == dtype
    assert model_inputs(np.arange(3), **given).dtype == torch.int64
    assert model_inputs(torch.ones(2, 3), **given).dtype == torch.float32
    third = np.full((1, 1), 1 / 3)
    assert dtype != torch.float64 or model_inputs(third, **given).item() == 1 / 3


def test_bytes_in_another_order() -> None:
    array = np.array([[1.5, -2]], dtype=">f4")
    assert model_inputs(array, preprocessing=None, device=CPU).tolist() == [[1.5, -2]]
