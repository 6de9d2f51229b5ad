"""Which engine runs an extraction: the first batch is compared with eager and timed; the reasons are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from spile.errors import ModelError
from spile.interfaces import Engine, EngineName, Precision
from spile.loading import first_line

Arrays = Mapping[str, np.ndarray[Any, Any]]

TOLERANCE: Mapping[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest difference of a value from eager float32, relative to its own size plus the point's RMS."""

PREPARATIONS_IN_RUN = 4
"""How often preparing must fit into the time of the run without: a quarter of it is lost at worst."""

FASTER = 0.9
"""A candidate must take less than this share of the time that a batch takes otherwise."""

_ROUNDS = 2


class EngineUnfit(Exception):  # noqa: N818 - a verdict, which `auto` records and goes on from
    """An engine cannot run this tap; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine that might be faster: what it is expected to cost to prepare, and how it is prepared."""

    name: EngineName
    preparation_seconds: float
    prepare: Callable[[Any], Engine]
    """From the first batch's inputs. Raises `EngineUnfit`."""


@dataclass
class AutoEngine:
    """The usual engine, or the first candidate that is worth preparing, gives the same values, and is faster.

    Which one is settled on the first batch and stays; `notes` say why.
    """

    usual: Engine
    """What runs unless a candidate is better: eager, or what the framework compiles by itself."""
    candidates: Sequence[Candidate]
    samples: int | None
    """How many the run computes; unknown where it is a stream that does not tell."""
    precision: Precision
    reference: Engine
    """Eager in float32: what values are compared with."""
    notes: dict[str, Any] = field(default_factory=lambda: {"asked": "auto"})
    _chosen: Engine | None = None

    @property
    def name(self) -> str:
        """The chosen engine; ``auto`` before the first batch."""
        return "auto" if self._chosen is None else self._chosen.name

    @property
    def at_once(self) -> int:
        """That of the chosen engine; the first batch runs alone."""
        return 1 if self._chosen is None else self._chosen.at_once

    @property
    def versions(self) -> Mapping[str, str]:
        """Those of the chosen engine."""
        return {} if self._chosen is None else self._chosen.versions

    def __call__(self, inputs: Any) -> Arrays:
        """Run one batch; the first one decides."""
        if self._chosen is not None:
            return self._chosen(inputs)
        seconds, found = _timed(self.usual, inputs)
        self._chosen = self.usual
        for candidate in self.candidates:
            reason = self._not_worth(candidate, seconds, found)
            if reason is None:  # the first pass is slower than those that follow
                seconds = min(seconds, _timed(self.usual, inputs)[0])
                reason = self._not_worth(candidate, seconds, found)
            if reason is None:
                try:
                    return self._try(candidate, inputs)
                except EngineUnfit as unfit:
                    reason = str(unfit)
            self.notes.setdefault("passed_over", {})[candidate.name] = reason
        otherwise = "nothing faster is at hand" if not self.candidates else "see passed_over"
        self.notes["why"] = self.usual.notes.get("why", otherwise)
        return found

    def _not_worth(self, candidate: Candidate, seconds: float, found: Arrays) -> str | None:
        """Why a run is too short for the candidate to be prepared; ``None`` where it is long enough."""
        if self.samples is None:
            return "the number of samples is not known beforehand, so preparing it may not pay"
        rows = max((len(values) for values in found.values() if values.ndim), default=0) or 1
        expected, needed = seconds * self.samples / rows, PREPARATIONS_IN_RUN * candidate.preparation_seconds
        if expected >= needed:
            return None
        return (
            f"the run is too short: about {expected:.3g} s with {self.usual.name}, and preparing takes about "
            f"{candidate.preparation_seconds:.3g} s, which pays from {needed:.3g} s on"
        )

    def _try(self, candidate: Candidate, inputs: Any) -> Arrays:
        """The candidate's values, once it is chosen. Raises `EngineUnfit`."""
        began = time.perf_counter()
        engine = candidate.prepare(inputs)
        found = engine(inputs)
        prepared = time.perf_counter() - began
        error = checked(found, self.reference(inputs), self.precision)
        rounds = [(_seconds(self.usual, inputs), _seconds(engine, inputs)) for _ in range(_ROUNDS)]
        usual, own = (min(times) for times in zip(*rounds, strict=True))
        if own >= FASTER * usual:
            raise EngineUnfit(f"not faster: {own:.3g} s a batch, {self.usual.name} {usual:.3g} s")
        self._chosen = engine
        self.notes |= {
            "why": f"{usual / own:.2g} times as fast as {self.usual.name}, and equal within the tolerance",
            "seconds_a_batch": {self.usual.name: round(usual, 4), candidate.name: round(own, 4)},
            "preparation_seconds": round(prepared, 2),
            "largest_difference": error,
            "tolerance": TOLERANCE[self.precision],
        }
        return found


@dataclass
class AskedEngine:
    """The engine a caller named: prepared and compared with eager on the first batch, whatever its speed."""

    candidate: Candidate
    precision: Precision
    reference: Engine
    versions: Mapping[str, str]
    notes: dict[str, Any] = field(default_factory=dict)
    _ready: Engine | None = None
    at_once: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """What was asked for."""
        return self.candidate.name

    def __call__(self, inputs: Any) -> Arrays:
        """Run one batch. Raises `ModelError` on the first where the engine cannot, or gives other values."""
        if self._ready is not None:
            return self._ready(inputs)
        began = time.perf_counter()
        expected = self.reference(inputs)  # first, as the tap may have yet to learn its points
        try:
            engine = self.candidate.prepare(inputs)
            own, found = _timed(engine, inputs)
            error = checked(found, expected, self.precision)
        except EngineUnfit as unfit:
            raise ModelError(
                f"engine {self.name!r} cannot run this tap: {unfit}. Leave engine at 'auto', or write 'eager'"
            ) from unfit
        self.notes |= {
            "asked": self.name,
            "preparation_seconds": round(time.perf_counter() - began - own, 2),
            "largest_difference": error,
            "tolerance": TOLERANCE[self.precision],
        }
        self._ready = engine
        return found


def checked(found: Arrays, expected: Arrays, precision: Precision) -> float:
    """The largest difference of any value. Raises `EngineUnfit` naming the point that differs too much."""
    errors = {name: difference(found[name], expected[name]) for name in expected}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE[precision]:
        raise EngineUnfit(
            f"its values differ from eager's by {errors[worst]:.2g} at {worst}, "
            f"more than {TOLERANCE[precision]:g}"
        )
    return float(f"{errors[worst]:.3g}")


def difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Largest ``|found - expected| / (|expected| + rms(expected))``; infinite where shapes or kinds differ.

    Whole numbers and truth values must be equal. NaN and infinity must stand at the same places.
    """
    if found.shape != expected.shape or found.dtype.kind != expected.dtype.kind:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    a, b = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    if not b.size:
        return 0.0
    scale = np.abs(b) + np.sqrt(np.mean(b * b))
    gap = np.abs(a - b)
    worst = np.divide(gap, scale, out=np.where(gap > 0, np.inf, 0.0), where=scale > 0).max()
    return float("inf") if np.isnan(worst) else float(worst)


def reason_of(error: Exception) -> str:
    """One line for the manifest."""
    return f"{type(error).__name__}: {first_line(error)}"[:300]


def _seconds(engine: Engine, inputs: Any) -> float:
    """Seconds a batch, with as many at a time as the engine takes."""
    if engine.at_once == 1:
        return _timed(engine, inputs)[0]
    began = time.perf_counter()
    with ThreadPoolExecutor(engine.at_once) as pool:
        list(pool.map(engine, [inputs] * engine.at_once))
    return (time.perf_counter() - began) / engine.at_once


def _timed(engine: Engine, inputs: Any) -> tuple[float, Arrays]:
    began = time.perf_counter()
    found = engine(inputs)
    return time.perf_counter() - began, found
