"""Which backend Keras will use, found without importing it: `import keras` without one fails obscurely."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from spile.errors import MissingDependency, ModelError

BACKENDS = ("tensorflow", "jax", "torch")


def require_backend(purpose: str) -> None:
    """Raise unless `import keras` will work, with a backend that spile knows; chooses and imports nothing.

    Keras that is imported already is taken as it is. Raises `MissingDependency` without Keras, and
    `ModelError` where the backend that it is set to is not installed, or none of the three.
    """
    if sys.modules.get("keras") is not None:
        return
    if not is_installed("keras"):
        raise MissingDependency("keras", extra="keras", purpose=purpose)
    backend = configured_backend()
    found = [name for name in BACKENDS if is_installed(name)]
    if backend in found:
        return
    ways = [f"KERAS_BACKEND={name}" for name in found]
    if backend in BACKENDS:
        problem = "which is not installed"
        ways.insert(0, f"pip install {backend}")
    else:
        problem = f"and spile runs Keras on {', '.join(BACKENDS)}"
        ways = ways or [f"pip install {name}" for name in BACKENDS]
    raise ModelError(f"Keras is set to its backend {backend!r}, {problem}. Type: {', or '.join(ways)}")


def configured_backend() -> str:
    """What Keras will choose: ``KERAS_BACKEND``, else its configuration file, else TensorFlow."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    try:
        configuration = json.loads((keras_home() / "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "tensorflow"
    return str(configuration.get("backend", "tensorflow"))


def keras_home() -> Path:
    """The folder where Keras keeps its configuration and what it has downloaded."""
    if home := os.environ.get("KERAS_HOME"):
        return Path(home).expanduser()
    own = Path.home()
    return (own if os.access(own, os.W_OK) else Path("/tmp")) / ".keras"


def is_installed(module: str) -> bool:
    """Whether a top-level package can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # modules put into sys.modules without a spec
        return sys.modules.get(module) is not None
