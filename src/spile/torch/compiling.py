"""A tap run by `torch.compile`: the engine for GPUs, and for a CPU where OpenVINO is not installed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config

from spile.choosing import EngineUnfit, reason_of
from spile.interfaces import Precision
from spile.preprocessing import ImagePreprocessing
from spile.torch.copying import Arrays, copied, moved
from spile.torch.engines import batches_at_once
from spile.torch.taps import Tap
from spile.torch.tracing import Leaves, trace
from spile.torch.trees import device_of


class CompileEngine:
    """The traced pass as one compiled program, normalisation and pools included.

    A smaller batch is filled up with its last row, and the rows are dropped from the results: a last odd
    batch does not compile anew.
    """

    name = "compile"
    versions: Mapping[str, str] = {}
    notes: Mapping[str, Any] = {}

    def __init__(
        self,
        tap: Tap,
        inputs: Any,
        *,
        preprocessing: ImagePreprocessing | None,
        precision: Precision,
        half: bool = False,
    ) -> None:
        """Compile the tap, for batches like its first. Raises `EngineUnfit`."""
        self._tap, self._preprocessing = tap, preprocessing
        self._device = device_of(tap.model)
        self._bfloat16 = precision == "bfloat16"
        self._half = half
        self._turn = threading.Lock()  # the compiler's settings are those of the process
        self.at_once = batches_at_once(self._device)
        traced = trace(tap, inputs, preprocessing)
        self._names, self._first = traced.names, traced.first
        self._batched = {point.name for point in tap.points if point.layout is not None}
        self._rows = max(2, self._first.rows)  # a program for one row would be one of its own
        self._program = torch.compile(traced.program.module(), dynamic=None)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch, about its own compiler
                self(inputs)
        except Exception as error:
            raise EngineUnfit(f"it cannot be compiled: {reason_of(error)}") from error

    def __call__(self, inputs: Any) -> Arrays:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        leaves = Leaves.of(self._tap, inputs, self._preprocessing)
        leaves.require_like(self._first)
        autocast = (
            torch.autocast(self._device.type, dtype=torch.bfloat16) if self._bfloat16 else nullcontext()
        )
        with self._turn, torch.no_grad(), autocast, config.patch(freezing=True):
            values = self._program([moved(self._filled(tensor), self._device) for tensor in leaves.tensors])
            named = zip(self._names, values, strict=True)
            kept = {name: v[: leaves.rows] if name in self._batched else v for name, v in named}
            found = copied(kept, half=self._half)
        return found()

    def _filled(self, tensor: Tensor) -> Tensor:
        missing = self._rows - len(tensor)
        return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing > 0 else tensor
