"""A tap on its way to other processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spile
from spile.torch.packing import pack, unpack


@pytest.fixture(autouse=True)
def settings() -> object:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def test_points_values_and_ties_arrive() -> None:
    line = nn.Linear(3, 3)
    tap = spile.tap(nn.Sequential(line, nn.ReLU(), line), {"first": "0#0", "last": "2#1"}, example=(2, 3))
    made = unpack(pack(tap, ["cpu"]), "cpu", 1)
    assert made.points == tap.points and made.model is not tap.model
    assert made.model[0] is made.model[2]
    x = torch.randn(4, 3)
    for name, value in tap(x).items():
        assert torch.equal(made(x)[name], value)


def test_the_settings_that_numbers_depend_on_arrive() -> None:
    tap = spile.tap(nn.Linear(3, 3), "@out", example=(2, 3))
    torch.set_float32_matmul_precision("high")
    packed = pack(tap, ["cpu"])
    torch.set_float32_matmul_precision("highest")
    unpack(packed, "cpu", 1)
    assert torch.get_float32_matmul_precision() == "high"


def test_processes_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spile.torch.packing.usable_cores", lambda: 6)
    tap = spile.tap(nn.Linear(3, 3), "@out", example=(2, 3))
    unpack(pack(tap, ["cpu"]), "cpu", 3)
    assert torch.get_num_threads() == 2


def test_tensors_of_another_device_arrive_on_the_cpu() -> None:
    """The meta device stands for a GPU; what cannot be copied from it says that it was asked for."""
    model = nn.Sequential(nn.Linear(3, 3))
    tap = spile.tap(model, "0", example=(2, 3))
    model.to("meta")
    with pytest.raises(spile.ModelError, match="meta tensor"):
        pack(tap, ["cpu"])
