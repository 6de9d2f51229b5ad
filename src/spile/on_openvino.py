"""OpenVINO on the CPU. The only place that imports it, and it sends nothing anywhere."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from spile.choosing import EngineUnfit, reason_of
from spile.interfaces import Precision

Array = np.ndarray[Any, Any]

_TELEMETRY = "openvino_telemetry"
_HINTS: Mapping[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
_lock = threading.Lock()
_loading = threading.Lock()
"""Two threads at once would make two cores, and one of these would be given back."""


class Program:
    """A framework's graph as one OpenVINO program: from arrays to arrays, all with the samples first.

    A batch is split among as many streams as there are threads, one thread each, which needs no
    synchronisation inside a layer. A smaller last batch runs in the same program.
    """

    def __init__(
        self,
        framework: str,
        graph: Callable[[], Any],
        *,
        inputs: int,
        outputs: Sequence[str] | None = None,
        precision: Precision,
        threads: int,
    ) -> None:
        """Convert the graph, as by `converted`, and compile it. Raises `EngineUnfit`.

        The results are those called `outputs`, in this order; without it all, as they come.
        """
        core = openvino_core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # It would be emulated on some, at a fifth of the speed of float32.
            raise EngineUnfit("this processor has no bfloat16: write precision='float32'")
        try:
            compiled = core.compile_model(
                converted(framework, graph),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _HINTS[precision],
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": threads,
                    "ENABLE_CPU_PINNING": False,  # the threads that decode share the cores
                },
            )
            used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except Exception as error:  # whatever its frontend or its plugin does not know
            raise EngineUnfit(f"OpenVINO cannot convert it: {reason_of(error)}") from error
        if used != _HINTS[precision]:
            raise EngineUnfit(f"this processor has no {precision}: OpenVINO would compute in {used}")
        names = [each.get_names() for each in compiled.outputs]
        self._order = list(range(len(names)))
        if outputs is not None:
            self._order = [next((i for i, n in enumerate(names) if name in n), -1) for name in outputs]
        if len(compiled.inputs) != inputs or -1 in self._order:
            raise EngineUnfit("OpenVINO made a model with other inputs or results of it")
        self._requests = [compiled.create_infer_request() for _ in range(threads)]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run one batch; the results are the caller's own."""
        values = [np.ascontiguousarray(array) for array in arrays]
        rows = len(values[0])
        bounds = np.linspace(0, rows, min(len(self._requests), rows) + 1).astype(int).tolist()
        parts = list(pairwise(bounds))
        running = self._requests[: len(parts)]
        for request, (start, stop) in zip(running, parts, strict=True):
            request.start_async([value[start:stop] for value in values], share_inputs=True)
        for request in running:
            request.wait()
        found = [request.output_tensors for request in running]
        return [np.concatenate([tensors[i].data for tensors in found]) for i in self._order]


def available() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def versions() -> dict[str, str]:
    """Of OpenVINO."""
    return {"openvino": metadata.version("openvino")} if available() else {}


def converted(framework: str, graph: Callable[[], Any]) -> Any:
    """What `graph` gives, as the frontend of that framework takes it, as OpenVINO's own model.

    By the frontend itself, as `openvino.convert_model` would report to its makers.
    """
    import_openvino()
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework(framework)
    with _quiet():
        held = graph()  # until it is converted
        return frontend.convert(frontend.load(held))


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
