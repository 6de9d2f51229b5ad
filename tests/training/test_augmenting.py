"""Training with guided augmentation: changed batches, the same ones after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spile
from spile.augmentation import Inside, MapCutMix
from spile.errors import AugmentationError, TrainingError

PLAIN = spile.ImagePreprocessing(crop=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def data(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(rows) % 2
    pixels = np.random.default_rng(0).integers(0, 120, (rows, 16, 16, 3), np.uint8)
    pixels[:, :8, :8, 0] += (labels * 120).astype(np.uint8)[:, None, None]
    return pixels, labels


def train(out: Path, **options: Any) -> spile.training.TrainRun:
    wanted: dict[str, Any] = {
        "model": net,
        "data": data(),
        "preprocessing": PLAIN,
        "epochs": 2,
        "batch_size": 8,
    }
    own = {k: options.pop(k) for k in ("resume",) if k in options}
    return spile.train(spile.Recipe(**wanted | {"rate": 1e-2} | options), out=out, progress=False, **own)


def weights(run: spile.training.TrainRun) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in run.model.state_dict().values()])


def test_guided_and_placebo_runs_differ_and_each_is_repeatable(tmp_path: Path) -> None:
    found = {
        name: weights(train(tmp_path / name, augment=augment))
        for name, augment in (
            ("plain", None),
            ("guided", spile.Augmentation(at="0", policy="bylevel", resolution=1.0)),
            ("again", spile.Augmentation(at="0", policy="bylevel", resolution=1.0)),
            ("permuted", spile.Augmentation(at="0", policy="bylevel", resolution=1.0, maps="permuted")),
        )
    }
    assert torch.equal(found["guided"], found["again"])
    assert not torch.equal(found["guided"], found["plain"])
    assert not torch.equal(found["guided"], found["permuted"])


def test_the_report_names_what_was_done(tmp_path: Path) -> None:
    run = train(tmp_path / "run", augment=spile.Augmentation(at="0", policy=Inside([]), resolution=1.0))
    page = run.report.read_text()
    assert "augment.at" in page
    assert "Inside" in page


def test_what_cannot_be_augmented(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="MapCutMix mixes labels"):
        train(tmp_path / "a", augment=spile.Augmentation(at="0", policy=MapCutMix()))
    with pytest.raises(AugmentationError, match="unknown policy 'bylevels': did you mean 'bylevel'"):
        train(tmp_path / "b", augment=spile.Augmentation(at="0", policy="bylevels"))
    floats = data()[0].transpose(0, 3, 1, 2).astype(np.float32), data()[1]
    with pytest.raises(TrainingError, match="augment= changes uint8 images"):
        train(tmp_path / "c", data=floats, augment=spile.Augmentation(at="0"))
    with pytest.raises(TrainingError, match=r"write spile.Augmentation\(at='layer3'"):
        train(tmp_path / "d", augment="bylevel:0")
