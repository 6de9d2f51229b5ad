"""That the certificate holds for what `strip` leaves, and would notice what it is there to notice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import spile
from spile.errors import SupervisionError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8)


def make(model: nn.Module | None = None) -> Any:
    return spile.supervise(model or Net(), example=(2, 3, 8, 8), num_classes=5, taps=["a"])


def trained(supervised: Any, images: Tensor) -> Any:
    optimizer = torch.optim.SGD(supervised.parameters(), 0.1)
    supervised.loss(supervised(images), torch.tensor([0, 1]), progress=0.0).total.backward()
    optimizer.step()
    return supervised


def test_it_holds_after_training_before_and_after_strip(images: Tensor) -> None:
    supervised = trained(make(), images)
    state = copy.deepcopy(supervised.state_dict())
    found = supervised.certificate(images)
    assert found.holds
    assert found.same_graph is True
    assert "NO" not in str(found)
    assert "same graph         yes" in str(found)
    assert all(torch.equal(state[k], v) for k, v in supervised.state_dict().items())
    assert supervised(images).aux  # still has its heads
    supervised.strip()
    assert supervised.certificate(images).holds


def test_it_holds_in_another_precision(images: Tensor) -> None:
    assert make().double().certificate(images.double()).holds


def test_it_notices_what_is_not_the_model_it_was(images: Tensor) -> None:
    hooked = make()
    hooked.base.a[0].register_forward_hook(lambda module, args, output: output + 1)
    found = hooked.certificate(images)
    assert not (found.same_object or found.same_outputs or found.holds)
    assert "outputs differ" in str(found)

    more = make()
    more.base.register_buffer("extra", torch.zeros(1))
    assert not more.certificate(images).same_keys

    wider = make()
    wider.base.a.append(nn.Conv2d(8, 8, 1))
    found = wider.certificate(images)
    assert not (found.same_keys or found.same_macs)
    assert found.same_graph is False

    swapped = make()
    swapped.base = Net()
    assert not swapped.certificate(images).same_object


def test_models_that_onnx_cannot_have_are_compared_in_the_rest(images: Tensor) -> None:
    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(x.sum() > 0 or 1)

    found = make(Odd()).certificate(images)
    assert found.holds
    assert found.same_graph is None
    assert "cannot be exported to ONNX" in str(found)


def test_a_model_that_cannot_be_copied(images: Tensor) -> None:
    model = Net()
    model.generator = (number for number in range(3))  # type: ignore[assignment]
    with pytest.raises(SupervisionError, match="cannot be copied, so there is no twin"):
        make(model).certificate(images)


def vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=64,
        num_labels=10,
    )
    return ViTForImageClassification(config)


TORCHVISION = [
    "resnet18",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "mnasnet0_5",
    "regnet_y_400mf",
    "densenet121",
    "convnext_tiny",
]
TIMM = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "convnextv2_atto",
    "mixer_s32_224",
    "tf_efficientnet_lite0",
    "repvgg_a0",
    "poolformer_s12",
    "ghostnet_050",
]


def architectures() -> dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]]:
    found: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {"hf:vit": (vit, {"main": "logits"})}
    for name in TORCHVISION:
        found[f"torchvision:{name}"] = (lambda name=name: torchvision.models.get_model(name), {})
    for name in TIMM:
        sized = {"img_size": 64} if "vit" in name or "deit" in name or "mixer" in name else {}
        found[f"timm:{name}"] = (lambda name=name, sized=sized: timm.create_model(name, **sized), {})
    return found


@pytest.mark.zoo
@pytest.mark.parametrize("name", architectures())
def test_twenty_architectures(name: str) -> None:
    make, options = architectures()[name]
    torch.manual_seed(0)
    model = make()
    classes = 10 if name == "hf:vit" else 1000
    supervised: Any = spile.supervise(model, example=(2, 3, 64, 64), num_classes=classes, **options)
    images = torch.randn(2, 3, 64, 64)
    loss = supervised.loss(supervised(images), torch.tensor([1, 2]), progress=0.0)
    loss.total.backward()
    with torch.no_grad():
        for parameter in supervised.parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-4 * parameter.grad)
    found = supervised.certificate(images)
    print(name, [point.name for point in supervised.points], found, sep="\n")
    assert found.holds, str(found)
    assert found.same_graph is True, str(found)


def test_there_are_twenty() -> None:
    assert len(architectures()) == 20
