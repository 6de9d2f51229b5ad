"""Heads beside a model: the pass, the loss, the gradients, and that nothing of the model changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import spile
from spile.errors import SupervisionError
from spile.supervision import Constant, CosineDecay, Labels, Linear, SelfDistill
from spile.torch.supervision import Supervised


class Net(nn.Module):
    """Three stages with batch norm and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.c = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(x))).mean((2, 3)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, -1])


def make(model: nn.Module | None = None, **options: Any) -> Supervised:
    given: dict[str, Any] = {"example": (2, 3, 8, 8), "num_classes": 5, "taps": ["a", "b"]} | options
    made = spile.supervise(model if model is not None else Net(), **given)
    assert isinstance(made, Supervised)
    return made


# --- the pass -------------------------------------------------------------------------------------


def test_one_pass_gives_the_models_own_logits_and_those_of_every_head(images: Tensor) -> None:
    model = Net().eval()
    expected = model(images)
    supervised = make(model, taps=["b", "a"]).eval()
    out = supervised(images)
    assert torch.equal(out.main, expected)
    assert list(out.aux) == ["a", "b"] == list(supervised.heads)  # the shallowest first
    assert [point.name for point in supervised.points] == ["a", "b"]
    assert {tuple(logits.shape) for logits in out.aux.values()} == {(6, 5)}


def test_the_models_own_keys_stay_and_the_heads_stand_beside_it() -> None:
    model = Net()
    keys = list(model.state_dict())
    supervised = make(model)
    assert supervised.base is model
    assert list(model.state_dict()) == keys
    ours = list(supervised.state_dict())
    assert [key.removeprefix("base.") for key in ours if key.startswith("base.")] == keys
    assert all(key.startswith(("base.", "heads.a.", "heads.b.")) for key in ours)


def test_heads_of_nested_layers_are_found_by_their_address(images: Tensor) -> None:
    supervised = make(taps=["a.0", "b.1"])
    assert list(supervised(images).aux) == ["a.0", "b.1"]
    assert isinstance(supervised.heads["a.0"], nn.Module)
    other = make(taps=["a.0", "b.1"])
    other.load_state_dict(supervised.state_dict())
    for one, two in zip(
        supervised.eval()(images).aux.values(), other.eval()(images).aux.values(), strict=True
    ):
        assert torch.equal(one, two)


def test_making_it_changes_neither_buffers_nor_random_state_nor_flags() -> None:
    model = Net()
    model.b.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    make(model, targets=[Labels(), SelfDistill(hint=1.0)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [model.training, model.a.training, model.b.training] == [True, True, False]


def test_it_compiles_whole(images: Tensor, labels: Tensor) -> None:
    torch._dynamo.reset()
    supervised = make(targets=[Labels(), SelfDistill(hint=0.1)], gradient=0.5, head="linear")
    compiled = torch.compile(supervised, fullgraph=True, backend="aot_eager")
    results = []
    for run in (supervised, compiled):
        out = run(images)
        loss = supervised.loss(out, labels, progress=0.0)
        results.append([loss.total, *torch.autograd.grad(loss.total, list(supervised.parameters()))])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-4, atol=1e-5)


# --- the loss -------------------------------------------------------------------------------------


def test_the_total_is_the_main_loss_and_the_weighted_losses_of_the_heads(
    images: Tensor, labels: Tensor
) -> None:
    supervised = make(weight=Constant(0.6, share=[1, 2]))
    out = supervised(images)
    loss = supervised.loss(out, labels, progress=0.5)
    known = labels >= 0
    main, a, b = (
        functional.cross_entropy(logits[known], labels[known]) for logits in (out.main, *out.aux.values())
    )
    assert loss.total.item() == pytest.approx((main + 0.2 * a + 0.4 * b).item())
    assert loss.terms["a/labels"].item() == pytest.approx(a.item())
    assert loss.stats["a/weight"] == pytest.approx(0.2)
    assert loss.stats["b/loss"].item() == pytest.approx(b.item())
    right = (out.aux["a"].argmax(1) == labels)[known].float().mean()
    assert loss.stats["a/accuracy"].item() == pytest.approx(right.item())
    assert loss.scalars()["main/labels"] == pytest.approx(main.item())


def test_the_schedule_follows_the_progress_alone(images: Tensor, labels: Tensor) -> None:
    supervised = make(weight=CosineDecay(0.4, end=0.7))
    out = supervised(images)
    weights = [
        supervised.loss(out, labels, progress=progress).stats["a/weight"] for progress in (0, 0, 0.35, 0.7, 1)
    ]
    assert weights == pytest.approx([0.2, 0.2, 0.1, 0, 0])
    with pytest.raises(SupervisionError, match=r"progress=1\.5 is not in 0\.\.1"):
        supervised.loss(out, labels, progress=1.5)


def test_strip_gives_the_same_object_back_without_a_hook(images: Tensor) -> None:
    model = Net()
    supervised = make(model)
    assert any(module._forward_hooks for module in model.modules())
    assert supervised.strip() is model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert supervised.strip() is model
    with pytest.raises(SupervisionError, match="heads were stripped off"):
        supervised(images)


def test_a_linear_head_starts_from_given_weights(images: Tensor) -> None:
    supervised = make(head={"a": Linear(), "*": "bottleneck"}).eval()
    weight, bias = torch.randn(5, 8), torch.randn(5)
    supervised.set_linear("a", weight.numpy(), bias.numpy())
    features = supervised.base.a(images).mean((2, 3))
    torch.testing.assert_close(supervised(images).aux["a"], features @ weight.T + bias)
    with pytest.raises(SupervisionError, match=r"takes \[5, 8\], received \[5, 7\]"):
        supervised.set_linear("a", weight[:, :7], bias)
    with pytest.raises(SupervisionError, match="'b' is not one linear layer"):
        supervised.set_linear("b", weight, bias)
    with pytest.raises(SupervisionError, match=r"no head at 'c': there are a, b"):
        supervised.set_linear("c", weight, bias)
