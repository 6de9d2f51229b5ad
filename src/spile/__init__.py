"""spile taps any layer of a PyTorch or Keras 3 model and trains with what flows out.

Importing spile imports no framework: every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spile.errors import (
        AddressError,
        CaptureError,
        DataError,
        FingerprintMismatch,
        MissingDependency,
        ModelError,
        PoolError,
        ProbeError,
        SpileError,
        StoreError,
    )
    from spile.extraction import extract
    from spile.models import load_model
    from spile.preprocessing import ImagePreprocessing, TextPreprocessing
    from spile.probing import load, probe, transfer
    from spile.store import open_store as open
    from spile.taps import Activations, layers, tap

__version__ = "0.1.0"

_HOMES = {
    "spile.errors": (
        "AddressError",
        "CaptureError",
        "DataError",
        "FingerprintMismatch",
        "MissingDependency",
        "ModelError",
        "PoolError",
        "ProbeError",
        "SpileError",
        "StoreError",
    ),
    "spile.extraction": ("extract",),
    "spile.models": ("load_model",),
    "spile.preprocessing": ("ImagePreprocessing", "TextPreprocessing"),
    "spile.probing": ("load", "probe", "transfer"),
    "spile.store": ("open",),
    "spile.taps": ("Activations", "layers", "tap"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_RENAMED = {"open": "open_store"}  # inside its module the name would hide the builtin

__all__ = [
    "AddressError",
    "Activations",
    "CaptureError",
    "DataError",
    "FingerprintMismatch",
    "ImagePreprocessing",
    "MissingDependency",
    "ModelError",
    "PoolError",
    "ProbeError",
    "SpileError",
    "StoreError",
    "TextPreprocessing",
    "extract",
    "layers",
    "load",
    "load_model",
    "open",
    "probe",
    "tap",
    "transfer",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'spile' has no attribute {name!r}; there is {', '.join(__all__)}")
    value = getattr(importlib.import_module(home), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
