"""A tap on its way to other processes of this machine, each with a device of its own."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from spile.cores import usable_cores
from spile.errors import ModelError
from spile.loading import first_line
from spile.torch.taps import Tap


def pack(tap: Tap, devices: Sequence[str]) -> bytes:
    """A copy of the tap on the CPU, pickled, with the settings that numbers depend on.

    Raises `ModelError` for devices that are not there, and for a tap whose model or pools cannot be pickled.
    """
    for device in devices:
        _require(device)
    written = io.BytesIO()
    try:
        _OnCPU(written).dump((tap, _numerics()))
        return written.getvalue()
    except Exception as error:  # what a module of the user's own makes of it
        raise ModelError(
            f"the tap cannot be sent to a process on each device ({first_line(error)}): define the model's "
            "classes and pools by name in a module, or leave out devices"
        ) from error


def unpack(packed: bytes, device: str, of: int) -> Tap:
    """What `pack` made of the process that started this one, on `device`, of which there are so many."""
    if torch.device(device).type == "cpu":
        torch.set_num_threads(max(1, usable_cores() // of))
    tap, numerics = pickle.loads(packed)  # noqa: S301
    _set_numerics(numerics)
    return cast(Tap, tap).to(device)


class _OnCPU(pickle.Pickler):
    """Sends tensors of other devices as tensors of the CPU, one at a time."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor) or obj.device.type == "cpu":
            return NotImplemented
        there = obj.detach().cpu()
        if isinstance(obj, nn.Parameter):
            return nn.Parameter, (there, obj.requires_grad)
        return torch.Tensor.requires_grad_, (there, obj.requires_grad)


def _numerics() -> dict[str, Any]:
    """The settings of a process that numbers depend on."""
    return {
        "default_dtype": torch.get_default_dtype(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _set_numerics(found: dict[str, Any]) -> None:
    torch.set_default_dtype(found["default_dtype"])
    torch.set_float32_matmul_precision(found["matmul"])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = found["cudnn"]
    torch.use_deterministic_algorithms(found["deterministic"])


def _require(device: str) -> None:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"there is no device {device!r}: write cpu, cuda:0, cuda:1, …") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        here = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ModelError(f"device {device!r} is not there; this machine has {', '.join(['cpu', *here])}")
