"""A batch as a model takes it: on its device, normalised, in the memory format that runs fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spile.errors import ModelError
from spile.preprocessing import ImagePreprocessing
from spile.torch.copying import moved
from spile.torch.trees import device_of, floating_of, from_array, transform

_FEW_PIXELS = 2**16
"""In a batch. Below, laying out the weights anew for a channels-last batch takes longer than it saves."""


def ready_images(value: Any, *, preprocessing: Any, model: nn.Module) -> Any:
    """What a tap was called with: uint8 images of the model's input size are normalised, all else is ready.

    Raises `ModelError` for images that would have to be resized, and for files and Pillow images.
    """
    if isinstance(value, (str, Path)) or hasattr(value, "getexif"):
        raise ModelError(
            f"a tap is called with tensors or arrays, not with a {type(value).__name__}: "
            "spile.extract(tap, data) reads files and Pillow images, and prepares them"
        )
    if not (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 4):
        return value
    images = preprocessing if isinstance(preprocessing, ImagePreprocessing) else None
    if images is not None and images.crop is not None and value.shape[1:3] != images.crop:
        raise ModelError(
            f"the images are {value.shape[1]}x{value.shape[2]} and the model's input is {images.crop[0]}x"
            f"{images.crop[1]}: spile.extract(tap, images) resizes them, a call of the tap does not"
        )
    return model_inputs(value, preprocessing=images, device=device_of(model), floating=floating_of(model))


def model_inputs(
    inputs: Any,
    *,
    preprocessing: ImagePreprocessing | None,
    device: torch.device,
    floating: torch.dtype = torch.float32,
) -> Any:
    """A batch as the model takes it, in memory of its own: models may write into what they are given.

    uint8 pixels (samples, height, width, channels) are normalised as `preprocessing` says, into (samples,
    channels, height, width); everything else is taken as ready and only moved. Images become channels last,
    but for a batch of few pixels on a CPU. Pixels and arrays of floats become `floating`, tensors stay.
    """
    if isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4:
        if preprocessing is None:
            raise ModelError(
                "uint8 images need the model's preprocessing, which a bare model object does not tell: pass "
                "preprocessing=spile.ImagePreprocessing(...), a model reference such as 'timm:resnet50', or "
                "ready float arrays"
            )
        return laid_out(normalised(moved(from_array(inputs), device), preprocessing)).to(floating)

    def placed(tensor: Tensor) -> Tensor:
        there = laid_out(moved(tensor, device))
        return there.clone() if there is tensor else there

    return transform(inputs, placed, floating=floating)


def laid_out(tensor: Tensor) -> Tensor:
    """Images in the memory format that convolutions run fastest on; all else as it is."""
    if tensor.ndim != 4:
        return tensor
    few = tensor.device.type == "cpu" and tensor[:, 0].numel() < _FEW_PIXELS
    return tensor.contiguous(memory_format=torch.contiguous_format if few else torch.channels_last)


def normalised(pixels: Tensor, preprocessing: ImagePreprocessing) -> Tensor:
    """uint8 (n, height, width, channels) to float32 (n, channels, height, width), channels-last."""
    pixels = pixels.permute(0, 3, 1, 2)
    if preprocessing.channel_order == "BGR":
        pixels = pixels.flip(1)
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, device=pixels.device).view(1, -1, 1, 1)
    return pixels.float().mul_(preprocessing.scale).sub_(mean).div_(std)
