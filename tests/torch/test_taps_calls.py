"""Which calls a tap takes, and when the pass stops."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from spile.errors import AddressError, CaptureError
from spile.torch.taps import Tap


class Twice(nn.Module):
    """One ReLU that runs two times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 6)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))))


class Loop(nn.Module):
    """Runs ``cell`` as often as the first number of the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0].item())):
            x = self.cell(x)
        return self.head(x)


class Chain(nn.Sequential):
    """Counts how often each of its layers really ran."""

    def __init__(self, count: int = 5) -> None:
        super().__init__(*(nn.Linear(4, 4) for _ in range(count)))
        self.ran = [0] * count
        for index, layer in enumerate(self):
            layer.register_forward_pre_hook(lambda *_, index=index: self.count(index))

    def count(self, index: int) -> None:
        self.ran[index] += 1


def test_control_flow_on_values() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.up(x) if x.sum().item() > 0 else self.down(x)

    model = Branching()
    nn.init.eye_(model.stem.weight)
    nn.init.zeros_(model.stem.bias)
    positive = torch.rand(2, 4)
    tap = Tap(model, ["stem", "up"], pool=None, example=positive)
    assert torch.equal(tap(positive)["up"], model.up(model.stem(positive)))
    with pytest.raises(CaptureError, match=r"did not run in this batch.*up"):
        tap(-positive)
    assert torch.equal(tap(2 * positive)["up"], model.up(model.stem(2 * positive)))  # nothing stale
    with pytest.raises(AddressError, match="'down' never runs"):
        Tap(model, "down", example=positive)


def test_a_layer_that_runs_more_often_in_a_later_batch() -> None:
    model = Loop()
    once, twice = torch.ones(2, 3), torch.full((2, 3), 2.0)
    tap = Tap(model, "cell", example=once)
    assert torch.equal(tap(once)["cell"], model.cell(once))
    with pytest.raises(CaptureError, match=r"cell ran again in this batch.*'cell#0'"):
        tap(twice)
    with pytest.raises(CaptureError, match="cell ran again"):
        tap.with_output(twice)
    assert torch.equal(tap(once)["cell"], model.cell(once))
    assert torch.equal(Tap(model, "cell#0", example=once)(twice)["cell#0"], model.cell(twice))


def test_a_layer_that_runs_less_often_in_a_later_batch() -> None:
    model, twice = Loop(), torch.full((2, 3), 2.0)
    tap = Tap(model, ["cell#0", "cell#1"], example=twice)
    assert torch.equal(tap(twice)["cell#1"], model.cell(model.cell(twice)))
    with pytest.raises(CaptureError, match=r"did not run in this batch, .*: cell#1$"):
        tap(torch.ones(2, 3))


def test_a_model_that_swallows_errors_does_not_swallow_ours() -> None:
    class Swallowing(Loop):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception:
                return x

    tap = Tap(Swallowing(), "cell", example=torch.ones(2, 3))
    with pytest.raises(CaptureError, match="ran again"):
        tap(torch.full((2, 3), 2.0))


def test_one_relu_used_twice() -> None:
    model, x = Twice(), torch.randn(2, 4)
    with pytest.raises(AddressError, match=r"runs 2 times.*relu#0, relu#1"):
        Tap(model, "relu", example=x)
    acts = Tap(model, "type:ReLU", example=x)(x)
    first = model.a(x).relu()
    assert list(acts) == ["relu#0", "relu#1"]
    assert torch.equal(acts["relu#0"], first)
    assert torch.equal(acts["relu#1"], model.b(first).relu())


def test_weight_shared_encoder() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.encoder(left) - self.encoder(right)

    model, left, right = Siamese(), torch.randn(2, 4), torch.randn(2, 4)
    tap = Tap(model, ["encoder#0", "encoder.0#1", "encoder.1#1"], example=(left, right))
    acts = tap(left, right)
    assert torch.equal(acts["encoder#0"], model.encoder(left))
    assert torch.equal(acts["encoder.0#1"], model.encoder[0](right))
    assert torch.equal(acts["encoder.1#1"], model.encoder(right))


def test_both_names_of_a_tied_layer() -> None:
    model = nn.Module()
    model.first = nn.Linear(4, 4)
    model.second = model.first
    model.forward = lambda x: model.second(x)  # type: ignore[method-assign]
    x = torch.randn(2, 4)
    acts = Tap(model, ["second", "first"], example=x)(x)
    assert torch.equal(acts["second"], model.first(x))
    assert torch.equal(acts["first"], model.first(x))


def test_layers_that_are_not_called_as_layers_never_run() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear.forward(self.attention(x, x, x)[0])

    x = torch.randn(2, 3, 8)
    for place in ("attention.out_proj", "linear"):
        with pytest.raises(AddressError, match=f"{place!r} never runs as a layer"):
            Tap(Direct(), place, example=x)
    assert [p.name for p in Tap(Direct(), "all", pool=None, example=x).points] == [
        "attention:0",
        "attention:1",
    ]


# --- early stop -----------------------------------------------------------------------------------


def test_computing_stops_at_the_deepest_point() -> None:
    model, x = Chain(), torch.randn(2, 4)
    tap = Tap(model, ["2", "0", "1@in"], example=x)
    assert model.ran == [0] * 5
    tap(x)
    assert model.ran == [1, 1, 1, 0, 0]
    Tap(model, "2@in", example=x)(x)
    assert model.ran == [2, 2, 1, 0, 0]


def test_the_stop_passes_through_a_models_own_error_handling() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = Chain()
            self.handled = 0

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.chain(x)
            except Exception:
                self.handled += 1
                raise

    model, x = Careful(), torch.randn(2, 4)
    acts = Tap(model, "chain.1", example=x)(x)
    assert torch.equal(acts["chain.1"], model.chain[1](model.chain[0](x)))
    assert model.handled == 0
    assert model.chain.ran[3] == 0


def test_with_output_gives_the_models_own_output() -> None:
    image = torch.randn(2, 3, 32, 32)
    model = torchvision.models.resnet18(weights=None).eval()
    output, acts = Tap(model, "layer1", example=image).with_output(image)
    assert torch.equal(output, model(image))
    assert acts["layer1"].shape == (2, 64)


def test_control_flow_on_values_is_run_to_its_end_unless_the_call_is_named() -> None:
    model, x = Loop(), torch.ones(2, 3)
    ran: list[int] = []
    model.head.register_forward_pre_hook(lambda *_: ran.append(1))
    Tap(model, "cell", example=x)(x)
    assert ran == [1]
    Tap(model, "cell#0", example=x)(x)
    assert ran == [1]
