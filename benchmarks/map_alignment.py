"""How far from where it is computed to lie is a cell of a map? And from where a plain resize puts it?

    python benchmarks/map_alignment.py

Truth is the centroid of the middle cell's gradient by the image, in the network's own strides, kernels
and padding: weights are set equal and positive, norms to identity, maxima to means, so that nothing but the
geometry is left, and inputs are enlarged by a multiple of every stride where the receptive field would reach
the border. Errors in pixels, the larger of the two axes.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torchvision
from torch import nn

from spile.torch.placing import grid_of
from spile.torch.taps import Tap

CASES: list[tuple[str, Callable[[], nn.Module], str, int]] = [
    ("ResNet-18", torchvision.models.resnet18, "layer2", 0),
    ("ResNet-18", torchvision.models.resnet18, "layer3", 0),
    ("ResNet-18", torchvision.models.resnet18, "layer4", 256),
    ("VGG-11", torchvision.models.vgg11, "features.15", 0),
    ("EfficientNet-Lite0 (SAME)", lambda: timm.create_model("tf_efficientnet_lite0"), "blocks.4", 128),
    ("ConvNeXt-Atto", lambda: timm.create_model("convnext_atto"), "stages.2", 128),
]


def linearised(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        parent, _, own = name.rpartition(".")
        if isinstance(module, nn.MaxPool2d):
            mean = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            setattr(model.get_submodule(parent), own, mean)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            setattr(model.get_submodule(parent), own, nn.Identity())
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1e-3 if parameter.ndim < 2 else 1.0 / parameter[0].numel())
    return model.eval()


def errors(make: Callable[[], nn.Module], at: str, side: int) -> tuple[float, float]:
    model, image = make(), torch.ones(1, 3, side, side)
    grid = grid_of(Tap(model, at, pool=None, example=image), image)
    cell = grid.shape[0] // 2
    image.requires_grad_()
    value = Tap(linearised(model), at, pool=None, mode="as_is", example=torch.ones_like(image))(image)[at]
    (value[0, :, cell, cell] if value.shape[2] == grid.shape[0] else value[0, cell, cell]).sum().backward()
    assert image.grad is not None
    weight = image.grad[0].abs().sum(0).double()
    at_pixel = float((weight.sum(1) * torch.arange(side)).sum() / weight.sum())
    plain = (cell + 0.5) * side / grid.shape[0] - 0.5
    return abs(at_pixel - grid.rows.centres[cell]), abs(at_pixel - plain)


def main() -> None:
    print("| network | layer | input | computed centre is off by | plain upsampling is off by |")
    print("|---|---|---:|---:|---:|")
    for name, make, at, more in CASES:
        for side in (224, 225, 230):
            computed, plain = errors(make, at, side + more)
            print(f"| {name} | {at} | {side + more} | {computed:.2f} | {plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
