"""How a tap runs during extraction: eager, channels-last, in inference mode, normalised on the device."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spile.backend import Precision, Tap
from spile.errors import ModelError
from spile.preprocessing import ImagePreprocessing
from spile.torch.trees import device_of, from_array, transform

_FEW_PIXELS = 2**16
"""In a batch. Below, laying out the weights anew for a channels-last batch takes longer than it saves."""


class EagerEngine:
    """The reference engine: one batch in, a float32 (or integer) NumPy array for every point out."""

    name = "eager"
    versions: Mapping[str, str] = {}
    notes: Mapping[str, Any] = {}
    at_once = 1

    def __init__(self, tap: Tap, *, preprocessing: ImagePreprocessing | None, precision: Precision) -> None:
        self._tap = tap
        self._preprocessing = preprocessing
        self._device = device_of(tap.model)
        if precision not in ("float32", "bfloat16"):
            raise ModelError(f"unknown precision {precision!r}: write 'float32' (the default) or 'bfloat16'")
        self._bfloat16 = precision == "bfloat16"

    def __call__(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        autocast = (
            torch.autocast(self._device.type, dtype=torch.bfloat16) if self._bfloat16 else nullcontext()
        )
        with torch.inference_mode(), autocast:
            args = model_inputs(inputs, preprocessing=self._preprocessing, device=self._device)
            activations = self._tap(**args) if isinstance(args, dict) else self._tap(args)
        return arrays(activations)


def ready_images(value: Any, *, preprocessing: Any, device: torch.device) -> Any:
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
    return model_inputs(value, preprocessing=images, device=device)


def model_inputs(inputs: Any, *, preprocessing: ImagePreprocessing | None, device: torch.device) -> Any:
    """A batch as the model takes it.

    uint8 pixels (samples, height, width, channels) are normalised as `preprocessing` says, into (samples,
    channels, height, width); everything else is taken as ready and only moved. Images become channels last,
    but for a batch of few pixels on a CPU.
    """
    if isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4:
        if preprocessing is None:
            raise ModelError(
                "uint8 images need the model's preprocessing, which a bare model object does not tell: pass "
                "preprocessing=spile.ImagePreprocessing(...), a model reference such as 'timm:resnet50', or "
                "ready float arrays"
            )
        return laid_out(normalised(_moved(from_array(inputs), device), preprocessing))
    return transform(inputs, lambda t: laid_out(_moved(t, device)))


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


def arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """On the host, floats as float32. From a GPU all copies run at once, and are waited for once."""
    floats = {name: v.float() if v.is_floating_point() else v for name, v in values.items()}
    if not any(value.is_cuda for value in floats.values()):
        return {name: value.cpu().numpy() for name, value in floats.items()}
    hosts = {name: torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for name, v in floats.items()}
    for name, host in hosts.items():
        host.copy_(floats[name], non_blocking=True)
    torch.cuda.synchronize()
    return {name: host.numpy() for name, host in hosts.items()}


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """To a GPU from pinned memory, so that the copy does not hold up the host."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
