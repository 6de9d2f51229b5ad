"""Training with guided augmentation: changed batches, the same ones after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import spile
from spile.augmentation import Inside, MapCutMix, SnapMix
from spile.errors import AugmentationError, TrainingError
from spile.torch import losses

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


@pytest.mark.zoo
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


def test_pictures_of_what_was_done(tmp_path: Path) -> None:
    run = train(tmp_path / "run", augment=spile.Augmentation(at="0", policy="mapcutmix", resolution=1.0))
    page = run.report.read_text()
    assert page.count('src="data:image/png') == 4 * 5  # image, map, bands, two epochs
    assert "Guided augmentation" in page
    pictures = [np.asarray(Image.open(run.path / f"augmented/0-{i}.png")) for i in (0, 3, 4)]
    assert pictures[0].shape == (16, 16, 3)
    assert all((each != pictures[0]).any() for each in pictures[1:])
    (tmp_path / "plain").mkdir()
    assert "Guided augmentation" not in train(tmp_path / "plain").report.read_text()


@pytest.mark.parametrize("policy", [MapCutMix(labels="mass"), SnapMix()])
def test_mixes_train_on_weights_of_all_classes(tmp_path: Path, policy: Any) -> None:
    seen: list[torch.Tensor] = []
    before = losses.labelled

    def labelled(logits: Any, labels: Any, **options: Any) -> Any:
        seen.append(labels)
        return before(logits, labels, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "labelled", labelled)
        run = train(tmp_path / "run", augment=spile.Augmentation(at="0", policy=policy, resolution=1.0))
    mixed = [labels for labels in seen if labels.is_floating_point()]
    assert len(mixed) == 8  # two epochs of 32 rows; what measures has class numbers
    assert all(labels.shape == (8, 2) for labels in mixed)
    sums = torch.cat(mixed).sum(1)
    assert torch.allclose(sums, torch.ones(64), atol=1e-5) is (not isinstance(policy, SnapMix))
    assert run.epochs[-1]["train/loss"] > 0


def test_what_cannot_be_augmented(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="MapCutMix mixes labels, and the targets of auxiliary heads"):
        train(
            tmp_path / "a",
            augment=spile.Augmentation(at="0", policy=MapCutMix()),
            supervise=spile.Supervision(taps=["0"]),
        )
    with pytest.raises(AugmentationError, match="unknown policy 'bylevels': did you mean 'bylevel'"):
        train(tmp_path / "b", augment=spile.Augmentation(at="0", policy="bylevels"))
    floats = data()[0].transpose(0, 3, 1, 2).astype(np.float32), data()[1]
    with pytest.raises(TrainingError, match="augment= changes uint8 images"):
        train(tmp_path / "c", data=floats, augment=spile.Augmentation(at="0"))
    with pytest.raises(TrainingError, match=r"write spile.Augmentation\(at='layer3'"):
        train(tmp_path / "d", augment="bylevel:0")
