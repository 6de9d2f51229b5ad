"""Saving what a tap needs of a network: all of that, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from spile.torch.backend import load_reached
from spile.torch.deploying import save_reached
from spile.torch.taps import Tap


class Functional(nn.Module):
    """Uses the weights of `late` before the tap, as functions; `late` itself runs past it, `idle` never."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Linear(4, 4)
        self.late = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(self.first(x), self.late.weight.t() * 2, self.late.bias)
        return self.head(self.late(self.body(x)))


class Attention(nn.Module):
    """`out_proj` never runs as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.attention(x, x, x, need_weights=False)[0]))


def saved(net: nn.Module, at: str, x: Tensor, folder: Path) -> set[str]:
    """Save, load into a network of other weights, compare; returns the saved keys."""
    tap = Tap(net, at, pool=None, example=x)
    save_reached(tap, x, folder / "w.safetensors")
    other = type(net)().eval()
    load_reached(other, folder / "w.safetensors")
    torch.testing.assert_close(Tap(other, at, pool=None, example=x)(x)[at], tap(x)[at], rtol=0, atol=0)
    return set(load_file(folder / "w.safetensors"))


def test_weights_used_without_running_their_layer_are_saved(tmp_path: Path) -> None:
    keys = saved(Functional().eval(), "body", torch.randn(3, 4), tmp_path)

    assert keys == {"first.weight", "first.bias", "body.weight", "body.bias", "late.weight", "late.bias"}


@pytest.mark.parametrize("at", ["attention:0", "norm"])
def test_attention_keeps_its_output_projection(tmp_path: Path, at: str) -> None:
    keys = saved(Attention().eval(), at, torch.randn(2, 5, 8), tmp_path)

    assert {"attention.out_proj.weight", "attention.out_proj.bias"} <= keys
    assert ("norm.weight" in keys) == (at == "norm")
    assert "head.weight" not in keys


def test_input_side_needs_no_weights_of_the_layer(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.randn(2, 3)

    save_reached(Tap(net, "1@in", example=x), x, tmp_path / "w.safetensors")

    assert set(load_file(tmp_path / "w.safetensors")) == {"0.weight", "0.bias"}


def test_hugging_face_configuration_is_laid_beside(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    x = torch.randn(2, 3, 16, 16)
    tap = Tap(ViTModel(config).eval(), 0, pool="mean", example=x)

    save_reached(tap, x, tmp_path / "w.safetensors")

    assert ViTConfig.from_pretrained(tmp_path).num_hidden_layers == 3
    assert not any("layer.2." in key or "layers.2." in key for key in load_file(tmp_path / "w.safetensors"))
