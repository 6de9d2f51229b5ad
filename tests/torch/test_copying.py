"""Copies between host and device. There need be no GPU: what is asked of one is written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spile.torch import copying
from spile.torch.copying import copied, moved


@pytest.mark.parametrize("half", [False, True])
def test_results_on_the_host(half: bool) -> None:
    values = {
        "a": torch.tensor([1.00048828125, 2]),
        "b": torch.tensor([1.5], dtype=torch.bfloat16),
        "c": torch.ones(1, dtype=torch.int64),
    }
    found = copied(values, half=half)()
    assert [array.dtype for array in found.values()] == [np.float16 if half else np.float32] * 2 + [np.int64]
    assert found["a"].tolist() == [1.0 if half else 1.00048828125, 2]


def test_what_is_there_already_stays() -> None:
    tensor = torch.ones(2)
    assert moved(tensor, torch.device("cpu")) is tensor


GPU = torch.device("cuda", 0)


class Stream:
    """Writes down what it is asked to do."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> Any:
        self.log.append(f"{self.name} marks")
        return SimpleNamespace(synchronize=lambda: self.log.append("host waits for the mark"))


class OnGPU:
    """A tensor that says it lies on a GPU; copying it is written down."""

    def __init__(self, value: torch.Tensor, log: list[str], is_cuda: bool = True) -> None:
        self.value, self.log, self.is_cuda = value, log, is_cuda
        self.device, self.shape, self.dtype = (
            (GPU if is_cuda else torch.device("cpu")),
            value.shape,
            value.dtype,
        )

    def is_floating_point(self) -> bool:
        return self.value.is_floating_point()

    def to(self, where: Any, non_blocking: bool = False) -> OnGPU:
        if isinstance(where, torch.dtype):
            return OnGPU(self.value.to(where), self.log)
        self.log.append(f"copied up, non_blocking={non_blocking}")
        return OnGPU(self.value, self.log)

    def pin_memory(self) -> OnGPU:
        self.log.append("pinned")
        return self

    def record_stream(self, stream: Stream) -> None:
        self.log.append(f"kept for {stream.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU was asked to do, in order."""
    found: list[str] = []
    names = iter(["first", "second"])

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        found.append(f"on {stream.name}:")
        yield

    class Host:
        def __init__(self, shape: Any, dtype: torch.dtype) -> None:
            self.own = torch.zeros(shape, dtype=dtype)

        def copy_(self, source: OnGPU, non_blocking: bool) -> None:
            found.append(f"copied down, non_blocking={non_blocking}")
            self.own.copy_(source.value)

        def numpy(self) -> Any:
            found.append("read")
            return self.own.numpy()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(names), found))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing", found))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: Host(shape, dtype))
    monkeypatch.setattr(copying, "_streams", {})
    return found


def test_results_are_read_after_the_copy_which_is_made_after_the_pass(log: list[str]) -> None:
    wait = copied({"a": OnGPU(torch.tensor([1.5]), log)}, half=True)  # type: ignore[dict-item]
    assert log == [
        "first waits for computing", "on first:", "copied down, non_blocking=True",
        "kept for first", "first marks",
    ]  # fmt: skip
    log.clear()
    assert wait()["a"].tolist() == [1.5] and wait()["a"].dtype == np.float16
    assert log[:2] == ["host waits for the mark", "read"]


def test_results_on_several_devices_are_all_waited_for(log: list[str]) -> None:
    other = OnGPU(torch.tensor([2.5]), log)
    other.device = torch.device("cuda", 1)
    other.to = lambda where: other  # type: ignore[method-assign, assignment]
    wait = copied({"a": OnGPU(torch.tensor([1.5]), log), "b": other}, half=False)  # type: ignore[dict-item]
    assert sorted(line for line in log if line.endswith("marks")) == ["first marks", "second marks"]
    log.clear()
    assert wait()["b"].tolist() == [2.5]
    assert log[:2] == ["host waits for the mark"] * 2


def test_inputs_go_up_beside_the_pass_before_and_are_waited_for(log: list[str]) -> None:
    copied({"a": OnGPU(torch.tensor([1.5]), log)}, half=True)  # type: ignore[dict-item]
    log.clear()
    moved(OnGPU(torch.ones(2), log, is_cuda=False), GPU)  # type: ignore[arg-type]
    # Not on the first, which waits for the results of that pass.
    assert log == [
        "on second:", "pinned", "copied up, non_blocking=True",
        "computing waits for second", "kept for computing",
    ]  # fmt: skip
