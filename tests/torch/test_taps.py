"""What a tap gives: the right tensor for every address, on every batch, or an error."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from spile.errors import AddressError, CaptureError, ModelError, PoolError
from spile.torch import capturing
from spile.torch.taps import Tap


class ConvInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class ResidualInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += self.second(x)
        return x


class Twice(nn.Module):
    """One ReLU that runs two times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 6)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


# --- values ---------------------------------------------------------------------------------------


def test_in_place_activation_does_not_reach_what_was_tapped(image: Tensor) -> None:
    model = ConvInPlace().eval()
    acts = Tap(model, ["conv", "norm", "relu"], pool=None, example=image)(image)
    conv = functional.conv2d(image, model.conv.weight, model.conv.bias)
    assert torch.equal(acts["conv"], conv)
    assert torch.equal(acts["norm"], model.norm(conv))
    assert (acts["norm"] < 0).any()
    assert torch.equal(acts["relu"], model.norm(conv).relu())


def test_residual_in_place_does_not_reach_what_was_tapped() -> None:
    model, x = ResidualInPlace(), torch.randn(2, 4)
    acts = Tap(model, ["first", "second@in", "@out"], pool=None, example=x)(x)
    first = model.first(x)
    assert torch.equal(acts["first"], first)
    assert torch.equal(acts["second@in"], first)
    assert torch.equal(acts["@out"], first + model.second(first))


@pytest.mark.parametrize("pool", ["cls", "last", "flatten", None, lambda x: x[:, 0]])
def test_what_is_kept_is_no_view_of_what_the_model_goes_on_with(pool: Any) -> None:
    class Overwriting(nn.Module):
        num_prefix_tokens = 1

        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x).zero_()

    model, x = Overwriting(), torch.randn(2, 5, 4)
    tap = Tap(model, "encode", pool=pool, example=x)
    _, acts = tap.with_output(x)
    assert acts["encode"].abs().min() > 0
    assert tap.verify(x).largest_difference == 0


def test_a_pool_function_cannot_change_the_model() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)
    expected = model(x)
    output, _ = Tap(model, "0", pool=lambda value: value.zero_(), example=x).with_output(x)
    assert torch.equal(output, expected)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", pytest.param("densenet121", marks=pytest.mark.zoo)]
)
def test_every_layer_at_once_equals_the_reference(name: str, image: Tensor) -> None:
    model = getattr(torchvision.models, name)(weights=None)
    tap = Tap(model, "all", pool=None, example=image)
    found = tap.verify(image)
    assert found.points == len(tap.points) > 50
    assert found.largest_difference == 0


def test_parent_and_child_on_convnext(image: Tensor) -> None:
    model = timm.create_model("convnext_atto", depths=(1, 2, 1, 1), dims=(8, 16, 24, 32)).eval()
    places = [
        "stages.1",
        "stages.1.blocks.0",
        "stages.1.blocks.1",
        "stages.1.blocks.1.norm",
        "stages.1.blocks.1.mlp",
    ]
    tap = Tap(model, places, pool=None, example=image)
    acts = tap(image)
    assert tap.verify(image).largest_difference == 0
    assert torch.equal(acts["stages.1"], acts["stages.1.blocks.1"])
    block = model.stages[1].blocks[1]
    assert torch.equal(block(acts["stages.1.blocks.0"]), acts["stages.1"])
    assert torch.equal(block.mlp(acts["stages.1.blocks.1.norm"]), acts["stages.1.blocks.1.mlp"])


def test_layers_whose_names_end_in_numbers_are_told_apart(image: Tensor) -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    norms = ["ln_1", "ln_2"]
    layers = model.encoder.layers
    for i, name in enumerate(norms):
        for j, layer in enumerate(layers):
            nn.init.constant_(getattr(layer, name).weight, 1 + i + 2 * j)
    places = [
        f"encoder.layers.encoder_layer_{j}.{name}{side}"
        for j in (0, 1)
        for name in norms
        for side in ("", "@in")
    ]
    acts = Tap(model, places, pool=None, example=image)(image)
    for i, name in enumerate(norms):
        for j in (0, 1):
            place = f"encoder.layers.encoder_layer_{j}.{name}"
            normalized = functional.layer_norm(acts[f"{place}@in"], (16,), eps=1e-6) * (1 + i + 2 * j)
            assert torch.allclose(acts[place], normalized, atol=1e-5), place


def test_verify_sees_a_lying_hook(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap(ConvInPlace(), ["conv", "norm", "relu"], pool=None, example=image)
    monkeypatch.setattr(capturing, "pooled", lambda tensor, *_, **__: tensor)
    with pytest.raises(CaptureError, match=r"1 of 3 points differ from the reference: norm: off by \d"):
        tap.verify(image)


def test_verify_sees_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 4)
    tap = Tap(Twice(), ["relu#0"], pool=None, example=x)
    monkeypatch.setattr(tap._observers[0], "points", (replace(tap.points[0], call=1),))
    with pytest.raises(CaptureError, match=r"relu#0: \[2, 6\] float32 instead of \[2, 5\] float32"):
        tap.verify(x)


# --- nested outputs and inputs --------------------------------------------------------------------


Pair = namedtuple("Pair", "left right")


@dataclass
class Result:
    logits: Tensor
    extra: dict[str, Tensor]


@pytest.mark.parametrize(
    ("wrap", "items"),
    [
        (lambda a, b: (a, (b, None)), ("0", "1.0")),
        (lambda a, b: [a, {"deep": [b]}], ("0", "1.deep.0")),
        (lambda a, b: {"a": a, "b": b, "n": 3}, ("a", "b")),
        (lambda a, b: Pair(a, b), ("0", "1")),
        (lambda a, b: Result(a, {"b": b}), ("logits", "extra.b")),
        (
            lambda a, b: BaseModelOutput(last_hidden_state=a, hidden_states=(b,)),
            ("last_hidden_state", "hidden_states.0"),
        ),
    ],
    ids=["tuple", "list", "dict", "namedtuple", "dataclass", "ModelOutput"],
)
def test_nested_outputs(wrap: Any, items: tuple[str, str]) -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x + 1, x * 2)

    model, x = nn.Sequential(nn.Linear(4, 4), Inner(), nn.Identity()), torch.randn(2, 4)
    acts = Tap(model, "type:Inner", pool=None, example=x)(x)
    assert list(acts) == [f"1:{item}" for item in items]
    assert torch.equal(acts[f"1:{items[0]}"], model[0](x) + 1)
    assert torch.equal(acts[f"1:{items[1]}"], model[0](x) * 2)
    one = Tap(model, f"1:{items[1]}", pool=None, example=x)(x)
    assert torch.equal(one[f"1:{items[1]}"], model[0](x) * 2)
    with pytest.raises(AddressError, match=f"is not one tensor; say which item: 1:{items[0]}, 1:{items[1]}"):
        Tap(model, "1", pool=None, example=x)


def test_lstm() -> None:
    model, x = nn.Sequential(nn.LSTM(4, 5, num_layers=2, batch_first=True)), torch.randn(3, 6, 4)
    acts = Tap(
        model, ["0:0", "0:1.0", "0:1.1"], pool={"0:0": "last", "0:1.0": None, "0:1.1": "flatten"}, example=x
    )(x)
    output, (hidden, cell) = model[0](x)
    assert torch.equal(acts["0:0"], output[:, -1])
    assert torch.equal(acts["0:1.0"], hidden.transpose(0, 1))
    assert acts["0:1.1"].shape == (3, 10)
    assert set(acts["0:1.1"][1].tolist()) == set(cell[:, 1].flatten().tolist())


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Bilinear(4, 4, 3)

    def forward(
        self, x: Tensor, scale: Tensor, *, double: bool = False, attention_mask: Tensor | None = None
    ) -> Tensor:
        return self.inner(x, input2=scale) * (2 if double else 1)


def test_keyword_inputs() -> None:
    model, x, scale = Keywords(), torch.randn(2, 4), torch.randn(2, 4)
    given = {"x": x, "scale": scale}
    tap = Tap(model, {"in": "inner@in:input2", "out": "inner", "all": "@out"}, pool=None, example=given)
    for acts in (tap(given), tap(**given), tap(x, scale), tap(x, scale=scale, double=True)):
        assert torch.equal(acts["in"], scale)
        assert torch.equal(acts["out"], model.inner(x, scale))
    assert torch.equal(tap(x, scale=scale, double=True)["all"], 2 * model(x, scale))
    first_batch = Tap(model, "inner", pool=None)
    assert torch.equal(first_batch(x, scale=scale, double=True)["inner"], model.inner(x, scale))


def test_a_model_that_takes_one_dict() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["pixels"])

    model, batch = Takes(), {"pixels": torch.randn(2, 4)}
    assert torch.equal(Tap(model, "inner", example=(batch,))(batch)["inner"], model(batch))
    assert torch.equal(Tap(model, "inner")(batch)["inner"], model(batch))


def test_examples_and_inputs_of_every_kind() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)).double(), np.random.default_rng(0).normal(size=(2, 4))
    assert torch.equal(Tap(model, "0", example=(1, 4))(x)["0"], model(torch.from_numpy(x)))
    model = model.float()
    expected = model(torch.tensor(x, dtype=torch.float32))
    read_only = np.broadcast_to(x[:, :1], (2, 4))
    for example in (
        (1, 4),
        torch.Size([1, 4]),
        x,
        torch.zeros(1, 4),
        (torch.zeros(3, 4),),
        {"input": x},
        None,
    ):
        acts = Tap(model, "0", example=example)(x)
        assert torch.equal(acts["0"], expected)
    assert Tap(model, "0", example=(1, 4))(read_only)["0"].shape == (2, 3)


def test_the_first_batch_serves_as_example() -> None:
    model, x = Twice(), torch.randn(2, 4)
    tap = Tap(model, "type:ReLU")
    with pytest.raises(CaptureError, match="learnt from the first batch"):
        _ = tap.points
    with torch.inference_mode():
        assert list(tap(x)) == ["relu#0", "relu#1"]
    assert [p.shape for p in tap.points] == [(5,), (6,)]
    output, acts = Tap(model, "a").with_output(x)
    assert torch.equal(output, model(x))
    assert torch.equal(acts["a"], model.a(x))


def test_a_wrong_example_says_so() -> None:
    with pytest.raises(ModelError, match=r"does not take two samples like the example \(\[2, 3\] float32\)"):
        Tap(nn.Linear(4, 4), "@out", example=(1, 3))


def test_a_shape_that_changes_its_number_of_axes() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if x.shape[1] > 1 else x.squeeze(1))

    tap = Tap(Squeezing(), "inner", pool=None, example=(2, 3, 4))
    with pytest.raises(CaptureError, match=r"inner has the shape \[2, 4\] in this batch, but had 3 axes"):
        tap(torch.zeros(2, 1, 4))


# --- gradients ------------------------------------------------------------------------------------


def test_gradients_flow_and_equal_those_of_a_plain_forward_pass() -> None:
    model, x = Twice(), torch.randn(3, 4, requires_grad=True)
    acts = Tap(model, ["a", "relu#1"], example=x)(x)
    loss = acts["a"].pow(2).sum() + acts["relu#1"].sin().sum()
    found = torch.autograd.grad(loss, [x, *model.parameters()])
    a = model.a(x)
    expected = torch.autograd.grad(
        a.pow(2).sum() + model.b(a.relu()).relu().sin().sum(), [x, *model.parameters()]
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_are_none(context: Any) -> None:
    model, x = Twice(), torch.randn(2, 4)
    tap = Tap(model, "b", example=x)
    with context():
        assert not tap(x)["b"].requires_grad
    assert tap(x)["b"].requires_grad


# --- the object -----------------------------------------------------------------------------------


def test_activations_are_read_only_and_in_order() -> None:
    x = torch.randn(2, 4)
    with torch.no_grad():
        acts = Tap(Twice(), {"deep": "b", "early": "a"}, example=x)(x)
    assert list(acts) == ["deep", "early"]
    with pytest.raises(TypeError, match="read-only"):
        acts["deep"] = x
    assert all(torch.equal(copy.deepcopy(acts)[name], value) for name, value in acts.items())
    assert type(pickle.loads(pickle.dumps(acts))) is type(acts)
    assert repr(acts) == "Activations({'deep': (2, 6), 'early': (2, 5)})"


def test_a_closed_tap_says_so() -> None:
    x = torch.randn(2, 4)
    with Tap(Twice(), "a", example=x) as tap:
        tap(x)
    for use in (tap, tap.with_output, tap.verify):
        with pytest.raises(CaptureError, match="closed"):
            use(x)
    tap.close()


def test_a_pool_that_does_not_fit_is_refused_before_any_batch() -> None:
    with pytest.raises(PoolError, match="pool 'cls' is for tokens"):
        Tap(ConvInPlace(), "conv", pool="cls", example=(1, 3, 8, 8))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown mode 'train'"):
        Tap(Twice(), "a", mode="train")  # type: ignore[arg-type]
