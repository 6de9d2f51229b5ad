"""What the three backends of Keras do differently: tracing without data, compiling, reading back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import keras
import numpy as np

Body = Callable[[Sequence[Any] | None, Any], dict[str, Any]]
"""A pass: the values of the model's variables (``None``: as they are) and its inputs to named tensors."""
Scalars = Callable[[Sequence[Any] | None], list[Any]]
"""From values of some variables (``None``: as they are) to scalars."""
Compiled = Callable[[Any], dict[str, np.ndarray[Any, Any]]]
"""Nested arrays to named arrays."""


class Runtime(Protocol):
    """One module for each backend implements it: ``spile.keras.on_<backend>``."""

    least_batches: int
    """A run of fewer is not worth compiling for, unless asked."""
    fixed_batch: bool
    """A program is compiled for one batch size."""
    openvino_helps: bool
    """OpenVINO may be faster than the backend's own compiler on a CPU."""

    def trace(self, body: Body, variables: Sequence[keras.Variable], inputs: Any) -> None:
        """Run `body` once on tensors that have shapes and no values. Raises whatever the backend raises."""
        ...

    def scope(self) -> object:
        """Where code runs now: equal in two places where a tensor made in one can be used in the other.

        Inside a loop or branch of the backend it differs from outside.
        """
        ...

    def compiled(self, body: Body, variables: Sequence[keras.Variable]) -> Compiled:
        """The pass as the backend's compiler makes it."""
        ...

    def openvino(self, body: Body, inputs: Any) -> Compiled:
        """The pass as an OpenVINO program for batches like `inputs`, nested arrays, of any number of rows.

        Raises `spile.choosing.EngineUnfit`.
        """
        ...

    def gradients(
        self, body: Scalars, variables: Sequence[keras.Variable]
    ) -> list[list[np.ndarray[Any, Any] | None]]:
        """For each scalar that `body` gives, its gradient by every variable; ``None`` where it has none."""
        ...

    def without_gradients(self) -> AbstractContextManager[Any]:
        """A scope in which nothing is kept for gradients."""
        ...

    def tell(self, function: Callable[..., None], *values: Any) -> None:
        """Call ``function`` on the host with arrays of the values, when they are computed."""
        ...

    def settle(self) -> None:
        """Wait until all that was to be told is told."""
        ...

    def versions(self) -> dict[str, str]:
        """Version of the backend, and the device it computes on."""
        ...


def runtime() -> Runtime:
    """That of the backend that Keras was started with."""
    return cast(Runtime, importlib.import_module(f"spile.keras.on_{keras.backend.backend()}"))
