"""Guides on PyTorch: the model untouched, the images as it needs them, maps that mean something."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import spile
from spile.augmentation import reductions
from spile.errors import AugmentationError
from spile.torch import inputs

IMAGENET = spile.ImagePreprocessing(crop=(64, 64))
SHAPE = (1, 3, 64, 64)


class Net(nn.Module):
    """As a ResNet is called, but small."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 8, 8, 8)
        for number, (before, after) in enumerate(pairwise(widths), 1):
            layers = [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            setattr(self, f"layer{number}", nn.Sequential(*layers))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reduce", ["mean", "max", "l2", "pca", "gradcam"])
def test_the_model_is_as_it_was(model: nn.Module, reduce: str) -> None:
    """A guide in train mode, its eval() never undone, its .grad polluted: all have been seen."""
    model.train()
    model.layer1.eval()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    guide = spile.guide(model, "layer2", reduce=reduce, preprocessing=IMAGENET, example=SHAPE)
    first = guide(images())
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    alone = guide(images()[1:2])  # batch norm would mix samples in train mode
    np.testing.assert_allclose(alone.values[0], first.values[1], atol=5e-3)


def test_a_guide_is_in_evaluation_mode_even_after_an_exception(model: nn.Module) -> None:
    model.train()
    guide = spile.guide(model, "layer2", reduce="gradcam", given="ready", example=SHAPE)
    with pytest.raises(AugmentationError, match=r"classes 0..9 of the guide, .* lie in 5000..5000"):
        guide(images(1), np.array([5000]))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules() if module is not model.layer2)


def test_the_guide_normalises_for_itself(model: nn.Module) -> None:
    """Whatever form the same pixels come in, the guide sees the same."""
    pixels = (images() * 255).round().to(torch.uint8)
    unit = pixels.float() / 255
    normal = (unit - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.2
    was = spile.ImagePreprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    options: dict[str, Any] = {"preprocessing": IMAGENET, "example": SHAPE}
    expected = spile.guide(model, "layer2", **options).ready(pixels)
    reference = (unit - torch.tensor(IMAGENET.mean).view(3, 1, 1)) / torch.tensor(IMAGENET.std).view(3, 1, 1)
    torch.testing.assert_close(expected, reference)
    for given, form in (((0, 1), unit), ((0, 255), pixels.float()), ((-1, 1), unit * 2 - 1), (was, normal)):
        found = spile.guide(model, "layer2", given=given, **options).ready(form)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_numbers_that_are_not_what_was_declared_are_refused(model: nn.Module) -> None:
    guide = spile.guide(model, "layer2", preprocessing=IMAGENET, example=SHAPE)
    with pytest.raises(
        AugmentationError, match=r"lie in .*, and the guide was told 0..1: write given=\(0, 1\)"
    ):
        guide(images() * 4 - 2)
    dark = spile.guide(model, "layer2", preprocessing=IMAGENET, given=(0, 255), example=SHAPE)
    with pytest.raises(AugmentationError, match=r"told 0\.\.255"):
        dark(images())


def test_a_bare_model_does_not_tell_its_preprocessing(model: nn.Module) -> None:
    with pytest.raises(AugmentationError, match="write preprocessing="):
        spile.guide(model, "layer2", example=SHAPE)(images())
    assert len(spile.guide(model, "layer2", given="ready", example=SHAPE)(images())) == 3


def test_reductions_are_what_they_say(model: nn.Module) -> None:
    activation = spile.tap(model, "layer2", pool=None, example=SHAPE)(images())["layer2"].detach().double()
    expected = {
        "mean": activation.mean(1),
        "max": activation.amax(1),
        "l2": activation.norm(dim=1),
    }
    for reduce, raw in expected.items():
        maps = spile.guide(model, "layer2", reduce=reduce, given="ready", example=SHAPE)(images())
        low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
        np.testing.assert_allclose(maps.values, ((raw - low) / (high - low)).numpy(), atol=2e-3)


def test_grad_cam_is_that_of_the_paper(model: nn.Module) -> None:
    labels = np.array([3, 5, 7])
    guide = spile.guide(model, "layer3", reduce="gradcam", given="ready", example=SHAPE)
    found = guide(images(), labels).values
    model.eval()
    activation = model.layer3(model.layer2(model.layer1(images()))).detach().requires_grad_()
    logits = model.fc(model.layer4(activation).mean((2, 3)))
    (gradient,) = torch.autograd.grad(logits[range(3), labels].sum(), activation)
    cam = (activation * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach()
    high = cam.amax((1, 2), keepdim=True)
    low = cam.amin((1, 2), keepdim=True)
    expected = (cam - low) / (high - low).clamp(min=1e-12)  # a class may have no evidence at all
    np.testing.assert_allclose(found, expected.numpy(), atol=3e-3)
    assert found.max((1, 2)).sum() >= 1
    model.train()


def test_rollout_unfuses_attention_in_its_context_only() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48).eval()
    fused = [block.attn.fused_attn for block in vit.blocks]
    few = images()[:, :, :32, :32]
    shape = (1, 3, 32, 32)
    maps = spile.guide(vit, "blocks.1", reduce="rollout", given="ready", example=shape)(few)
    assert maps.values.shape == (3, 2, 2)
    assert [block.attn.fused_attn for block in vit.blocks] == fused
    assert any(fused)
    tokens = spile.guide(vit, "blocks.1", given="ready", example=shape)(few)
    assert tokens.grids[0] == maps.grids[0]


def test_rollout_by_hand() -> None:
    rng = np.random.default_rng(0)
    attention = [rng.dirichlet(np.ones(5), (1, 2, 5)) for _ in range(2)]
    total = np.eye(5)
    for each in attention:
        total = (0.5 * each[0].mean(0) + 0.5 * np.eye(5)) @ total
    np.testing.assert_allclose(reductions.rollout(attention, 1)[0], total[0, 1:])


def test_the_first_principal_axis_points_where_the_energy_is() -> None:
    rng = np.random.default_rng(0)
    strength = rng.random((2, 20, 1)) * 5
    cells = strength * rng.standard_normal((2, 1, 8)) + 0.01 * rng.standard_normal((2, 20, 8))
    found = reductions.principal(cells)
    for one, true in zip(found, strength[:, :, 0], strict=True):
        assert np.corrcoef(one, true)[0, 1] > 0.99


def test_half_resolution_costs_a_quarter_and_lies_as_well(model: nn.Module) -> None:
    whole, half = (
        spile.guide(model, "layer2", resolution=share, given="ready", example=SHAPE)(images())
        for share in (1.0, 0.5)
    )
    assert whole.values.shape == (3, 16, 16)
    assert half.values.shape == (3, 8, 8)
    assert whole.grids[0].rows.first == 0
    assert half.grids[0].rows.first == 0.5  # the middle of the first two pixels
    assert half.grids[0].rows.stride == 8


class Viewing(Net):
    """Takes a view across channels, which a channels-last batch does not allow."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(x)
        x = x.view(len(x), 2, -1).view(x.shape)
        return self.fc(self.layer4(self.layer3(self.layer2(x))).mean((2, 3)))


def test_a_model_that_takes_views_is_guided_too(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_FEW_PIXELS", 0)  # so that these small batches are channels last
    viewing = Viewing()
    viewing.load_state_dict(model.state_dict())
    found = spile.guide(viewing, "layer2", preprocessing=IMAGENET, example=SHAPE)(images())
    plain = spile.guide(model, "layer2", preprocessing=IMAGENET, example=SHAPE)(images())
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at", ["layer*", ["layer1", "layer2"]])
def test_a_guide_reads_one_layer(model: nn.Module, at: Any) -> None:
    with pytest.raises(AugmentationError, match="a guide reads one layer"):
        spile.guide(model, at, given="ready", example=SHAPE)(images())


def test_a_map_of_one_cell_has_no_regions(model: nn.Module) -> None:
    with pytest.raises(AugmentationError, match="has 1 x 1 cells for images of 16 x 16 pixels"):
        spile.guide(model, "layer4", given="ready", example=(1, 3, 16, 16))(torch.rand(1, 3, 16, 16))


def test_words_that_are_none(model: nn.Module) -> None:
    with pytest.raises(AugmentationError, match="unknown reduction 'l3': did you mean 'l2'"):
        spile.guide(model, "layer2", reduce="l3")
    with pytest.raises(AugmentationError, match="centres='padding': write"):
        spile.guide(model, "layer2", centres="padding")
    with pytest.raises(AugmentationError, match="resolution=0"):
        spile.guide(model, "layer2", resolution=0)
    with pytest.raises(AugmentationError, match="given='raw': write the range"):
        spile.guide(model, "layer2", given="raw")
    with pytest.raises(AugmentationError, match="takes tensors"):
        spile.guide(model, "layer2", given="ready")(np.zeros((2, 64, 64, 3), np.uint8))


def test_the_fingerprint_changes_with_what_changes_maps(model: nn.Module) -> None:
    def made(**options: Any) -> str:
        return spile.guide(
            model, **({"at": "layer2", "given": "ready", "example": SHAPE} | options)
        ).fingerprint

    prints = {
        made(),
        made(at="layer1"),
        made(reduce="max"),
        made(resolution=0.5),
        made(preprocessing=IMAGENET),
    }
    assert len(prints) == 5
    assert made() == made()


def test_measured_centres_are_where_the_weights_look() -> None:
    one = nn.Conv2d(3, 3, 5, stride=4, padding=2, bias=False)
    with torch.no_grad():
        one.weight.zero_()
        for channel in range(3):
            one.weight[channel, channel, 0, 4] = 1
    model = nn.Sequential(one, nn.Conv2d(3, 2, 1))
    asked: dict[str, Any] = {"given": "ready"}
    guides = {c: spile.guide(model, "0", centres=c, **asked) for c in ("fields", "measured")}
    grids = {centres: guide(images()).grids[0] for centres, guide in guides.items()}
    assert (grids["fields"].rows.first, grids["fields"].columns.first) == (0, 0)
    assert grids["measured"].rows.first == pytest.approx(-2, abs=0.4)
    assert grids["measured"].columns.first == pytest.approx(2, abs=0.4)
    assert guides["fields"].fingerprint != guides["measured"].fingerprint


def test_a_trained_network_does_not_look_at_the_middle_of_its_windows() -> None:
    """By strides and padding the centres are at 7; the weights undo that the padding is on one side."""
    loaded = spile.load_model("demo:efficientnet_lite0", input_size=128)
    pixels = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    fields, own = (
        spile.guide(loaded, "blocks.2", centres=centres)(pixels).grids[0]
        for centres in ("fields", "measured")
    )
    assert fields.rows.first == fields.columns.first == 7
    assert 2 < own.rows.first < 4.5 and 2 < own.columns.first < 4.5
