"""These tests run in a process for each Keras backend: ``KERAS_BACKEND=jax python -m pytest tests/keras``.

`make test` runs all of them on one backend, and those marked essential on the others. Without KERAS_BACKEND
they are left out: the main run loads no Keras.
"""

from __future__ import annotations

import os

import pytest

BACKEND = os.environ.get("KERAS_BACKEND")
THREADS = "1"
FOREIGN_WARNINGS = ("__array__ implementation doesn't accept a copy:DeprecationWarning:keras",)
"""What Keras and the backends warn of in their own code."""

if BACKEND is None:
    collect_ignore_glob = ["*"]
else:
    # Before the backend is imported: small models run faster on few threads, and TensorFlow talks on stderr.
    for name, value in {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_NUM_INTRAOP_THREADS": THREADS,
        "TF_NUM_INTEROP_THREADS": THREADS,
        "OMP_NUM_THREADS": THREADS,
        "OMP_WAIT_POLICY": "PASSIVE",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }.items():
        os.environ.setdefault(name, value)


def pytest_configure(config: pytest.Config) -> None:
    """Fail at once where Keras runs on another backend than the one that was asked for."""
    if BACKEND is None:
        return
    for warning in FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")
    try:
        import keras
    except (ImportError, ValueError) as error:
        raise pytest.UsageError(
            f"KERAS_BACKEND is {BACKEND!r}, on which Keras does not start: {error}"
        ) from None
    if keras.backend.backend() != BACKEND:
        raise pytest.UsageError(
            f"KERAS_BACKEND is {BACKEND!r}, but Keras, imported before, runs on {keras.backend.backend()!r}"
        )


def pytest_report_header() -> str:
    """Say which backend the run is on."""
    return f"keras backend: {BACKEND or 'none, tests/keras is left out (set KERAS_BACKEND)'}"
