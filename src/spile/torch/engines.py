"""How a tap runs during extraction: eager, channels-last, without gradients, normalised on the device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from spile.errors import ModelError
from spile.interfaces import Precision, Tap
from spile.preprocessing import ImagePreprocessing
from spile.torch.copying import Arrays, copied
from spile.torch.inputs import model_inputs
from spile.torch.trees import device_of, floating_of


class EagerEngine:
    """The reference engine: one batch in, a float32 (or integer) NumPy array for every point out.

    With `half`, floats come in float16, made so on the device.

    On a GPU two batches may be run at the same time: one thread prepares its batch and asks for the pass,
    while the other waits for the results of its own. The passes themselves follow each other.
    """

    name = "eager"
    versions: Mapping[str, str] = {}
    notes: Mapping[str, Any] = {}

    def __init__(
        self,
        tap: Tap,
        *,
        preprocessing: ImagePreprocessing | None,
        precision: Precision,
        half: bool = False,
    ) -> None:
        self._tap = tap
        self._preprocessing = preprocessing
        self._device, self._floating = device_of(tap.model), floating_of(tap.model)
        if precision not in ("float32", "bfloat16"):
            raise ModelError(f"unknown precision {precision!r}: write 'float32' (the default) or 'bfloat16'")
        self._bfloat16 = precision == "bfloat16"
        self._half = half
        self._turn = threading.Lock()
        self.at_once = batches_at_once(self._device)

    def __call__(self, inputs: Any) -> Arrays:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        autocast = (
            torch.autocast(self._device.type, dtype=torch.bfloat16) if self._bfloat16 else nullcontext()
        )
        # Not in inference mode: a model could not be trained with what it keeps of such a pass, as a cache.
        with self._turn, torch.no_grad(), autocast:
            args = model_inputs(
                inputs, preprocessing=self._preprocessing, device=self._device, floating=self._floating
            )
            activations = self._tap(**args) if isinstance(args, dict) else self._tap(args)
            found = copied(activations, half=self._half)
        return found()


def batches_at_once(device: torch.device) -> int:
    """One that is computed, and on a GPU one that is prepared meanwhile."""
    return 2 if device.type == "cuda" else 1
