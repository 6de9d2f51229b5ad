"""Cells lie where gradients say they lie, and not where a resize of the map would put them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from spile.augmentation.geometry import Grid
from spile.errors import AugmentationError
from spile.torch.placing import grid_of
from spile.torch.taps import Tap


def linearised(model: nn.Module) -> nn.Module:
    """Every weight positive and equal, no normalisation: what is left is strides, kernels and padding.

    A pool takes means, as of equal cells a maximum is always the first one.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            parent = model.get_submodule(name.rpartition(".")[0])
            mean = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            setattr(parent, name.rpartition(".")[2], mean)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1e-3 if parameter.ndim < 2 else 1.0 / parameter[0].numel())
    return model.eval()


def centroid(model: nn.Module, at: str, shape: tuple[int, int, int, int], cell: tuple[int, int]) -> Tensor:
    """The mean place of the input's pixels, each as heavy as its gradient of one cell."""
    image = torch.ones(shape, requires_grad=True)
    value = Tap(model, at, pool=None, mode="as_is", example=torch.ones(shape))(image)[at]
    value[0, :, cell[0], cell[1]].sum().backward()
    assert image.grad is not None
    weight = image.grad[0].abs().sum(0).double()
    rows, columns = (torch.arange(n, dtype=torch.double) for n in shape[2:])
    total = weight.sum()
    return torch.stack([(weight.sum(1) * rows).sum() / total, (weight.sum(0) * columns).sum() / total])


def plain(grid: Grid, size: tuple[int, int], cell: tuple[int, int]) -> np.ndarray:
    """Where ``align_corners=False`` upsampling puts a cell."""
    return np.array([(i + 0.5) * n / k - 0.5 for i, n, k in zip(cell, size, grid.shape, strict=True)])


def errors(model: nn.Module, at: str, size: tuple[int, int]) -> tuple[float, float]:
    """Pixels from the centroid of the middle cell's gradient to the computed centre, and to upsampling's."""
    shape = (1, 3, *size)
    grid = grid_of(Tap(model, at, pool=None, example=torch.ones(shape)), torch.ones(shape))
    cell = grid.shape[0] // 2, grid.shape[1] // 2
    found = centroid(linearised(model), at, shape, cell).numpy()
    computed = np.array([grid.rows.centres[cell[0]], grid.columns.centres[cell[1]]])
    return np.abs(found - computed).max(), np.abs(found - plain(grid, size, cell)).max()


class Small(nn.Module):
    """Strides, paddings and a shortcut as those of residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, 2, 3)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.short = nn.Conv2d(4, 4, 1, 2)
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        return self.last(self.conv(x) + self.short(x))


@pytest.mark.parametrize("size", [(112, 113), (118, 112)])
@pytest.mark.parametrize(
    ("make", "at"),
    [
        (Small, "last"),
        (lambda: nn.Sequential(*[Conv2dSame(3, 3, k, stride=2) for k in (3, 5, 3)]), "2"),
    ],
    ids=["residual", "SAME padding inside forward"],
)
def test_the_computed_centre_is_the_gradient_s_centroid(
    make: Callable[[], nn.Module], at: str, size: tuple[int, int]
) -> None:
    computed, _ = errors(make(), at, size)
    assert computed < 1


@pytest.mark.zoo
@pytest.mark.parametrize("side", [224, 225, 230])
@pytest.mark.parametrize(
    ("make", "at", "more"),
    [
        (lambda: torchvision.models.resnet18(), "layer3", 0),
        (lambda: torchvision.models.resnet18(), "layer4", 256),
        (lambda: torchvision.models.vgg11(), "features.15", 0),
        (lambda: timm.create_model("tf_efficientnet_lite0"), "blocks.4", 128),
        (lambda: timm.create_model("convnext_atto"), "stages.2", 128),
    ],
    ids=["resnet18 layer3", "resnet18 layer4", "vgg11", "efficientnet", "convnext"],
)
def test_at_the_sizes_of_photographs(make: Callable[[], nn.Module], at: str, more: int, side: int) -> None:
    """`more` keeps the image's border out of the receptive field; it is a multiple of every stride."""
    computed, _ = errors(make(), at, (side + more, side + more))
    assert computed < 1


def test_plain_upsampling_is_off_by_half_a_stride() -> None:
    computed, upsampled = errors(Small(), "last", (224, 224))
    assert computed < 1
    assert 3 < upsampled < 4  # the stride is 8


def test_tokens_of_a_vision_transformer_are_its_patches() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48)
    image = torch.ones(1, 3, 64, 64)
    for at in ("patch_embed", "blocks.0"):
        grid = grid_of(Tap(model, at, pool=None, example=image), image)
        assert grid.shape == (4, 4)
        assert (grid.rows.stride, grid.rows.first) == (16, 7.5)


@pytest.mark.zoo
def test_merged_windows_of_a_swin_transformer() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, depths=(1, 1, 1, 1))
    image = torch.ones(1, 3, 112, 112)
    grid = grid_of(Tap(model, "layers.1", pool=None, example=image), image)
    assert (grid.shape, grid.rows.stride, grid.rows.first) == ((14, 14), 8, 3.5)


class Odd(nn.Module):
    """Crops, pads, slices, transposes and resizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.up = nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (3, 0, 1, 0))
        x = self.conv(x[:, :, 2:, :-1])
        x = functional.avg_pool2d(x, 2)
        x = functional.interpolate(self.up(x), scale_factor=2, mode="bilinear")
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[:, :, 1::2]
        return self.last(x)


def test_what_a_forward_does_by_hand_is_followed() -> None:
    computed, _ = errors(Odd(), "last", (65, 82))
    assert computed < 1


def test_what_cannot_be_followed_is_refused() -> None:
    class Scrambled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(2)[:, :, :143].reshape(len(x), 3, 11, 13))

    image = torch.ones(1, 3, 12, 12)
    tap = Tap(Scrambled(), "inner", pool=None, example=image)
    with pytest.raises(AugmentationError, match="cannot be followed"):
        grid_of(tap, image)


def test_a_vector_is_no_map() -> None:
    model = torchvision.models.resnet18()
    image = torch.ones(1, 3, 32, 32)
    with pytest.raises(AugmentationError, match="a guide reads a map or the tokens"):
        grid_of(Tap(model, "fc", pool=None, example=image), image)
