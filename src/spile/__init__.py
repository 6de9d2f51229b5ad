"""spile taps any layer of a PyTorch or Keras 3 model and trains with what flows out.

Importing spile imports no framework: every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; `_HOMES` says the same to Python, a test compares the two
    from spile import augmentation as augmentation
    from spile import inspection as inspection
    from spile import supervision as supervision
    from spile.augmenting import at_layer as at_layer
    from spile.augmenting import augment as augment
    from spile.augmenting import guide as guide
    from spile.banking import MapBank as MapBank
    from spile.errors import AddressError as AddressError
    from spile.errors import AugmentationError as AugmentationError
    from spile.errors import CaptureError as CaptureError
    from spile.errors import DataError as DataError
    from spile.errors import FingerprintMismatch as FingerprintMismatch
    from spile.errors import MissingDependency as MissingDependency
    from spile.errors import ModelError as ModelError
    from spile.errors import PoolError as PoolError
    from spile.errors import ProbeError as ProbeError
    from spile.errors import SpileError as SpileError
    from spile.errors import StoreError as StoreError
    from spile.errors import SupervisionError as SupervisionError
    from spile.errors import TrainingError as TrainingError
    from spile.extraction import extract as extract
    from spile.feeding import feed as feed
    from spile.inspection import diagnose as diagnose
    from spile.inspection import similarity as similarity
    from spile.models import load_model as load_model
    from spile.preprocessing import ImagePreprocessing as ImagePreprocessing
    from spile.preprocessing import TextPreprocessing as TextPreprocessing
    from spile.probing import load as load
    from spile.probing import probe as probe
    from spile.probing import transfer as transfer
    from spile.store import open_store
    from spile.supervising import supervise as supervise
    from spile.taps import Activations as Activations
    from spile.taps import layers as layers
    from spile.taps import tap as tap
    from spile.training import Augmentation as Augmentation
    from spile.training import Recipe as Recipe
    from spile.training import Supervision as Supervision
    from spile.training import compare as compare
    from spile.training import load_supervised as load_supervised
    from spile.training import train as train

    open = open_store

__version__ = "0.1.0"

_HOMES = {
    "spile.augmenting": ("at_layer", "augment", "guide"),
    "spile.banking": ("MapBank",),
    "spile.errors": (
        "AddressError",
        "AugmentationError",
        "CaptureError",
        "DataError",
        "FingerprintMismatch",
        "MissingDependency",
        "ModelError",
        "PoolError",
        "ProbeError",
        "SpileError",
        "StoreError",
        "SupervisionError",
        "TrainingError",
    ),
    "spile.extraction": ("extract",),
    "spile.inspection": ("diagnose", "similarity"),
    "spile.feeding": ("feed",),
    "spile.models": ("load_model",),
    "spile.preprocessing": ("ImagePreprocessing", "TextPreprocessing"),
    "spile.probing": ("load", "probe", "transfer"),
    "spile.store": ("open",),
    "spile.supervising": ("supervise",),
    "spile.taps": ("Activations", "layers", "tap"),
    "spile.training": ("Augmentation", "Recipe", "Supervision", "compare", "load_supervised", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = ("augmentation", "inspection", "supervision")
"""Packages that need no import of their own: ``spile.supervision.Labels``."""
_RENAMED = {"open": "open_store"}  # inside its module the name would hide the builtin

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if name in _ROOMS:
        return importlib.import_module(f"spile.{name}")
    if home is None:
        raise AttributeError(f"module 'spile' has no attribute {name!r}; there is {', '.join(__all__)}")
    value = getattr(importlib.import_module(home), _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
