"""A PyTorch tap run by OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from spile import on_openvino
from spile.interfaces import Precision
from spile.preprocessing import ImagePreprocessing
from spile.torch.taps import Tap
from spile.torch.tracing import Leaves, trace


class OpenVINOEngine:
    """The pass as one OpenVINO program, normalisation and pools included."""

    name = "openvino"
    notes: Mapping[str, Any] = {}
    at_once = 1

    def __init__(
        self, tap: Tap, inputs: Any, *, preprocessing: ImagePreprocessing | None, precision: Precision
    ) -> None:
        """Convert the tap, from its first batch. Raises `EngineUnfit`."""
        self.versions = on_openvino.versions()
        self._tap, self._preprocessing = tap, preprocessing
        traced = trace(tap, inputs, preprocessing)
        self._names, self._first = traced.names, traced.first
        self._program = on_openvino.Program(
            "pytorch",
            partial(_decoder, traced.program),
            inputs=len(traced.first.tensors),
            precision=precision,
            threads=max(1, torch.get_num_threads()),
        )

    def __call__(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        leaves = Leaves.of(self._tap, inputs, self._preprocessing)
        leaves.require_like(self._first)
        found = self._program([tensor.numpy() for tensor in leaves.tensors])
        return dict(zip(self._names, found, strict=True))


def converted(program: ExportedProgram) -> Any:
    """A program as OpenVINO's own model."""
    return on_openvino.converted("pytorch", partial(_decoder, program))


def _decoder(program: ExportedProgram) -> Any:
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with torch.no_grad():
        return TorchFXPythonDecoder.from_exported_program(program, dynamic_shapes=False)
