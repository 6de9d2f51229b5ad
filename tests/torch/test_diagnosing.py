"""Whose gradient reaches which layer, against gradients taken here one by one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spile
from spile.supervision import Constant, Labels, PseudoLabels, SmoothedLabels


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x)).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 3, 8, 8)


LABELS = torch.tensor([0, 1, 2, 3, 4, -1])


def make(**options: Any) -> Any:
    given = {"example": (2, 3, 8, 8), "num_classes": 5, "taps": ["a", "b"], "weight": Constant(0.6)}
    return spile.supervise(Net(), **given | options)  # type: ignore[arg-type]


def test_norms_shares_and_cosine_are_those_of_the_weighted_losses(images: Tensor) -> None:
    supervised = make()
    random = torch.get_rng_state()
    found = supervised.diagnose(images, LABELS)
    assert list(found) == ["a.0", "a.1", "b.0", "fc"]
    torch.set_rng_state(random)  # for the same dropout
    loss = supervised.loss(supervised(images), LABELS, progress=0.0)
    weights = {"main": 1.0, "a": 0.3, "b": 0.3}
    parameters = list(supervised.base.a[0].parameters())
    each = {
        head: torch.cat(
            [
                weight * g.flatten()
                for g in torch.autograd.grad(loss.terms[f"{head}/labels"], parameters, retain_graph=True)
            ]
        )
        for head, weight in weights.items()
    }
    norms = {head: float(gradient.norm()) for head, gradient in each.items()}
    layer = found["a.0"]
    assert layer["gradient_norm"] == pytest.approx(float(sum(each.values()).norm()), rel=1e-4)  # type: ignore[union-attr]
    for head in weights:
        assert layer[f"share/{head}"] == pytest.approx(norms[head] / sum(norms.values()), rel=1e-4)
    heads = each["a"] + each["b"]
    cosine = float(each["main"] @ heads / each["main"].norm() / heads.norm())
    assert layer["cosine"] == pytest.approx(cosine, rel=1e-3)
    assert found["b.0"]["share/a"] == 0
    assert math.isnan(found["fc"]["cosine"])
    assert found["fc"]["share/main"] == 1


def test_a_stopped_head_has_no_share_and_one_without_weight_neither(images: Tensor) -> None:
    for supervised in (make(gradient="stop"), make(weight=Constant(0.0))):
        found = supervised.diagnose(images, LABELS)
        assert found["a.0"]["share/main"] == 1
        assert found["a.0"]["share/a"] == found["a.0"]["share/b"] == 0


def test_it_leaves_no_trace(images: Tensor) -> None:
    targets = [Labels(), SmoothedLabels(samples=6), PseudoLabels(source="ema", threshold="adaptive")]
    supervised = make(targets=targets)
    state, random = copy.deepcopy(supervised.state_dict()), torch.get_rng_state()
    supervised.diagnose(images, LABELS, progress=0.1, ids=torch.arange(6))
    assert all(torch.equal(state[k], v) for k, v in supervised.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in supervised.parameters())
    assert supervised.training
