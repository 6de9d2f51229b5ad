"""A tap run by OpenVINO on the CPU. The only place that imports it, and it sends nothing anywhere."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from spile.backend import Precision
from spile.choosing import EngineUnfit, reason_of
from spile.preprocessing import ImagePreprocessing
from spile.torch.taps import Tap
from spile.torch.tracing import Leaves, Traced, trace

_TELEMETRY = "openvino_telemetry"
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_lock = threading.Lock()
_loading = threading.Lock()
"""Two threads at once would make two cores, and one of these would be given back."""


class OpenVINOEngine:
    """The pass as one OpenVINO program, normalisation and pools included.

    A batch is split among as many streams as there are threads, one thread each, which needs no
    synchronisation inside a layer. A smaller last batch runs in the same program.
    """

    name = "openvino"
    notes: Mapping[str, Any] = {}
    at_once = 1

    def __init__(
        self, tap: Tap, inputs: Any, *, preprocessing: ImagePreprocessing | None, precision: Precision
    ) -> None:
        """Convert the tap, from its first batch. Raises `EngineUnfit`."""
        self.versions = versions()
        self._tap, self._preprocessing = tap, preprocessing
        traced = trace(tap, inputs, preprocessing)
        self._names, self._first = traced.names, traced.first
        self._requests = _compiled(traced, precision)

    def __call__(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`."""
        leaves = Leaves.of(self._tap, inputs, self._preprocessing)
        leaves.require_like(self._first)
        values = [np.ascontiguousarray(tensor.numpy()) for tensor in leaves.tensors]
        bounds = np.linspace(0, leaves.rows, min(len(self._requests), leaves.rows) + 1).astype(int).tolist()
        parts = list(pairwise(bounds))
        running = self._requests[: len(parts)]
        for request, (start, stop) in zip(running, parts, strict=True):
            request.start_async([value[start:stop] for value in values], share_inputs=True)
        for request in running:
            request.wait()
        found = [[tensor.data for tensor in request.output_tensors] for request in running]
        return {
            name: np.concatenate(of) for name, of in zip(self._names, zip(*found, strict=True), strict=True)
        }


def available() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def versions() -> dict[str, str]:
    """Of OpenVINO."""
    return {"openvino": metadata.version("openvino")} if available() else {}


def _compiled(traced: Traced, precision: Precision) -> list[Any]:
    """One request a stream."""
    core = openvino_core()
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # It would be emulated on some, at a fifth of the speed of float32.
        raise EngineUnfit("this processor has no bfloat16: write precision='float32'")
    try:
        model = converted(traced.program)
        streams = max(1, torch.get_num_threads())
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": streams,
                "NUM_STREAMS": streams,
                "ENABLE_CPU_PINNING": False,  # the threads that decode share the cores
            },
        )
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    except Exception as error:  # whatever its frontend or its plugin does not know
        raise EngineUnfit(f"OpenVINO cannot convert it: {reason_of(error)}") from error
    if used != _HINTS[precision]:
        raise EngineUnfit(f"this processor has no {precision}: OpenVINO would compute in {used}")
    if len(compiled.inputs) != len(traced.first.tensors):
        raise EngineUnfit("OpenVINO made a model with other inputs of it")
    return [compiled.create_infer_request() for _ in range(streams)]


def converted(program: ExportedProgram) -> Any:
    """A program as OpenVINO's own.

    By the frontend itself, as `openvino.convert_model` would report to its makers.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    with _quiet(), torch.no_grad():
        decoder = TorchFXPythonDecoder.from_exported_program(program, dynamic_shapes=False)
        return frontend.convert(frontend.load(decoder))


def import_openvino() -> Any:
    """Import OpenVINO without the package that reports its import, and later every conversion, to its makers.

    OpenVINO does without where that package is missing. Where the caller has imported OpenVINO before, that
    is the caller's own affair.
    """
    with _lock:
        if "openvino" in sys.modules:
            return sys.modules["openvino"]
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(_TELEMETRY)}
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[_TELEMETRY]
            sys.modules.update(hidden)


def openvino_core() -> Any:
    """The one `openvino.Core` of this process, which is never given back.

    Its CPU plugin gives the thread that loads it a new stack for signals, and unmaps that stack when the last
    reference goes, in whichever thread this happens. Were that another one, then the next signal that Python
    handles (Ctrl-C, a child that ends) would end the process.
    """
    with _loading:
        return _core()


@cache
def _core() -> Any:
    return import_openvino().Core()


@contextmanager
def _quiet() -> Iterator[None]:
    """Its frontend warns, through the root logger, of operations that this PyTorch does not have."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers
