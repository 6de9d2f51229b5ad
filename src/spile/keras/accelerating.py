"""The engines of a Keras tap by name, and which ones `auto` tries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from spile import on_openvino
from spile.choosing import AskedEngine, AutoEngine, Candidate, EngineUnfit
from spile.errors import ModelError
from spile.interfaces import Engine, EngineName, Precision
from spile.keras.engines import CompiledEngine, EagerEngine, model_inputs, rows_of
from spile.keras.names import names_of
from spile.keras.on_openvino import OpenVINOEngine
from spile.keras.runtime import runtime
from spile.keras.taps import Tap
from spile.keras.trees import called_with
from spile.preprocessing import ImagePreprocessing

NAMES = ("auto", "eager", "compile", "openvino")

_PREPARATION = (0.5, 0.012)
"""Seconds to prepare OpenVINO: at least, and for each layer of the model. Measured on one desktop core."""


class OwnEngine:
    """Compiled by the backend where the pass can be traced and the run is long enough; else eager.

    Which of the two is known after the first batch, from which the tap may have yet to learn its points.
    """

    versions: Mapping[str, str] = {}

    def __init__(
        self,
        tap: Tap,
        *,
        preprocessing: ImagePreprocessing | None,
        asked: EngineName,
        samples: int | None = None,
    ) -> None:
        self._tap = tap
        self._preprocessing = preprocessing
        self._asked = asked
        self._samples = samples
        self._chosen: EagerEngine | CompiledEngine | None = None
        self.notes: dict[str, Any] = {"asked": asked}

    @property
    def name(self) -> str:
        """``compile`` or ``eager``; before the first batch what was asked for."""
        return self._asked if self._chosen is None else self._chosen.name

    @property
    def at_once(self) -> int:
        """That of the engine that was chosen; the first batch, which chooses it, runs alone."""
        return 1 if self._chosen is None else self._chosen.at_once

    def __call__(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run one batch. Raises `ModelError` where it was asked to be compiled, and cannot."""
        if self._chosen is None:
            ready = model_inputs(inputs, preprocessing=self._preprocessing)
            self._tap.learn(called_with(self._tap.model, (ready,), {}))
            unfit = self._unfit(rows_of(inputs))
            if unfit and self._asked == "compile":
                raise ModelError(
                    f"engine 'compile' cannot run this tap: {unfit}. Leave engine at 'auto', or write 'eager'"
                )
            self.notes["why"] = unfit or "the backend's own compiler runs the same pass"
            kind = EagerEngine if unfit else CompiledEngine
            self._chosen = kind(self._tap, preprocessing=self._preprocessing)
        return self._chosen(inputs)

    def _unfit(self, rows: int) -> str:
        if not self._tap.traceable:
            return "the pass cannot be traced"
        short = self._samples is not None and self._samples < rows * runtime().least_batches
        if short and self._asked == "auto" and not self._tap.programs:
            return f"the run is too short: {self._samples} samples in batches of {rows}"
        return ""


def engine_for(
    tap: Tap,
    *,
    name: EngineName,
    preprocessing: ImagePreprocessing | None,
    precision: Precision,
    samples: int | None = None,
) -> Engine:
    """The engine of this name; see `spile.extract`. Raises `ModelError` for one that is not at hand."""
    if name not in NAMES:
        raise ModelError(f"unknown engine {name!r}: write one of {', '.join(map(repr, NAMES))}")
    if precision != "float32":
        raise ModelError(
            f"precision {precision!r} is not for Keras models, whose layers have their own: build the model "
            "under keras.config.set_dtype_policy('mixed_bfloat16') and leave precision at 'float32'"
        )
    eager = EagerEngine(tap, preprocessing=preprocessing)
    if name == "eager":
        return eager
    if name == "openvino":
        candidate = _openvino(tap, preprocessing)
        return AskedEngine(candidate, precision=precision, reference=eager, versions=on_openvino.versions())
    own = OwnEngine(tap, preprocessing=preprocessing, asked=name, samples=samples)
    if name == "compile" or not (runtime().openvino_helps and on_openvino.available() and _on_cpu()):
        return own
    candidates = [_openvino(tap, preprocessing)]
    return AutoEngine(own, candidates, samples=samples, precision=precision, reference=eager)


def _openvino(tap: Tap, preprocessing: ImagePreprocessing | None) -> Candidate:
    def prepare(inputs: Any) -> Engine:
        if not on_openvino.available():
            raise EngineUnfit("OpenVINO is not installed: pip install 'spile[openvino]'")
        if not _on_cpu():
            raise EngineUnfit("it runs on the CPU, and the model is on a GPU")
        return OpenVINOEngine(tap, inputs, preprocessing=preprocessing)

    least, for_each = _PREPARATION
    seconds = least + for_each * len(names_of(tap.model))
    return Candidate(name="openvino", preparation_seconds=seconds, prepare=prepare)


def _on_cpu() -> bool:
    return runtime().versions()["device"] == "cpu"
