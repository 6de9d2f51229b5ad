"""The engines of a PyTorch tap by name, and which ones `auto` tries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spile import on_openvino
from spile.choosing import AskedEngine, AutoEngine, Candidate, EngineUnfit
from spile.errors import ModelError
from spile.interfaces import Engine, EngineName, Precision
from spile.preprocessing import ImagePreprocessing
from spile.torch.engines import EagerEngine
from spile.torch.on_openvino import OpenVINOEngine
from spile.torch.taps import Tap
from spile.torch.trees import device_of

NAMES = ("auto", "eager", "compile", "openvino")

_PREPARATION: Mapping[str, tuple[float, float]] = {"openvino": (1.5, 0.04), "compile": (3.0, 0.08)}
"""Seconds to prepare an engine: at least, and for each layer of the model. Measured on one desktop core."""


def engine_for(
    tap: Tap,
    *,
    name: EngineName,
    preprocessing: ImagePreprocessing | None,
    precision: Precision,
    samples: int | None,
    half: bool = False,
) -> Engine:
    """The engine of this name; see `spile.extract`. Raises `ModelError` for one that is not at hand."""
    if name not in NAMES:
        raise ModelError(f"unknown engine {name!r}: write one of {', '.join(map(repr, NAMES))}")
    eager = EagerEngine(tap, preprocessing=preprocessing, precision=precision, half=half)
    exact = EagerEngine(tap, preprocessing=preprocessing, precision="float32")
    if name == "eager":
        return eager
    if name == "auto":
        candidates = [_candidate(tap, each, preprocessing, precision, half) for each in _fitting(tap)]
        return AutoEngine(eager, candidates, samples=samples, precision=precision, reference=exact)
    candidate = _candidate(tap, name, preprocessing, precision, half)
    versions = on_openvino.versions() if name == "openvino" else {}
    return AskedEngine(candidate, precision=precision, reference=exact, versions=versions)


def _fitting(tap: Tap) -> tuple[EngineName, ...]:
    """What may be faster on the model's device, best first."""
    device = device_of(tap.model).type
    if device == "cpu":
        return ("openvino", "compile") if on_openvino.available() else ("compile",)
    return ("compile",) if device == "cuda" else ()


def _candidate(
    tap: Tap, name: EngineName, preprocessing: ImagePreprocessing | None, precision: Precision, half: bool
) -> Candidate:
    def prepare(inputs: Any) -> Engine:
        if name == "openvino":
            if not on_openvino.available():
                raise EngineUnfit("OpenVINO is not installed: pip install 'spile[openvino]'")
            if device_of(tap.model).type != "cpu":
                raise EngineUnfit(f"it runs on the CPU, and the model is on {device_of(tap.model)}")
            return OpenVINOEngine(tap, inputs, preprocessing=preprocessing, precision=precision)
        from spile.torch.compiling import CompileEngine  # loads the compiler

        return CompileEngine(tap, inputs, preprocessing=preprocessing, precision=precision, half=half)

    least, for_each = _PREPARATION[name]
    layers = sum(not any(module.children()) for module in tap.model.modules())
    return Candidate(name=name, preparation_seconds=least + for_each * layers, prepare=prepare)
