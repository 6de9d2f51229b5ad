from __future__ import annotations

import pytest
import torch
from torch import nn

from spile.torch.classifiers import classifier_of, set_classifier, with_classifier

IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    "name, path",
    [("resnet18", "fc"), pytest.param("mobilenet_v3_small", "classifier.3", marks=pytest.mark.zoo)],
)
def test_torchvision(name: str, path: str) -> None:
    from torchvision.models import get_model

    model = get_model(name, weights=None).eval()
    images = torch.zeros(2, 3, 64, 64)
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(path)}
    made = with_classifier(model, images, 7)
    assert made is model
    assert classifier_of(made, images) == path
    assert made(images).shape == (2, 7)
    after = made.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm(name: str) -> None:
    import timm

    size = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, **size).eval()
    made = with_classifier(model, IMAGES, 7)
    assert made(IMAGES).shape == (2, 7)
    assert made.num_classes == 7


def test_hugging_face_with_and_without_a_classifier() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    bare = transformers.ViTModel(config).eval()
    made = with_classifier(bare, IMAGES, 7)
    assert made(IMAGES).logits.shape == (2, 7)
    assert torch.equal(
        made.vit.layers[0].mlp.fc1.weight
        if hasattr(made.vit, "layers")
        else next(iter(made.vit.parameters())),
        bare.layers[0].mlp.fc1.weight if hasattr(bare, "layers") else next(iter(bare.parameters())),
    )
    with_head = transformers.ViTForImageClassification(config).eval()
    made = with_classifier(with_head, IMAGES, 7)
    assert made is with_head and made.config.num_labels == 7
    assert made(IMAGES).logits.shape == (2, 7)


def test_a_classifier_that_fits_is_kept() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    last = model[1]
    assert with_classifier(model, torch.zeros(2, 3, 2, 2), 4)[1] is last
    assert with_classifier(model, torch.zeros(2, 3, 2, 2), 5)[1] is not last


def test_a_fitted_classifier_is_set() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    coef, intercept = torch.randn(12, 4), torch.randn(4)
    x = torch.randn(2, 3, 2, 2)
    set_classifier(model, x, coef.numpy(), intercept.numpy())
    torch.testing.assert_close(model(x), x.flatten(1) @ coef + intercept)
