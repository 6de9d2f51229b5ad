"""The dry pass: what ran, with which axes, at what cost; on fake tensors wherever that is enough."""

from __future__ import annotations

import time
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from spile.errors import ModelError
from spile.observation import Call, Item, Observation
from spile.torch import layouts, observing
from spile.torch.observing import observe
from spile.torch.taps import Tap

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2}


def outputs(observation: Observation, path: str) -> tuple[Item, ...]:
    return observation.by_path[path][0].outputs


def of(observation: Observation, path: str) -> str | None:
    return outputs(observation, path)[0].layout


# --- what ran -------------------------------------------------------------------------------------


def test_calls_are_recorded_in_order_with_their_tensors() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.idle = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"first": self.inner(x), "pair": (self.inner(x), None)}

    found = observe(Twice(), (1, 4))
    assert [(c.path, c.index) for c in found.calls] == [
        ("inner.0", 0), ("inner.1", 0), ("inner", 0), ("inner.0", 1), ("inner.1", 1), ("inner", 1), ("", 0)
    ]  # fmt: skip
    assert sorted(c.start for c in found.calls) + [c.end for c in found.calls] != []
    assert all(c.start < c.end for c in found.calls)
    assert [item.key for item in found.root.outputs] == ["first", "pair.0"]
    assert found.root.outputs[0].identity == found.calls[2].outputs[0].identity
    assert set(found.layers) == {"", "inner", "inner.0", "inner.1", "idle"}
    assert found.layers["inner"].container and found.layers["inner.1"].leaf
    assert found.layers["inner.0"].types == ("Linear",)


def test_cost_of_reaching_a_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 2))
    found = observe(model, (7, 3, 8, 8))
    conv, linear, last = 36 * 4 * 27, 4 * 36 * 5, 10
    assert [(c.macs_before, c.macs) for c in found.calls[:-1]] == [
        (0, conv), (conv, conv), (conv, conv + linear), (conv + linear, conv + linear + last)
    ]  # fmt: skip
    assert [c.params for c in found.calls[:-1]] == [108, 108, 108 + 725, 108 + 725 + 12]
    assert found.by_path["2"][0].params_before == 108


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_cost_is_the_same_in_every_mode(context: Any) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    with context():
        found = observe(model, (1, 3, 32, 32))
    # what FlopCounterMode of torch 2.15 counts, halved
    assert found.root.macs == pytest.approx(3_140_736, rel=0.05)
    assert not found.value_dependent


# --- without touching real data -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["resnet18", "efficientnet_lite0", "convnext_atto", pytest.param("mobilevit_xxs", marks=pytest.mark.zoo)],
)
def test_ordinary_models_need_no_real_tensors(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    start = time.perf_counter()
    found = observe(model, (1, 3, 224, 224))
    assert not found.value_dependent
    assert outputs(found, "")[0].shape == (2, 1000)
    assert time.perf_counter() - start < 20


def test_text_models_with_a_mask_need_no_real_tensors() -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20
    )
    found = observe(
        BertModel(config).eval(), {k: torch.ones(2, 7).long() for k in ("input_ids", "attention_mask")}
    )
    assert found.text
    assert not found.value_dependent
    assert of(found, "encoder.layer.0") == "BTC"


def test_what_fake_tensors_cannot_do_runs_on_real_ones() -> None:
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.from_numpy(x.detach().numpy() * 2))

    model, x = Numpy(), torch.randn(2, 4)
    found = observe(model, x)
    assert found.value_dependent
    assert outputs(found, "inner")[0].shape == (2, 3)
    assert torch.equal(Tap(model, "inner", example=x)(x)["inner"], model(x))


def test_a_model_that_swallows_the_error_of_fake_tensors() -> None:
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.usual, self.emergency = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.usual(x) if x.sum().item() < 1e9 else x
            except Exception:
                return self.emergency(x)

    found = observe(Trying(), (2, 4))
    assert "usual" in found.by_path
    assert "emergency" not in found.by_path


def test_autocast_keeps_no_fake_weights() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not observe(model, x).value_dependent
        assert type(model(x)) is Tensor


def test_operations_that_look_at_gradients_are_no_obstacle() -> None:
    class Expanding(nn.Module):
        """A parameter's view, made without gradients, goes into a layer."""

        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.token.expand(len(x), -1, -1))

    assert not observe(Expanding(), (2, 4)).value_dependent


def test_without_an_example_or_with_a_wrong_one() -> None:
    with pytest.raises(ModelError, match=r"needs an example.*example=\(1, 3, 224, 224\)"):
        observe(nn.Linear(4, 4), None)
    with pytest.raises(
        ModelError, match=r"does not take two samples like the example \(\[2, 5\] float32\): RuntimeError"
    ):
        observe(nn.Linear(4, 4), (1, 5))


def test_inputs_that_are_not_batched_stay_as_they_are() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor, table: Tensor, *, scale: float = 1.0) -> Tensor:
            return self.inner(x + table) * scale

    found = observe(Rotary(), {"x": torch.randn(3, 5, 4), "table": torch.randn(5, 4), "scale": 2.0})
    assert outputs(found, "inner")[0].shape == (2, 5, 4)
    assert of(found, "inner") == "BTC"


# --- axes -----------------------------------------------------------------------------------------


class Kernel(nn.Module):
    """A convolution that is no layer of a known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x, self.weight)


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), (1, 3, 16, 16), "BCYX"),
        (lambda: nn.Sequential(nn.Conv1d(3, 8, 3)), (1, 3, 16), "BCT"),
        (lambda: nn.Sequential(nn.Conv3d(3, 8, 3)), (1, 3, 8, 8, 8), "BCZYX"),
        (lambda: nn.Sequential(nn.Linear(3, 8)), (1, 16, 3), "BTC"),
        (lambda: nn.Sequential(nn.Linear(3, 8)), (1, 3), "BC"),
        (lambda: nn.Sequential(nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 8, 3, 4)), (1, 64), "BCT"),
        (lambda: nn.Sequential(nn.Identity()), (1, 16, 3), "BTC"),
        (lambda: nn.Sequential(Kernel(), nn.Identity()), (1, 3, 16), "BCT"),
        (lambda: nn.Sequential(nn.LSTM(3, 8, batch_first=True)), (1, 16, 3), "BTC"),
    ],
)
def test_axes_of_simple_layers(make: Any, shape: tuple[int, ...], expected: str | None) -> None:
    model = make()
    last = str(len(model) - 1)
    assert of(observe(model, shape), last) == expected


def test_an_axis_that_mixes_samples_is_none() -> None:
    class Similarity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.mean = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x @ x.T) + self.mean(x.mean(0)).sum()

    found = observe(Similarity(), (2, 4))
    assert of(found, "inner") is None
    assert of(found, "mean") is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {**VIT, "depth": 2}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4},
        ),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16)}),
        ("resnet18", {}),
        ("efficientnet_lite0", {}),
        pytest.param("pvt_v2_b0", {"depths": (1, 1, 1, 1)}, marks=pytest.mark.zoo),
        pytest.param("edgenext_xx_small", {"depths": (1, 1, 1, 1)}, marks=pytest.mark.zoo),
    ],
)  # fmt: skip
def test_axes_told_by_the_layers_before_are_those_that_are_measured(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = (
        {"dynamic_img_size": True} if "vit" in name else {"strict_img_size": False} if "swin" in name else {}
    )
    measured = observe(
        timm.create_model(name, **options, **dynamic), (1, 3, 64, 64) if "vit" not in name else (1, 3, 32, 32)
    )
    monkeypatch.setattr(observing, "_enlarged", lambda _: [])
    told = observe(
        timm.create_model(name, **options), (1, 3, 64, 64) if "vit" not in name else (1, 3, 32, 32)
    )
    compared = 0
    for mine, theirs in zip(told.calls, measured.calls, strict=True):
        for a, b in zip(mine.outputs, theirs.outputs, strict=True):
            if mine.path == theirs.path and a.shape == b.shape and "?" not in f"{a.layout}{b.layout}":
                assert a.layout == b.layout, (mine.path, a.shape)
                assert (a.prefix_tokens or 0) == (b.prefix_tokens or 0), (mine.path, a.shape)
                compared += 1
    assert compared > 0.7 * sum(len(c.outputs) for c in measured.calls)


def test_attention_heads_are_no_picture() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **VIT, depth=1, qk_norm=True)
    found = observe(model, (1, 3, 32, 32))
    assert outputs(found, "blocks.0.attn.q_norm")[0].shape == (2, 2, 17, 8)
    assert of(found, "blocks.0.attn.q_norm") == "B???"
    assert of(found, "blocks.0") == "BTC"


def test_layer_norms_that_move_channels() -> None:
    model = torchvision.models.convnext.LayerNorm2d(16)
    for size in (8, 16):
        call = Call("norm", 0, 0, 1, (), (Item(None, (2, 16, size, size), "float32", 1),), 0, 0, 0, 0)
        assert layouts.channels_of(model, call) == layouts.Channels(first=True, count=16, ndim=4)
    call = Call("norm", 0, 0, 1, (), (Item(None, (2, 16, 8, 8), "float32", 1),), 0, 0, 0, 0)
    assert layouts.channels_of(nn.LayerNorm(16), call) == layouts.Channels(first=True, count=16, ndim=4)
    assert layouts.channels_of(nn.LayerNorm(8), call) == layouts.Channels(first=False, count=8, ndim=4)
    assert layouts.channels_of(nn.ReLU(), call) is None


# --- wrappers and copies --------------------------------------------------------------------------


def test_names_of_wrapped_models_are_those_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert observe(nn.DataParallel(model), (1, 4)).layers["0"].aliases == ("module.0",)
    compiled = observe(torch.compile(nn.DataParallel(model)), (1, 4))
    assert compiled.layers["0"].aliases == ("_orig_mod.module.0",)
    assert [c.path for c in compiled.calls] == ["0", "1", ""]


def test_the_users_hooks_see_no_fake_tensors() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    seen: list[Any] = []
    model[0].register_forward_hook(lambda *args: seen.append(args))
    model[0].register_forward_pre_hook(lambda *args: seen.append(args))
    observe(model, (1, 4))
    assert seen == []
