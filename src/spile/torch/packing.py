"""A tap on its way to other processes of this machine, each with a device of its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import cast

import torch

from spile.cores import usable_cores
from spile.errors import ModelError
from spile.loading import first_line
from spile.torch.taps import Tap
from spile.torch.trees import device_of


def pack(tap: Tap, devices: Sequence[str]) -> bytes:
    """A copy of the tap on the CPU, pickled.

    Raises `ModelError` for devices that are not there, and for a tap whose model or pools cannot be pickled.
    """
    for device in devices:
        _require(device)
    try:
        return pickle.dumps(tap if device_of(tap.model).type == "cpu" else copy.deepcopy(tap).cpu())
    except Exception as error:  # what a module of the user's own makes of it
        raise ModelError(
            f"the tap cannot be sent to a process on each device ({first_line(error)}): define the model's "
            "classes and pools by name in a module, or leave out devices"
        ) from error


def unpack(packed: bytes, device: str, of: int) -> Tap:
    """What `pack` made of the process that started this one, on `device`, of which there are so many."""
    if torch.device(device).type == "cpu":
        torch.set_num_threads(max(1, usable_cores() // of))
    return cast(Tap, pickle.loads(packed)).to(device)  # noqa: S301


def _require(device: str) -> None:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"there is no device {device!r}: write cpu, cuda:0, cuda:1, …") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        here = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ModelError(f"device {device!r} is not there; this machine has {', '.join(['cpu', *here])}")
