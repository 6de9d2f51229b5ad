"""Pools against NumPy written by hand, and on the models whose axes and tokens are easily confused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    GPT2Config,
    GPT2Model,
    ViTConfig,
    ViTModel,
)

from spile.errors import PoolError
from spile.pool import parse
from spile.torch.pooling import pooled
from spile.torch.taps import Tap

RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(2, 3, 4, 6)).astype(np.float32)  # samples, channels, height, width
TOKENS = RNG.normal(size=(2, 5, 3)).astype(np.float32)  # samples, tokens, channels


def pool(x: np.ndarray[Any, Any], name: Any, layout: str | None, **options: Any) -> np.ndarray[Any, Any]:
    return pooled(torch.from_numpy(np.ascontiguousarray(x)), parse(name), layout, **options).numpy()


def assert_close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["BCYX", "BYXC", "CBYX", "YXBC"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("avg", MAP.mean((2, 3))),
        ("max", MAP.max((2, 3))),
        ("gem", (MAP.clip(1e-6) ** 3).mean((2, 3)) ** (1 / 3)),
        ("gem:2", (MAP.clip(1e-6) ** 2).mean((2, 3)) ** (1 / 2)),
        ("grid:1", MAP.mean((2, 3))),
        ("grid:2", MAP.reshape(2, 3, 2, 2, 2, 3).mean((3, 5)).reshape(2, -1)),
        ("flatten", MAP.reshape(2, -1)),
    ],
)
def test_pools_of_maps(name: str, expected: np.ndarray[Any, Any], layout: str) -> None:
    x = MAP.transpose(["BCYX".index(axis) for axis in layout])
    assert_close(pool(x, name, layout), expected)


@pytest.mark.parametrize(("layout", "axes"), [("BCX", (2,)), ("BCZYX", (2, 3, 4))])
def test_pools_of_signals_and_volumes(layout: str, axes: tuple[int, ...]) -> None:
    x = RNG.normal(size=(2, 3, *(4,) * len(axes))).astype(np.float32)
    assert_close(pool(x, "avg", layout), x.mean(axes))
    assert pool(x, "grid:2", layout).shape == (2, 3 * 2 ** len(axes))
    assert_close(pool(x, "grid:4", layout), x.reshape(2, -1))


@pytest.mark.parametrize("layout", ["BTC", "TBC", "BCT"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cls", TOKENS[:, 0]),
        ("last", TOKENS[:, -1]),
        ("mean", TOKENS[:, 2:].mean(1)),
        ("cls+mean", np.concatenate([TOKENS[:, 0], TOKENS[:, 2:].mean(1)], 1)),
        ("flatten", TOKENS.reshape(2, -1)),
    ],
)
def test_pools_of_tokens(name: str, expected: np.ndarray[Any, Any], layout: str) -> None:
    x = TOKENS.transpose(["BTC".index(axis) for axis in layout])
    assert_close(pool(x, name, layout, prefix_tokens=2), expected)


@pytest.mark.parametrize(
    ("mask", "first", "last"),
    [
        ([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], [0, 0], [2, 4]),
        ([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], [2, 1], [4, 2]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_padding_is_left_out(
    mask: list[list[int]], first: list[int], last: list[int], dtype: torch.dtype
) -> None:
    real = np.array(mask, dtype=bool)
    x = np.where(real[..., None], TOKENS, np.nan)  # whatever stands in the padding
    mean = np.stack([sample[keep].mean(0) for sample, keep in zip(TOKENS, real, strict=True)])
    options = {"mask": torch.tensor(mask).to(dtype)}
    assert_close(pool(x, "mean", "BTC", **options), mean)
    assert_close(pool(x, "cls", "BTC", **options), TOKENS[[0, 1], first])
    assert_close(pool(x, "last", "BTC", **options), TOKENS[[0, 1], last])
    assert_close(pool(x, "cls+mean", "BTC", **options), np.concatenate([TOKENS[[0, 1], first], mean], 1))


def test_a_mask_of_other_tokens_is_not_theirs() -> None:
    assert_close(pool(TOKENS, "mean", "BTC", mask=torch.zeros(2, 7)), TOKENS.mean(1))


@pytest.mark.parametrize("name", [None, "flatten"])
def test_vectors_and_numbers(name: Any) -> None:
    x = TOKENS[:, 0]
    assert_close(pool(x, name, "BC"), x)
    assert pool(x[:, 0], name, "B").shape == ((2,) if name is None else (2, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reduced_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 1, 64, 64), 60.0, dtype=dtype)  # the sum and the cube overflow float16
    for name in ("avg", "max", "gem", "grid:1"):
        found = pooled(x, parse(name), "BCYX")
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.full((1, 1), 60.0))
    fine = torch.tensor([2048.0, 1.0, 1.0, 1.0], dtype=dtype).reshape(1, 4, 1)
    assert pooled(fine, parse("mean"), "BTC").item() == pytest.approx(
        (fine.float().sum() / 4).item(), abs=1e-4
    )
    for name in (None, "flatten"):
        assert pooled(x, parse(name), "BCYX").dtype == dtype


def test_whole_numbers_are_averaged() -> None:
    found = pooled(torch.arange(4).reshape(1, 1, 2, 2), parse("avg"), "BCYX")
    assert found.tolist() == [[1.5]]


@pytest.mark.parametrize(
    ("name", "layout", "shape"),
    [
        (None, None, (2, 3)),
        (None, "BC", (2, 3)),
        ("flatten", "BC", (2, 3)),
        ("flatten", "BCYX", (2, 3, 1, 1)),
        ("flatten", "B", (2,)),
        ("avg", "BCYX", (2, 3, 1, 1)),
        ("max", "BCYX", (2, 3, 1, 1)),
        ("grid:1", "BCYX", (2, 3, 1, 1)),
        ("grid:2", "BCYX", (2, 3, 2, 2)),
        ("cls", "BTC", (2, 4, 3)),
        ("last", "BTC", (2, 4, 3)),
        ("mean", "BTC", (2, 1, 3)),
        (lambda x: x, "BTC", (2, 4, 3)),
        (lambda x: x[:, 0], None, (2, 4, 3)),
    ],
)
def test_no_pool_gives_a_view(name: Any, layout: str | None, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    found = pooled(x, parse(name), layout)
    expected = found.clone()
    x.zero_()
    assert torch.equal(found, expected)


def test_functions() -> None:
    seen: list[tuple[int, ...]] = []

    def norms(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x.norm(dim=1)

    x = TOKENS.transpose(1, 0, 2)  # tokens first
    assert_close(pool(x, norms, "TBC"), np.linalg.norm(TOKENS, axis=1))
    assert seen == [(2, 5, 3)]
    with pytest.raises(PoolError, match=r"gave a tuple: a pool returns one tensor"):
        pool(x, lambda x: (x,), "TBC")
    with pytest.raises(PoolError, match=r"made \[5\] of \[2, 5, 3\]: the samples must stay the first axis"):
        pool(x, lambda x: x.sum((0, 2)), "TBC")


# --- on models ------------------------------------------------------------------------------------


@pytest.mark.zoo
def test_channels_last_and_first_are_told_apart() -> None:
    x = torch.randn(2, 3, 64, 64)
    swin = torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [2, 2], num_classes=3).eval()
    convnext = timm.create_model("convnext_atto", depths=(1,) * 4, dims=(16,) * 4, conv_mlp=False).eval()
    convnext2d = timm.create_model("convnext_atto", depths=(1,) * 4, dims=(16,) * 4).eval()
    # 16 channels on a map of 16 x 16: the sizes tell nothing
    places = {
        swin: {"features.1": True, "features.0.1": True, "features.1.0.norm1": True},
        convnext: {
            "stem.1": False,
            "stages.0": False,
            "stages.0.blocks.0.conv_dw": False,
            "stages.0.blocks.0.norm": True,
            "stages.0.blocks.0.mlp": True,
        },
        convnext2d: {"stages.0.blocks.0.norm": False, "stages.0.blocks.0.mlp": False},
    }
    by_hand = {
        "avg": lambda first: first.mean((2, 3)),
        "max": lambda first: first.max((2, 3)),
        "grid:2": lambda first: first.reshape(2, 16, 2, 8, 2, 8).mean((3, 5)).reshape(2, -1),
        "flatten": lambda first: first.reshape(2, -1),
        "gem": lambda first: (first.clip(1e-6) ** 3).mean((2, 3)) ** (1 / 3),
    }
    with torch.no_grad():
        for model, last_of in places.items():
            whole = Tap(model, list(last_of), pool=None, example=x)(x)
            for name, expected in by_hand.items():
                acts = Tap(model, list(last_of), pool=name, example=x)(x)
                for place, last in last_of.items():
                    assert sorted(whole[place].shape) == [2, 16, 16, 16]
                    first = (whole[place].permute(0, 3, 1, 2) if last else whole[place]).numpy()
                    np.testing.assert_allclose(
                        acts[place].numpy(), expected(first), rtol=1e-4, atol=1e-5, err_msg=f"{place} {name}"
                    )


HF_IMAGE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8, "num_register_tokens": 4,
}  # fmt: skip
SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 3}


@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("vit_small_patch14_reg4_dinov2", {}, 5),
        ("vit_small_patch14_reg4_dinov2", {"dynamic_img_size": True}, 5),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, 1),
        ("deit_tiny_distilled_patch16_224", {}, 2),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_prefix_tokens_are_no_patches(name: str, options: dict[str, Any], prefix: int, told: bool) -> None:
    model = timm.create_model(name, **{**SMALL, **options}).eval()
    if not told:  # a model that does not say how many
        inner, model = model, nn.Module()
        model.inner = inner
        model.forward = lambda x: model.inner(x)  # type: ignore[method-assign]
    at = "" if told else "inner."
    x = torch.randn(2, 3, 32, 32)
    places = [f"{at}{place}" for place in ("blocks.0", "blocks.1.mlp.fc1", "norm", "patch_drop")]
    with torch.no_grad():
        whole = Tap(model, places, pool=None, example=x)(x)
        means = Tap(model, places, pool="mean", example=x)(x)
        for place in places:
            assert whole[place].shape[1] == 16 + prefix
            torch.testing.assert_close(means[place], whole[place][:, prefix:].mean(1))
        if prefix:
            cls = Tap(model, places[0], pool="cls+mean", example=x)(x)[places[0]]
            expected = [whole[places[0]][:, 0], whole[places[0]][:, prefix:].mean(1)]
            torch.testing.assert_close(cls, torch.cat(expected, 1))
        else:
            with pytest.raises(PoolError, match="has no class token"):
                Tap(model, places[0], pool="cls", example=x)


@pytest.mark.parametrize(
    ("make", "place", "prefix"),
    [
        (lambda: ViTModel(ViTConfig(**HF_IMAGE)), "layers.1", 1),
        (lambda: CLIPVisionModel(CLIPVisionConfig(**HF_IMAGE)), "encoder.layers.1", 1),
        (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**HF_IMAGE)), "encoder.layer.1", 5),
    ],
    ids=["vit", "clip", "dinov2 with registers"],
)
def test_prefix_tokens_of_hugging_face_models(make: Any, place: str, prefix: int) -> None:
    model, x = make().eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}
    with torch.no_grad():
        whole = Tap(model, place, pool=None, example=x)(x)[place]
        found = Tap(model, place, pool="cls+mean", example=x)(x)[place]
    assert whole.shape == (2, 16 + prefix, 16)
    torch.testing.assert_close(found, torch.cat([whole[:, 0], whole[:, prefix:].mean(1)], 1))


def test_patches_before_the_class_token_are_all_patches() -> None:
    model, x = timm.create_model("vit_tiny_patch16_224", **SMALL).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        patches = model.patch_embed(x)
        mean = Tap(model, "patch_embed", pool="mean", example=x)(x)["patch_embed"]
    assert patches.shape == (2, 16, 16)  # as many patches as channels
    torch.testing.assert_close(mean, patches.mean(1))
    with pytest.raises(PoolError, match="has no class token"):
        Tap(model, "patch_embed", pool="cls", example=x)


def test_a_class_token_that_comes_late() -> None:
    model = timm.create_model("cait_xxs24_224", img_size=32, depth=2, embed_dim=16, num_heads=2).eval()
    x = torch.randn(2, 3, 32, 32)
    tap = Tap(model, ["blocks.1"], pool=None, example=x)
    with torch.no_grad():
        whole = tap(x)["blocks.1"]
        mean = Tap(model, "blocks.1", pool="mean", example=x)(x)["blocks.1"]
    assert whole.shape[1] == 4
    torch.testing.assert_close(mean, whole.mean(1))
    with pytest.raises(PoolError, match="has no class token"):
        Tap(model, "blocks.1", pool="cls", example=x)


@pytest.fixture(scope="module")
def texts() -> list[Tensor]:
    return [torch.tensor([5, 9, 3, 7, 2]), torch.tensor([8, 4, 6])]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("mean", "keywords"),
        ("last", "keywords"),
        ("cls", "keywords"),
        ("cls+mean", "keywords"),
        ("mean", "dict"),
        ("mean", "positions"),
    ],
)
def test_padded_text_equals_text_alone(texts: list[Tensor], name: str, left: bool, call: str) -> None:
    small = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 1}
    bert = BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **small)
    ).eval()
    gpt = GPT2Model(GPT2Config(n_embd=16, n_layer=2, n_head=2, **small)).eval()
    pad = (2, 0) if left else (0, 2)
    ids = torch.stack([texts[0], nn.functional.pad(texts[1], pad)])
    mask = torch.stack(
        [torch.ones(5, dtype=torch.long), nn.functional.pad(torch.ones(3, dtype=torch.long), pad)]
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        for model, place in ((bert, "encoder.layer.1"), (gpt, "h.1")):
            item = place if model is bert else "h.1"
            tap = Tap(model, item, pool=name, example={"input_ids": ids, "attention_mask": mask})
            if call == "positions" and model is bert:
                together = tap(ids, mask, None, positions)[item]
            elif call == "dict":
                together = tap({"input_ids": ids, "attention_mask": mask, "position_ids": positions})[item]
            else:
                together = tap(input_ids=ids, attention_mask=mask, position_ids=positions)[item]
            for row, text in zip(together, texts, strict=True):
                alone = tap(input_ids=text[None])[item][0]
                torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-5)


def test_automatic_pools() -> None:
    x = torch.randn(2, 3, 32, 32)
    model = torchvision.models.resnet18(weights=None).eval()
    tap = Tap(model, ["layer1", "fc", "avgpool"], example=x)
    assert [str(p.pool) for p in tap.points] == ["avg", "flatten", "avg"]
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL)
    tap = Tap(vit, ["blocks.0", "patch_embed.proj", "head"], example=x)
    assert [str(p.pool) for p in tap.points] == ["cls+mean", "avg", "flatten"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_registers_are_not_taken_for_a_class_token(wrapped: bool) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", **SMALL, class_token=False, reg_tokens=2, global_pool="avg"
    )
    at, x = "blocks.0", torch.randn(2, 3, 32, 32)
    if wrapped:
        model, at = nn.Sequential(model), "0.blocks.0"
    tap = Tap(model.eval(), at, example=x)
    assert [str(p.pool) for p in tap.points] == ["mean"]
    with torch.no_grad():
        whole = Tap(model, at, pool=None, example=x)(x)[at]
        torch.testing.assert_close(tap(x)[at], whole[:, 2:].mean(1))
    with pytest.raises(PoolError, match="has no class token"):
        Tap(model, at, pool="cls", example=x)


def test_complex_activations_keep_both_parts_or_are_refused() -> None:
    x = torch.complex(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5))
    assert torch.equal(pooled(x, parse("avg"), "BCYX"), x.mean((2, 3)))
    with pytest.raises(PoolError, match=r"max is not for complex numbers: use pool=lambda x: x\.abs\(\)"):
        pooled(x, parse("max"), "BCYX")


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_quantised_activations_are_pooled_as_the_numbers_they_stand_for() -> None:
    x = torch.quantize_per_tensor(torch.randn(2, 3, 4, 4), 0.1, 0, torch.qint8)
    assert torch.allclose(pooled(x, parse("avg"), "BCYX"), x.dequantize().mean((2, 3)))
