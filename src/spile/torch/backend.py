"""`spile.backend.Backend` for PyTorch."""

from __future__ import annotations

import platform
from typing import Any

import torch

from spile.backend import Engine, Mode, Precision
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressesLike, PoolsLike
from spile.torch.engines import EagerEngine, model_inputs
from spile.torch.models import architecture_hash, weights_hash
from spile.torch.observing import observe
from spile.torch.taps import Tap
from spile.torch.trees import device_of

__all__ = ["architecture_hash", "engine", "example", "observe", "tap", "versions", "weights_hash"]


def tap(model: Any, addresses: AddressesLike, *, pool: PoolsLike, example: Any, mode: Mode) -> Tap:
    """Make a `Tap`."""
    return Tap(model, addresses, pool=pool, example=example, mode=mode)


def engine(tap: Tap, *, preprocessing: ImagePreprocessing | None, precision: Precision) -> Engine:
    """The engine that runs `tap` during extraction."""
    return EagerEngine(tap, preprocessing=preprocessing, precision=precision)


def example(inputs: Any, *, preprocessing: ImagePreprocessing | None, model: Any) -> Any:
    """The inputs of one batch as the model takes them, for a dry pass."""
    return model_inputs(inputs, preprocessing=preprocessing, device=device_of(model))


def versions() -> dict[str, str]:
    """Versions that can change a feature's value."""
    return {"torch": torch.__version__, "machine": platform.machine()}
