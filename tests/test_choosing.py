"""Choosing an engine: worth it, the same values, faster; and the reasons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from spile.choosing import TOLERANCE, AskedEngine, AutoEngine, Candidate, EngineUnfit, checked, difference
from spile.errors import ModelError

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)


class Fake:
    """An engine that takes that long and multiplies."""

    notes: Mapping[str, Any] = {}
    at_once = 1

    def __init__(self, name: str, seconds: float = 0.0, factor: float = 2.0) -> None:
        self.name, self.seconds, self.factor, self.calls = name, seconds, factor, 0
        self.versions: Mapping[str, str] = {name: "1"} if name != "eager" else {}

    def __call__(self, inputs: Any) -> Mapping[str, Any]:
        self.calls += 1
        time.sleep(self.seconds)
        return {"a": inputs * np.float32(self.factor)}


def auto(
    *candidates: Candidate, samples: int | None = 10**6, eager: Fake | None = None
) -> tuple[AutoEngine, Fake]:
    eager = eager or Fake("eager", 0.01)
    exact = Fake("eager")
    return AutoEngine(eager, candidates, samples=samples, precision="float32", reference=exact), eager


def candidate(
    engine: Fake | None, seconds: float = 0.0, refuses: str = "", name: Any = "openvino"
) -> Candidate:
    def prepare(_: Any) -> Any:
        if refuses:
            raise EngineUnfit(refuses)
        return engine

    return Candidate(name=name, preparation_seconds=seconds, prepare=prepare)


def test_a_faster_equal_candidate_runs_every_batch_the_first_one_too() -> None:
    fast = Fake("openvino", factor=2.000001)
    engine, eager = auto(candidate(fast))
    assert engine.name == "auto"
    np.testing.assert_array_equal(engine(X)["a"], X * np.float32(2.000001))
    calls = eager.calls
    engine(X[:1])
    assert eager.calls == calls
    assert (engine.name, engine.versions) == ("openvino", {"openvino": "1"})
    assert engine.notes["seconds_a_batch"]["eager"] > engine.notes["seconds_a_batch"]["openvino"]
    assert 0 < engine.notes["largest_difference"] < engine.notes["tolerance"] == TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("other", "samples", "reason"),
    [
        (lambda: candidate(Fake("openvino", factor=2.1)), 10**6, "differ from eager's by 0.0.* at a"),
        (lambda: candidate(Fake("openvino", 0.03)), 10**6, "not faster"),
        (lambda: candidate(None, refuses="odd layers"), 10**6, "odd layers"),
        (lambda: candidate(Fake("openvino"), seconds=5), 40, "too short: about .* pays from 20 s on"),
        (lambda: candidate(Fake("openvino")), None, "not known beforehand"),
    ],
)
def test_what_does_not_fit_is_passed_over_with_the_reason(
    other: Callable[[], Candidate], samples: int | None, reason: str
) -> None:
    engine, _ = auto(other(), samples=samples)
    np.testing.assert_array_equal(engine(X)["a"], X * 2)
    assert engine.name == "eager"
    assert engine.versions == {}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(engine.notes["passed_over"]["openvino"])


def test_a_short_run_costs_one_pass() -> None:
    engine, eager = auto(candidate(Fake("openvino"), seconds=5), samples=40)
    engine(X)
    assert eager.calls == 1


def test_the_next_candidate_is_tried() -> None:
    engine, _ = auto(candidate(None, refuses="odd layers"), candidate(Fake("compile"), name="compile"))
    engine(X)
    assert engine.name == "compile"
    assert engine.notes["passed_over"] == {"openvino": "odd layers"}


def asked(engine: Fake | None, **options: Any) -> AskedEngine:
    return AskedEngine(
        candidate(engine, **options), precision="float32", reference=Fake("eager"), versions={"openvino": "1"}
    )


def test_an_engine_that_was_asked_for_is_compared_once() -> None:
    own = Fake("openvino", 0.01)
    engine = asked(own)
    assert (engine.name, engine.versions) == ("openvino", {"openvino": "1"})
    engine(X), engine(X)
    assert own.calls == 2
    assert engine.notes.pop("preparation_seconds") < 0.01 * 3
    assert engine.notes == {"asked": "openvino", "largest_difference": 0.0, "tolerance": 1e-3}


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"engine": Fake("openvino", factor=3)}, "differ"), ({"engine": None, "refuses": "odd"}, "odd")],
)
def test_an_engine_that_was_asked_for_and_cannot_is_an_error(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=f"engine 'openvino' cannot run this tap: .*{reason}.*'eager'"):
        asked(**options)(X)


def test_the_difference_is_relative_to_the_value_and_the_rms() -> None:
    expected = np.array([3.0, -4.0, 0.0, 0.0], np.float32)  # rms 2.5
    assert difference(expected, expected) == 0
    assert difference(expected + np.float32([0, 0, 0.25, 0]), expected) == pytest.approx(0.1)
    assert difference(expected + np.float32([0, 0.65, 0, 0]), expected) == pytest.approx(0.1)
    assert difference(np.zeros(3), np.zeros(3)) == 0
    assert difference(np.ones(3), np.zeros(3)) == float("inf")


def test_what_is_no_small_difference() -> None:
    x = np.array([1.0, np.nan, np.inf])
    assert difference(x, x) == 0
    for other in (np.ones(3), np.ones(2), np.array([1, 2, 3]), np.array([1.0, np.nan, -np.inf])):
        assert difference(other, x) == float("inf")
    assert difference(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == float("inf")
    assert difference(np.array([1, 2]), np.array([1, 2])) == 0
    assert difference(np.array([1, 3]), np.array([1, 2])) == float("inf")


def test_the_worst_point_is_named() -> None:
    with pytest.raises(EngineUnfit, match=r"by 0\.5 at b, more than 0\.001"):
        checked({"a": X, "b": np.full(2, 2.0)}, {"a": X, "b": np.ones(2)}, "float32")
