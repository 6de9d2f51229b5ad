"""Keras models by name: each `from_...` builds one, with the preprocessing it was trained with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from spile.errors import ModelError
from spile.keras.applications import from_applications
from spile.keras.demos import from_demo
from spile.keras.files import from_file, from_object
from spile.keras.hub import from_hub
from spile.loading import first_line

__all__ = ["from_applications", "from_demo", "from_file", "from_hub", "from_object", "on_device"]


@contextmanager
def on_device(device: str | None) -> Iterator[None]:
    """Put the models that are built inside on `device`, e.g. ``cuda:1``; ``None`` leaves that to Keras."""
    if device is None:
        yield
        return
    kind, _, number = device.replace("cuda", "gpu").partition(":")
    name = f"{kind}:{number or 0}"
    _check_device(device, name)
    with keras.device(name):
        yield


def _check_device(device: str, name: str) -> None:
    try:
        if keras.backend.backend() == "torch":
            with keras.device(name):
                keras.ops.ones(1)
        elif name not in (known := keras.distribution.list_devices()):
            raise ValueError(f"there are {', '.join(known)}")
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"The model cannot be put on device {device!r}: {first_line(error)}") from error
