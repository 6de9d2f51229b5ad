"""Saving just the part of a network that a tap needs, and putting it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spile.errors import ModelError
from spile.interfaces import Trained
from spile.keras.exporting import FILE, save_model
from spile.keras.taps import Tap
from spile.keras.trees import inputs_of
from spile.keras.weights import save_weights


def save_reached(tap: Tap, example: Any, path: Path) -> None:
    """Save the weights of the layers that the tap's pass enters; those past the deepest point are left out.

    `example` is a batch as the model takes it. Raises `ModelError` where the file cannot be written.
    """
    save_weights(tap.model, path, keep=tap.reached(inputs_of(tap.model, example)))


def save_trained(loaded: Any, example: Any, folder: Path, *, rebuildable: bool) -> Trained:
    """Save the model itself, weights and graph, without the optimizer; whatever its reference.

    Where it cannot be read back without running code, the file is there all the same.
    """
    path = folder / FILE
    try:
        save_model(loaded.model, path)
    except ModelError as error:
        if not path.is_file():
            raise
        return Trained(path, "", str(error))
    return Trained(path, FILE)
