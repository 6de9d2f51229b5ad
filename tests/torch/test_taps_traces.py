"""What a tap leaves behind: nothing, also after an error, beside other taps, and in other threads."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from spile.errors import CaptureError, ModelError
from spile.torch.taps import Tap


class Restless(nn.Module):
    """Everything that changes when a model runs: batch norm, dropout, a random layer, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(4, 4, 1)
        self.last.eval()
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x)))
        x = x + torch.rand(())
        if self.fail:
            raise ValueError("out of order")
        return self.last(x)


def state(model: nn.Module) -> dict[str, Any]:
    """All that a tap must leave as it was."""
    return {
        "tensors": {k: v.numpy().tobytes() for k, v in model.state_dict().items()},
        "identities": [(k, id(v)) for k, v in [*model.named_parameters(), *model.named_buffers()]],
        "versions": [t._version for t in [*model.parameters(), *model.buffers()]],
        "grads": [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "random": torch.get_rng_state().numpy().tobytes(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "keys": [sorted(m.__dict__) for m in model.modules()],
    }


def hooks(model: nn.Module) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs",
             "_forward_pre_hooks_with_kwargs")  # fmt: skip
    return [list(getattr(m, kind).items()) for m in model.modules() for kind in kinds]


def assert_same(before: Any, after: Any) -> None:
    assert before.keys() == after.keys()
    for key in before:
        assert before[key] == after[key], key


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def model(image: Tensor) -> Restless:
    model = Restless()
    model(image).sum().backward()
    assert model.training
    return model


@pytest.mark.parametrize("use", ["call", "with_output", "verify", "first batch", "gradients"])
def test_nothing_of_the_model_changes(model: Restless, image: Tensor, use: str) -> None:
    before, hooks_before = state(model), hooks(model)
    tap = Tap(model, "all", pool=None, example=None if use == "first batch" else image)
    if use == "with_output":
        tap.with_output(image)
    elif use == "verify":
        assert tap.verify(image).largest_difference == 0
    elif use == "gradients":
        torch.autograd.grad(tap(image)["norm"].sum(), model.conv.weight)
    else:
        tap(image)
    assert_same(before, state(model))
    tap.close()
    assert hooks(model) == hooks_before
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_values_are_those_of_evaluation(model: Restless, image: Tensor) -> None:
    acts = Tap(model, ["norm", "drop"], pool=None, example=image)(image)
    reference = copy.deepcopy(model).eval()
    assert torch.equal(acts["norm"], reference.norm(reference.conv(image)))
    assert torch.equal(acts["drop"], acts["norm"])


@pytest.mark.parametrize("use", ["call", "with_output"])
@pytest.mark.parametrize("where", ["forward", "hook"])
def test_nothing_changes_after_an_error(model: Restless, image: Tensor, use: str, where: str) -> None:
    tap = Tap(model, ["conv", "last"], example=image)

    def broken(*_: Any) -> None:
        raise ValueError("out of order")

    handle = model.drop.register_forward_hook(broken) if where == "hook" else None
    model.fail = where == "forward"
    before = state(model)
    with pytest.raises(ValueError, match="out of order"):
        tap(image) if use == "call" else tap.with_output(image)
    assert_same(before, state(model))
    model.fail = False
    if handle is not None:
        handle.remove()
    assert tap.verify(image).largest_difference == 0  # and the tap goes on


def test_nothing_changes_after_an_error_in_the_dry_pass(model: Restless, image: Tensor) -> None:
    model.fail = True
    before, hooks_before = state(model), hooks(model)
    with pytest.raises(ModelError, match="out of order"):
        Tap(model, "conv", example=image)
    assert_same(before, state(model))
    assert hooks(model) == hooks_before
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_as_is_runs_the_model_as_it_was_left(model: Restless, image: Tensor) -> None:
    tap = Tap(model, ["norm", "drop"], pool=None, example=image, mode="as_is")
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    first = tap(image)
    second = tap(image)
    torch.manual_seed(3)
    for acts in (first, second):  # with its own dropout in each batch, and moving statistics
        norm = twin.norm(twin.conv(image))
        assert torch.equal(acts["norm"], norm)
        assert torch.equal(acts["drop"], twin.drop(norm))
    assert not torch.equal(first["drop"], second["drop"])
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)
    before = state(model)
    assert tap.verify(image).largest_difference == 0  # verifying is no training step
    after = state(model)
    assert_same({k: before[k] for k in ("tensors", "random")}, {k: after[k] for k in ("tensors", "random")})


def test_hooks_go_with_the_tap(model: Restless, image: Tensor) -> None:
    before = hooks(model)
    tap = Tap(model, "all", example=image, pool=None)
    assert hooks(model) != before
    del tap
    gc.collect()
    assert hooks(model) == before


def test_the_users_own_hooks_stay_and_act(model: Restless, image: Tensor) -> None:
    model.eval()
    early = model.conv.register_forward_hook(lambda m, a, out: out + 1)
    tap = Tap(model, ["conv", "norm@in", "norm"], pool=None, example=image)
    late = model.conv.register_forward_hook(lambda m, a, out: out * 2)
    model.norm.register_forward_pre_hook(lambda m, a: (a[0] * 3,))
    before = hooks(model)
    acts = tap(image)
    conv = nn.functional.conv2d(image, model.conv.weight, model.conv.bias)
    assert torch.equal(acts["conv"], (conv + 1) * 2)
    assert torch.equal(acts["norm@in"], (conv + 1) * 2)  # what the caller gave
    assert tap.verify(image).largest_difference == 0
    assert sorted(map(len, before)) == sorted(map(len, hooks(model)))
    tap.close()
    assert early.id in model.conv._forward_hooks
    assert late.id in model.conv._forward_hooks
    assert len(model.conv._forward_hooks) == 2


# --- beside others --------------------------------------------------------------------------------


def test_two_taps_on_one_model(model: Restless, image: Tensor) -> None:
    first = Tap(model, "conv", pool=None, example=image)
    second = Tap(model, ["last", "conv@in"], pool="avg", example=image)
    alone = {"first": first(image), "second": second(image)}
    assert list(first(image)) == ["conv"]
    assert torch.equal(second(image)["last"], alone["second"]["last"])
    first.close()
    assert torch.equal(second(image)["last"], alone["second"]["last"])
    assert len(model.conv._forward_hooks) == 0
    assert len(model.conv._forward_pre_hooks) == 1


def test_a_tap_inside_a_tapped_model(image: Tensor) -> None:
    class Student(nn.Module):
        def __init__(self, teacher: Tap) -> None:
            super().__init__()
            self.teacher = teacher
            self.own = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x) + self.teacher(x)["norm"]

    teacher = Tap(Restless(), "norm", pool=None, example=image)
    student = Student(teacher)
    tap = Tap(student, ["own", "teacher.model.conv", "@out"], pool=None, example=image)
    acts = tap(image)
    assert torch.equal(acts["own"], student.own(image))
    assert torch.equal(acts["teacher.model.conv"], teacher.model.conv(image))
    assert torch.equal(acts["@out"], acts["own"] + teacher(image)["norm"])
    assert tap.verify(image).largest_difference == 0


def test_a_tap_that_the_model_calls_on_itself(image: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    tap = Tap(model, "1", example=image)
    model[0].register_forward_hook(lambda *_: tap(image) and None)
    with pytest.raises(CaptureError, match="already running"):
        tap(image)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_that_share_a_tap_and_threads_with_their_own(image: Tensor) -> None:
    model = Restless()
    before = state(model)
    shared = Tap(model, ["conv", "norm"], pool=None, example=image)
    reference = copy.deepcopy(model).eval()
    gate = threading.Barrier(4)

    def work(index: int) -> None:
        gate.wait()
        for step in range(15):
            # hooks come and go while the others run
            tap = shared if index % 2 else Tap(model, ["norm", "conv"], pool=None, example=image)
            mine = image + index + step
            acts = tap(mine)
            assert torch.equal(acts["conv"], reference.conv(mine))
            assert torch.equal(acts["norm"], reference.norm(acts["conv"]))

    in_threads(4, work)
    after = state(model)
    before.pop("random"), after.pop("random")
    assert_same(before, after)
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_threads_that_share_a_first_batch(image: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    tap = Tap(model, ["0", "1"], pool=None)
    gate = threading.Barrier(4)

    def work(index: int) -> None:
        gate.wait()
        assert torch.equal(tap(image + index)["1"], model(image + index))

    in_threads(4, work)
    assert len(model[0]._forward_hooks) == 1
    tap.close()
    assert not model[0]._forward_hooks


def test_a_plain_pass_in_another_thread_is_not_captured(image: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    tap = Tap(model, ["0", "1"], pool=None, example=image)
    other: list[threading.Thread] = []

    def elsewhere(*_: Any) -> None:
        if not other:
            other.append(threading.Thread(target=lambda: model(image + 1)))
            other[0].start()
            other[0].join()

    model[0].register_forward_pre_hook(elsewhere)
    acts = tap(image)
    assert other
    assert torch.equal(acts["0"], nn.functional.conv2d(image, model[0].weight, model[0].bias))


# --- models with a life of their own --------------------------------------------------------------


class Caching(nn.Module):
    """Keeps tensors on itself between passes, as position encodings are often kept."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.table: Tensor | None = None
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(4.0)
        self.seen.append(x)
        return self.inner(x + self.table)


class Uncopyable(Caching):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


@pytest.mark.parametrize("kind", [Caching, Uncopyable])
def test_fake_tensors_stay_out_of_the_model(kind: type[Caching]) -> None:
    model, x = kind(), torch.randn(2, 4)
    tap = Tap(model, "inner", example=x)
    kept = [model.table, *model.seen]
    assert not any(isinstance(t, FakeTensor) for t in kept)
    if kind is Caching:
        assert kept == [None]
    else:
        assert model.count == 0
    assert torch.equal(tap(x)["inner"], model.inner(x + torch.arange(4.0)))


def test_a_copy_that_calls_the_original_is_not_believed() -> None:
    model = nn.Module()
    model.inner, model.other = nn.Linear(4, 4), nn.Linear(4, 4)
    model.forward = lambda x: model.other(model.inner(x))  # type: ignore[method-assign]
    x = torch.randn(2, 4)
    acts = Tap(model, ["inner", "other"], example=x)(x)
    assert torch.equal(acts["other"], model.other(model.inner(x)))


def test_a_layer_without_a_shape_is_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"parameter '0.weight' has no shape yet"):
        Tap(model, "0", example=(1, 4))
    assert isinstance(model[0], nn.LazyLinear)


def test_memory_does_not_grow() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, padding=1)
    )
    x = torch.randn(2, 3, 64, 64)
    tap = Tap(model, "all", pool=None, example=x)  # about 6 MB of activations, each with a graph
    for _ in range(5):
        tap(x)
    process, gc_was_on = psutil.Process(), gc.isenabled()
    gc.disable()  # nothing may wait for the collector
    try:
        before = process.memory_info().rss
        for _ in range(200):
            tap(x)
        grown = process.memory_info().rss - before
    finally:
        if gc_was_on:
            gc.enable()
    assert grown < 30e6


class Counting(nn.Module):
    """Writes into its buffers in evaluation too, in place or anew."""

    def __init__(self, anew: bool, from_pass: int = 0) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(1))
        self.anew, self.quiet_passes = anew, from_pass

    def forward(self, x: Tensor) -> Tensor:
        self.quiet_passes -= 1
        if self.quiet_passes < 0:
            if self.anew:
                self.passes = self.passes + 1
            else:
                self.passes += 1
        return x + self.passes


@pytest.mark.parametrize("anew", [False, True])
def test_buffers_that_a_model_writes_in_evaluation_are_put_back(anew: bool) -> None:
    model = nn.Sequential(Counting(anew)).eval()
    tap = Tap(model, "0")
    for _ in range(3):
        assert tap(torch.zeros(2, 3))["0"].unique().tolist() == [1]
        assert model[0].passes.item() == 0


def test_of_buffers_that_are_written_late_only_the_first_write_stays() -> None:
    model = nn.Sequential(Counting(anew=False, from_pass=3)).eval()
    tap = Tap(model, "0")
    before = model[0].quiet_passes
    found = [tap(torch.zeros(2, 3))["0"].max().item() for _ in range(6)]
    assert model[0].passes.item() <= 1 and found[-1] == found[-2] <= 2, (before, found)
