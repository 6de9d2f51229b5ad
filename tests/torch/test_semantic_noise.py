"""ISDA: the bound of the paper against brute force and against the draws that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import spile
from spile.augmentation import ISDA, ManifoldMixup, SemanticNoise
from spile.errors import AugmentationError, CaptureError

IDS = [f"s{i}" for i in range(12)]
LABELS = torch.arange(12) % 3
SHAPE = (1, 3, 6, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.body(x)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().train()


def images() -> Tensor:
    return torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3


def brute(logits: Tensor, weight: Tensor, covariances: Any, factor: float) -> Tensor:
    """Equation 6 of the paper, sample by sample and class by class."""
    found = logits.clone()
    for i, y in enumerate(LABELS.tolist()):
        sigma = torch.as_tensor(covariances[y], dtype=logits.dtype)
        sigma = torch.diag(sigma) if sigma.ndim == 1 else sigma
        for j in range(logits.shape[1]):
            v = weight[j] - weight[y]
            found[i, j] = logits[i, j] + factor / 2 * v @ sigma @ v
    return found


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_bound_is_that_of_the_paper(covariance: Any) -> None:
    model, x = net(), images()
    plain = model(x)
    features = model.pool(model.body(x)).detach().double().numpy()
    with spile.at_layer(model, "pool", ISDA(0.8, covariance), example=SHAPE, classes=3) as layer:
        weights = layer.step(LABELS, ids=IDS, epoch=0, progress=0.5)
        logits = model(x)
        bound = layer.bound(logits, model.fc.weight)
    covariances = [np.cov(features[y == LABELS].T, bias=True) for y in range(3)]
    if covariance == "diagonal":
        covariances = [np.diag(np.diag(c)) for c in covariances]
    assert torch.equal(logits, plain)  # the layer itself is not changed
    assert torch.equal(weights, torch.eye(3)[LABELS])
    torch.testing.assert_close(bound, brute(logits, model.fc.weight, covariances, 0.4))
    functional.cross_entropy(bound, LABELS).backward()
    through = model.fc.weight.grad.clone()
    model.zero_grad()
    functional.cross_entropy(model(x.detach()) + (bound - logits).detach(), LABELS).backward()
    assert not torch.allclose(through, model.fc.weight.grad)  # gradients flow into the term too


def test_it_bounds_the_expected_loss_of_the_draws_it_stands_for() -> None:
    model, x = net(), images()
    with spile.at_layer(model, "pool", ISDA(0.5, "full"), example=SHAPE, classes=3) as layer:
        layer.step(LABELS, ids=IDS, epoch=0, progress=1.0)
        bound = functional.cross_entropy(layer.bound(model(x), model.fc.weight), LABELS).item()
        moments = layer.steps.moments
    assert moments is not None
    features = model.pool(model.body(x)).detach()
    rounds = 400
    noise = moments.drawn(np.tile(LABELS.numpy(), rounds), list(range(12 * rounds)), 0.5)
    shaken = model.fc(features.repeat(rounds, 1) + torch.from_numpy(noise).float())
    drawn = functional.cross_entropy(shaken, LABELS.repeat(rounds)).item()
    plain = functional.cross_entropy(model.fc(features), LABELS).item()
    assert plain < drawn < bound


def test_it_grows_with_progress_and_moments_with_the_batches() -> None:
    model, x = net(), images()
    with spile.at_layer(model, "pool", ISDA(), example=SHAPE, classes=3) as layer:
        added = []
        for progress in (0.0, 0.5, 1.0):
            layer.step(LABELS, ids=IDS, epoch=0, progress=progress)
            logits = model(x)
            added.append((layer.bound(logits, model.fc.weight) - logits).abs().sum().item())
        assert added[0] == 0
        assert added[2] == pytest.approx(2 * added[1], rel=1e-3)
        assert layer.steps.moments.counts.tolist() == [12, 12, 12]


def test_noise_is_one_direction_a_sample_at_every_place() -> None:
    model, x = net(), images()
    plain = model.body(x)
    runs = []
    with spile.at_layer(model, "body", SemanticNoise(0.5), example=SHAPE, classes=3) as layer:
        for ids in (IDS, IDS, IDS[::-1]):
            layer.steps.moments = None
            layer.step(LABELS, ids=ids, epoch=0, progress=1.0)
            runs.append(model.body(x) - plain)
        layer.step(LABELS, ids=IDS, epoch=0, progress=0.0)
        assert torch.allclose(model.body(x), plain)
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    torch.testing.assert_close(runs[0], runs[0][:, :, :1, :1].expand_as(plain), rtol=0, atol=1e-5)
    spread = plain.mean((2, 3)).detach()
    within = torch.stack([spread[y == LABELS].var(0, correction=0) for y in range(3)]).mean(0)
    ratio = runs[0][:, :, 0, 0].square().mean(0).detach() / within
    assert ((ratio > 0.1) & (ratio < 2)).all()


def test_what_is_missing_is_said() -> None:
    model, x = net(), images()
    with pytest.raises(AugmentationError, match="strength=0: write a number above 0"):
        ISDA(0)
    with pytest.raises(AugmentationError, match="covariance='block': write 'diagonal' or 'full'"):
        SemanticNoise(covariance="block")  # type: ignore[arg-type]
    with spile.at_layer(model, "pool", ISDA(), example=SHAPE, classes=3) as layer:
        with pytest.raises(AugmentationError, match="progress=None: ISDA grows with training"):
            layer.step(LABELS, ids=IDS, epoch=0)
        with pytest.raises(AugmentationError, match="ISDA is of one class a sample"):
            layer.step(torch.full((12, 3), 1 / 3), ids=IDS, epoch=0, progress=0.1)
        with pytest.raises(CaptureError, match="then ask for the bound"):
            layer.bound(torch.zeros(12, 3), model.fc.weight)
        layer.step(LABELS, ids=IDS, epoch=0, progress=0.1)
        with pytest.raises(CaptureError, match="run the model on the batch"):
            layer.bound(torch.zeros(12, 3), model.fc.weight)
        model(x)
        with pytest.raises(AugmentationError, match="pool has 5 channels, and the weights are for 7"):
            layer.bound(torch.zeros(12, 3), torch.zeros(3, 7))
    other = spile.at_layer(model, "body", ManifoldMixup(), example=SHAPE, classes=3)
    with pytest.raises(AugmentationError, match="bound is for ISDA"):
        other.bound(torch.zeros(12, 3), model.fc.weight)
