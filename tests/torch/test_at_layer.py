"""Operations at a layer: exact values, exact labels, nothing in evaluation, nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spile
from spile.augmentation import FeatureDropout, FeatureNoise, ManifoldMixup, MoEx
from spile.augmentation.features import plan
from spile.augmentation.randomness import Draw
from spile.errors import AugmentationError, CaptureError

IDS = ["a", "b", "c", "d"]
SHAPE = (1, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(384, 5)
    )


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def rest(model: nn.Module, x: Tensor) -> Tensor:
    return model[3](model[2](x))


def test_manifold_mixup_mixes_activations_and_labels_alike() -> None:
    model = network().train()
    plain = model[:2](images())
    with spile.at_layer(model, "1", ManifoldMixup(), example=SHAPE, classes=5) as layer:
        labels = layer.step(torch.tensor([0, 1, 2, 3]), ids=IDS, epoch=2)
        found = model(images())
    drawn = plan(ManifoldMixup(), IDS, Draw(0, 2))
    own = torch.from_numpy(drawn.own).float()
    mixed = own.view(-1, 1, 1, 1) * plain + (1 - own).view(-1, 1, 1, 1) * plain[drawn.partners]
    torch.testing.assert_close(found, rest(model, mixed))
    hot = torch.eye(5)[:4]
    torch.testing.assert_close(labels, own[:, None] * hot + (1 - own)[:, None] * hot[drawn.partners])
    assert len(set(drawn.own.tolist())) == 4  # each sample has its own


def test_moex_exchanges_moments() -> None:
    model = network().train()
    x = model[:2](images())
    with spile.at_layer(model, "1", MoEx(), example=SHAPE, classes=5) as layer:
        labels = layer.step(torch.arange(4), ids=IDS, epoch=0)
        partners = plan(MoEx(), IDS, Draw(0, 0)).partners
        found = model(images())
    mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found, rest(model, (x - mean) / std * std[partners] + mean[partners]))
    torch.testing.assert_close(labels.diagonal(), torch.full((4,), 0.9))


@pytest.mark.parametrize("at", ["active", "random"])
def test_dropout_drops_a_share_of_the_cells(at: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Identity()).train()
    x = model(images())
    with spile.at_layer(model, "1", FeatureDropout(0.25, at), example=SHAPE, classes=5) as layer:
        layer.step(torch.arange(4), ids=IDS, epoch=0)
        found = model(images())
    off = (found == 0).all(1)
    assert off.float().mean((1, 2)).tolist() == [0.25] * 4
    kept = ~off.unsqueeze(1).expand_as(x)
    torch.testing.assert_close(found[kept], x[kept] / 0.75)
    if at == "active":
        energy = x.square().sum(1)
        assert all(e[o].min() > e[~o].max() for e, o in zip(energy, off, strict=True))


def test_noise_is_of_each_sample_s_own_scale_and_seeded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Identity()).train()
    x = model(images())
    with spile.at_layer(model, "1", FeatureNoise(0.5), example=SHAPE, classes=5) as layer:
        runs = []
        for ids in (IDS, IDS, IDS[::-1]):
            layer.step(torch.arange(4), ids=ids, epoch=0)
            runs.append(model(images()) - x)
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    ratio = runs[0].flatten(1).std(1) / x.flatten(1).std(1)
    assert ((ratio > 0.4) & (ratio < 0.6)).all()


def test_evaluation_is_not_changed_and_a_training_pass_without_step_raises() -> None:
    model = network()
    expected = model.eval()(images())
    layer = spile.at_layer(model, "1", ManifoldMixup(), example=SHAPE, classes=5)
    assert torch.equal(model(images()), expected)
    model.train()
    with pytest.raises(CaptureError, match="call step"):
        model(images())
    layer.step(torch.arange(3), ids=IDS[:3], epoch=0)
    with pytest.raises(CaptureError, match="holds 4 samples, and step was told of 3"):
        model(images())
    layer.close()
    assert torch.equal(model(images()), expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_flow_to_both_samples() -> None:
    model, x = network().train(), images().requires_grad_()
    with spile.at_layer(model, "0", ManifoldMixup(), example=SHAPE, classes=5) as layer:
        layer.step(torch.arange(4), ids=IDS, epoch=0)
        model(x)[0].sum().backward()
    assert x.grad is not None
    touched = x.grad.flatten(1).abs().sum(1) > 0
    partner = plan(ManifoldMixup(), IDS, Draw(0, 0)).partners[0]
    assert touched.tolist() == [i in (0, partner) for i in range(4)]


def test_what_cannot_be_done() -> None:
    with pytest.raises(AugmentationError, match="name the output of one layer"):
        spile.at_layer(network(), "*", ManifoldMixup(), example=SHAPE)
    layer = spile.at_layer(network(), "1", ManifoldMixup(), example=SHAPE)
    with pytest.raises(AugmentationError, match="write classes="):
        layer.step(torch.arange(4), ids=IDS, epoch=0)
    with pytest.raises(AugmentationError, match="2 ids for 4 labels"):
        layer.step(torch.eye(4), ids=["a", "b"], epoch=0)
    layer = spile.at_layer(network(), "1", ManifoldMixup(), example=SHAPE, classes=5)
    with pytest.raises(AugmentationError, match=r"labels lie in -1\.\.2, and classes=5 allows 0\.\.4"):
        layer.step(torch.tensor([0, -1, 2, -1]), ids=IDS, epoch=0)
    with pytest.raises(AugmentationError, match=r"labels are \[4, 4\]"):
        layer.step(torch.eye(4), ids=IDS, epoch=0)
    column = layer.step(torch.tensor([[0], [1], [2], [3]]), ids=IDS, epoch=0)
    assert torch.equal(column, layer.step(torch.arange(4), ids=IDS, epoch=0))
    for make in (
        lambda: MoEx(1.5),
        lambda: FeatureDropout(0.0),
        lambda: FeatureNoise(-1),
        lambda: ManifoldMixup(0),
    ):
        with pytest.raises(AugmentationError, match="write"):
            make()
