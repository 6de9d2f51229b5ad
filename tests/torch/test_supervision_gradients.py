"""What flows back into the model, and how training machinery gets along with heads."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import spile
from spile.errors import SupervisionError
from spile.supervision import (
    Constant,
    CosineDecay,
    Labels,
    PseudoLabels,
    SelfDistill,
    SmoothedLabels,
    Teacher,
    Uncertainty,
)
from spile.torch.supervision import Supervised


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(16, 5)
        self.factor = 1.0
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            x = checkpoint(self.a, x, use_reentrant=False)
            x = checkpoint(self.b, x, use_reentrant=False)
        else:
            x = self.b(self.a(x) * self.factor)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def make(model: nn.Module | None = None, **options: Any) -> Supervised:
    given: dict[str, Any] = {"example": (2, 3, 8, 8), "num_classes": 5, "taps": ["a", "b"]} | options
    return spile.supervise(model if model is not None else Net(), **given)  # type: ignore[return-value]


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


# --- full, scaled, stopped ------------------------------------------------------------------------


def test_a_stopped_head_leaks_exactly_nothing_into_the_model(images: Tensor) -> None:
    supervised = make(gradient="stop")
    loss = supervised.loss(supervised(images), LABELS, progress=0.0)
    heads = loss.terms["a/labels"] + loss.terms["b/labels"]
    assert all(not gradient.any() for gradient in gradients(heads, supervised.base))
    assert all(
        gradient.any() for gradient in gradients(heads, supervised.heads["a"])
    )  # it learns all the same


@pytest.mark.parametrize("factor", [0.5, 0.25, 2.0])
def test_a_scaled_head_gives_the_model_exactly_its_share(images: Tensor, factor: float) -> None:
    full, scaled = make(copy.deepcopy(net := Net())), make(net, gradient=factor)
    scaled.load_state_dict(full.state_dict())
    terms = [s.loss(s(images), LABELS, progress=0.0).terms for s in (full, scaled)]
    for head in ("a/labels", "b/labels"):
        ours, theirs = gradients(terms[1][head], scaled.base), gradients(terms[0][head], full.base)
        assert all(torch.equal(one, factor * two) for one, two in zip(ours, theirs, strict=True))
        assert any(one.any() for one in ours)
        heads = [gradients(t[head], s.heads) for t, s in zip(terms, (full, scaled), strict=True)]  # type: ignore[arg-type]
        assert all(torch.equal(one, two) for one, two in zip(*heads, strict=True))


@pytest.mark.parametrize("source", ["main", "ensemble"])
def test_the_teacher_in_the_model_itself_gets_no_gradient_of_the_distillation(
    images: Tensor, source: Any
) -> None:
    supervised = make(targets=SelfDistill(source=source, hint=1.0), taps=["a"])
    loss = supervised.loss(supervised(images), LABELS, progress=0.0)
    distilled = loss.terms["a/self_distill"] + loss.terms["a/self_distill_hint"]
    behind = [*gradients(distilled, supervised.base.b), *gradients(distilled, supervised.base.fc)]  # type: ignore[arg-type]
    assert all(not gradient.any() for gradient in behind)
    assert all(gradient.any() for gradient in gradients(distilled, supervised.base.a))  # type: ignore[arg-type]


def test_a_teacher_model_gets_no_gradient_keeps_its_mode_and_is_no_part_of_the_result(images: Tensor) -> None:
    teacher = Net()
    targets = [Teacher(model=teacher), Teacher(model=teacher, at="b", kind="hint")]
    supervised = make(targets=targets, taps=["b"])
    teacher_state = copy.deepcopy(teacher.state_dict())
    supervised.loss(supervised(images), LABELS, progress=0.0).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.training
    assert all(torch.equal(teacher_state[k], v) for k, v in teacher.state_dict().items())
    ours = {id(p) for p in supervised.parameters()}
    assert not any(id(p) in ours for p in teacher.parameters())


# --- precision ------------------------------------------------------------------------------------


def test_losses_are_computed_in_float32_and_stay_finite_on_huge_half_precision_features(
    images: Tensor,
) -> None:
    model = Net()
    supervised = make(
        model,
        head="linear",
        targets=[
            Labels(),
            SelfDistill(hint=1.0),
            *(Teacher(model=Net(), at={"a": "a", "b": "b"}, kind=kind) for kind in ("hint", "attention")),
        ],
    ).half()
    model.factor = 1e3
    for reference in supervised.terms.references:
        reference.__dict__["_teacher"].model.half()
    out = supervised(1e1 * images.half())
    assert out.main.dtype == torch.float16
    assert out.aux["b"].abs().max() > 30  # such that exp() and squares overflow in half precision
    loss = supervised.loss(out, LABELS, progress=0.0)
    for name, term in loss.terms.items():
        assert term.dtype == torch.float32, name
        assert term.isfinite(), name
    loss.total.backward()
    heads = [p.grad for p in supervised.heads.parameters()]
    assert all(g is not None and g.isfinite().all() for g in heads)


@pytest.mark.parametrize("head", ["linear", "bottleneck", "mlp"])
def test_autocast(images: Tensor, head: str) -> None:
    supervised = make(head=head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = supervised(images)
        loss = supervised.loss(out, LABELS, progress=0.0)
    assert out.aux["a"].dtype == torch.bfloat16
    assert {term.dtype for term in (loss.total, *loss.terms.values())} == {torch.float32}
    loss.total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in supervised.parameters())


@pytest.mark.parametrize("head", ["linear", "bottleneck", "mlp"])
def test_heads_learn_from_a_batch_of_one_and_from_a_map_of_one_cell(head: str) -> None:
    supervised = make(head=head, example=(1, 3, 2, 2))
    out = supervised(torch.randn(1, 3, 2, 2))
    supervised.loss(out, torch.tensor([1]), progress=0.0).total.backward()
    weights = [p for p in supervised.heads.parameters() if p.ndim > 1]
    assert all(p.grad is not None and p.grad.any() for p in weights)


def test_one_sample_alone_gets_the_logits_that_it_gets_in_a_batch(images: Tensor) -> None:
    for head in ("linear", "bottleneck", "mlp"):
        supervised = make(head=head)
        together, alone = supervised(images).aux, supervised(images[:1]).aux
        for name in together:
            torch.testing.assert_close(together[name][:1], alone[name])


# --- checkpointing, accumulation, schedules -------------------------------------------------------


@pytest.mark.parametrize("taps", [["a", "b"], ["a.0", "b.0"]], ids=["outside", "inside"])
def test_gradient_checkpointing_runs_a_head_once_and_gives_the_same_gradients(
    images: Tensor, taps: list[str]
) -> None:
    """Inside of what is checkpointed a layer runs a second time, when gradients are computed."""
    model = Net()
    supervised = make(model, taps=taps)
    runs: list[str] = []
    for name, head in supervised.heads.items():
        head.output.register_forward_hook(lambda *_, name=name: runs.append(name))
    found = []
    for model.checkpointed in (False, True):
        runs.clear()
        loss = supervised.loss(supervised(images), LABELS, progress=0.0)
        found.append(gradients(loss.total, supervised))
        assert runs == taps
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)


def test_accumulated_gradients_are_those_of_the_whole_batch_and_weights_do_not_move(images: Tensor) -> None:
    supervised = make(weight=CosineDecay(0.4))
    whole = gradients(supervised.loss(supervised(images), LABELS, progress=0.3).total, supervised)
    for part in (slice(0, 3), slice(3, 6)):
        loss = supervised.loss(supervised(images[part]), LABELS[part], progress=0.3)
        (loss.total / 2).backward()
    for expected, parameter in zip(whole, supervised.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_resuming_goes_on_as_if_never_stopped(images: Tensor) -> None:
    options: dict[str, Any] = {
        "targets": [
            Labels(),
            SmoothedLabels(samples=6),
            PseudoLabels(source="ema", threshold="adaptive", decay=0.5),
        ],
        "weight": Uncertainty(),
    }

    def steps(supervised: Supervised, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            labels = torch.where(torch.arange(6) < 3, LABELS, -1)
            loss = supervised.loss(supervised(images), labels, progress=number / 6, ids=torch.arange(6))
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()

    straight = make(net := Net(), **options)
    steps(straight, optimizer := torch.optim.SGD(straight.parameters(), 0.1, momentum=0.9), range(3))
    state = copy.deepcopy([straight.state_dict(), optimizer.state_dict()])
    # A checkpoint is made between the step and the next call of the loss, which moves the average.
    resumed = make(copy.deepcopy(net), **options)
    resumed.load_state_dict(state[0])
    other = torch.optim.SGD(resumed.parameters(), 0.1, momentum=0.9)
    other.load_state_dict(state[1])
    steps(straight, optimizer, range(3, 6))
    steps(resumed, other, range(3, 6))
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


# --- the averaged model ---------------------------------------------------------------------------


def test_the_averaged_model_moves_once_a_step_however_often_the_loss_is_called(images: Tensor) -> None:
    supervised = make(targets=PseudoLabels(source="ema", decay=0.9))
    average: nn.Module = supervised.terms.references[0].ema.model  # type: ignore[union-attr,assignment]
    assert not any(p.requires_grad for p in average.parameters())
    optimizer = torch.optim.SGD(supervised.parameters(), 0.5)
    before = supervised.base.fc.weight.detach().clone()  # type: ignore[union-attr,operator]
    labels = torch.full((6,), -1)
    for _ in range(3):
        supervised.loss(supervised(images), LABELS, progress=0.0).total.backward()
    assert torch.equal(average.fc.weight, before)  # type: ignore[union-attr,arg-type]
    optimizer.step()
    expected = 0.9 * before + 0.1 * supervised.base.fc.weight.detach()  # type: ignore[union-attr,operator]
    for _ in range(3):
        supervised.loss(supervised(images), labels, progress=0.0)
    torch.testing.assert_close(average.fc.weight, expected)  # type: ignore[union-attr]
    assert not average.training


def test_evaluation_moves_no_average(images: Tensor) -> None:
    supervised = make(targets=[SmoothedLabels(samples=6), PseudoLabels(threshold="adaptive")])
    before = copy.deepcopy(supervised.terms.state_dict())
    labels = torch.full((6,), -1)
    supervised.eval()
    supervised.loss(supervised(images), labels, progress=0.0, ids=torch.arange(6))
    with torch.no_grad():
        supervised.train()
        supervised.loss(supervised(images), labels, progress=0.0, ids=torch.arange(6))
    assert all(torch.equal(before[k], v) for k, v in supervised.terms.state_dict().items())
    supervised.loss(supervised(images), labels, progress=0.0, ids=torch.arange(6))
    assert not all(torch.equal(before[k], v) for k, v in supervised.terms.state_dict().items())


# --- heads in the optimiser -----------------------------------------------------------------------


def train(supervised: Supervised, optimizer: torch.optim.Optimizer, images: Tensor, steps: int = 3) -> None:
    for _ in range(steps):
        supervised.loss(supervised(images), LABELS, progress=0.0).total.backward()
        optimizer.step()


@pytest.mark.parametrize(
    "optimiser", [torch.optim.SGD, torch.optim.AdamW], ids=lambda optimiser: optimiser.__name__
)
def test_an_optimiser_made_before_the_heads_is_noticed_at_the_second_step(
    images: Tensor, optimiser: Callable[..., torch.optim.Optimizer]
) -> None:
    model = Net()
    early = optimiser(model.parameters(), lr=0.01)
    supervised = make(model)
    with pytest.warns(UserWarning, match=r"none of its heads.*AdamW\(supervised\.parameters\(\)\)") as caught:
        train(supervised, early, images)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"not in the optimiser: heads\.a\..*spile\.supervise"):
        supervised.check_optimizer(early)


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimiser_with_the_heads_is_silent(images: Tensor, fused: bool) -> None:
    supervised = make()
    optimizer = torch.optim.AdamW(supervised.parameters(), fused=fused)
    train(supervised, optimizer, images)
    supervised.check_optimizer(optimizer)


def test_nobody_is_warned_where_heads_have_nothing_to_learn(images: Tensor) -> None:
    unweighted = make(weight=Constant(0.0))
    train(unweighted, torch.optim.SGD(unweighted.base.parameters(), 0.1), images)
    frozen = make()
    frozen.heads.requires_grad_(False)
    train(frozen, torch.optim.SGD(frozen.base.parameters(), 0.1), images)
    loaded = make()
    loaded.loss(loaded(images), LABELS, progress=0.0)
    loaded.load_state_dict(copy.deepcopy(loaded.state_dict()))
    loaded.loss(loaded(images), LABELS, progress=0.0)


# --- weight 0, several processes ------------------------------------------------------------------


def test_a_head_with_weight_0_changes_nothing_be_its_loss_infinite(images: Tensor) -> None:
    supervised = make(weight=Constant(0.0))
    with torch.no_grad():
        supervised.heads["a"].output.bias.fill_(float("inf"))  # type: ignore[union-attr]
    loss = supervised.loss(supervised(images), LABELS, progress=0.0)
    assert not loss.terms["a/labels"].isfinite()
    assert loss.total.isfinite()
    loss.total.backward()
    assert all(p.grad is None for p in supervised.heads.parameters())


def test_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(rank), str(tmp_path)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for found in results:
        assert found["weight 0"] == "heads have a gradient of exactly 0"
        assert found["gradient"] == pytest.approx(found["of the whole batch"], rel=1e-4)
        assert found["rows seen"] == [1] * 8
        assert found["maps kept"] == list("01234567")
    assert results[0]["averages"] == results[1]["averages"]
    assert results[0]["thresholds"] == results[1]["thresholds"]


def test_a_wrapped_model_is_refused_with_what_to_wrap() -> None:
    with pytest.raises(SupervisionError, match=r"wrapped \(DataParallel\).*wrap or compile the result"):
        make(nn.DataParallel(Net()))


def test_warnings_are_the_only_side_effect_of_a_loss(images: Tensor) -> None:
    """The output holds all there is: two passes under way do not disturb each other."""
    supervised = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = supervised(images), supervised(2 * images)
        expected = supervised.loss(supervised(images), LABELS, progress=0.0)
        assert torch.equal(supervised.loss(first, LABELS, progress=0.0).total, expected.total)
        assert not torch.equal(supervised.loss(second, LABELS, progress=0.0).total, expected.total)


def test_copies_train_apart(images: Tensor) -> None:
    supervised = make()
    other = copy.deepcopy(supervised)
    assert other.strip() is other.base is not supervised.base
    assert torch.equal(supervised(images).main, other.base(images))
    train(supervised, torch.optim.SGD(supervised.parameters(), 0.1), images, steps=1)
    assert not torch.equal(supervised(images).main, other.base(images))
