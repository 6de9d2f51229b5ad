"""An exported tap: the same numbers for any number of samples, and nothing of what lies past it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spile
from spile.errors import ModelError
from spile.torch.exporting import export_tap
from spile.torch.taps import Tap


class Net(nn.Module):
    """In-place operations before and after the tap, and a large layer past it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Conv2d(4, 8, 3)
        self.late = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        self.head = nn.Linear(64, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.head(self.late(x).add_(1).mean((2, 3)))


class PerSample(nn.Module):
    """Branches on the number of samples, so it can be traced for that number only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] == 4 else x


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().train()


@pytest.mark.parametrize("at", ["body", "stem", "body@in", "stem.2"])
def test_exported_equals_tap_for_any_number_of_samples(net: nn.Module, tmp_path: Path, at: str) -> None:
    x = torch.randn(5, 3, 12, 12)
    tap = Tap(net, at, pool="avg", example=x[:1])

    export_tap(tap, x[:1], tmp_path)

    loaded = spile.load_model(str(tmp_path / "network.pt2"))
    expected = tap(x)[at]
    for n in (1, 2, 5):
        again = spile.tap(loaded, "@out:0", pool=None, example=x[:2])
        torch.testing.assert_close(again(x[:n])["@out:0"], expected[:n], rtol=1e-4, atol=1e-4)
    assert all(module.training for module in net.modules())


def test_what_lies_past_the_tap_is_not_in_the_file(net: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 12, 12)

    export_tap(Tap(net, "body", pool="avg", example=x), x, tmp_path)

    program = torch.export.load(tmp_path / "network.pt2")
    names = {name.removeprefix("model.") for name in program.state_dict}
    assert names == {
        *("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"),
        *("stem.1.running_mean", "stem.1.running_var", "body.weight", "body.bias"),
    }
    operations = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("conv2d" in operation for operation in operations) == 2
    assert not any("linear" in operation for operation in operations)
    assert (tmp_path / "network.pt2").stat().st_size < 60_000 < 4 * 64 * 1000


def test_model_that_depends_on_the_number_of_samples_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), PerSample())
    x = torch.randn(4, 3)

    with pytest.raises(ModelError, match=r"Sequential cannot be exported by torch .*pass a reference"):
        export_tap(Tap(net, "1", example=x), x, tmp_path)


def test_path_that_cannot_be_written(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    x = torch.randn(2, 3, 12, 12)

    with pytest.raises(ModelError, match="cannot be saved"):
        export_tap(Tap(net, "stem", example=x), x, tmp_path / "file")


def test_a_loaded_program_can_be_copied(net: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 12, 12)
    export_tap(Tap(net, "stem", example=x), x, tmp_path)

    loaded = spile.load_model(str(tmp_path / "network.pt2")).model

    torch.testing.assert_close(copy.deepcopy(loaded)(x), loaded(x))
