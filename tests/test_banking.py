"""Kept maps lie in their source: crops and flips are replayed, and what is not known is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spile
from spile.augmentation import Axis, Crop, Frame, Grid, Maps, cut_from
from spile.augmentation.randomness import Draw
from spile.banking import MapBank, whole_frame
from spile.errors import AugmentationError, FingerprintMismatch, StoreError
from spile.feeding import cut

SEEN = spile.ImagePreprocessing(resize=32, crop=(32, 32), mean=(0.0,), std=(1.0,))


class Brightness(nn.Module):
    """A map that is the image's brightness in blocks of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        nn.init.constant_(self.pool.weight, 1 / 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x)


def guide(**options: Any) -> Any:
    return spile.guide(Brightness(), "pool", preprocessing=SEEN, example=(1, 3, 32, 32), **options)


def blob(height: int, width: int, row: int, column: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[max(0, row - 12) : row + 12, max(0, column - 12) : column + 12] = 255
    return image


IMAGES = [blob(64, 96, 20, 30), blob(64, 96, 40, 60), blob(96, 64, 30, 20), blob(80, 80, 60, 60)]


@pytest.fixture
def bank() -> MapBank:
    return MapBank(guide()).fill(IMAGES)


def test_maps_follow_random_crops_and_flips(bank: MapBank) -> None:
    """A cached map belongs to its frame: in any crop, what is active is what is bright."""
    agreements = []
    for epoch in range(6):
        for number, image in enumerate(IMAGES):
            one = bank_ids()[number]
            frame = Crop((48, 48), scale=(0.5, 0.9)).frame(image.shape[:2], Draw(0, epoch), one)
            bright = cut(image, frame)[:, :, 0] > 127
            active = bank.maps([one], [frame]).on_pixels()[0] > 0.5
            # the guide saw a square in the middle only
            seen = bank._kept[one][1].seen
            if bright.any() and seen.covers(frame) > 0.85:
                agreements.append((bright & active).sum() / (bright | active).sum())
    assert len(agreements) >= 6
    assert min(agreements) > 0.6
    assert np.mean(agreements) > 0.75


def bank_ids() -> list[str]:
    return [record.id for record in spile.data.open_source(IMAGES).records]


def test_an_unknown_id_and_an_unknown_geometry_are_refused(bank: MapBank) -> None:
    with pytest.raises(AugmentationError, match=r"no map is kept for 'nowhere'; there are 4, e.g. "):
        bank.maps(["nowhere"], [Frame.whole((64, 96))])
    with pytest.raises(
        AugmentationError, match="is of a source of 64 x 96 pixels, and the frame is a cut of 96 x 64"
    ):
        bank.maps(bank_ids()[:1], [Frame.whole((96, 64))])
    augment = spile.augment(bank, spile.augmentation.TargetedCutout())
    with pytest.raises(AugmentationError, match="pass frames=, how each image was cut"):
        augment(torch.zeros(1, 3, 32, 32), ids=bank_ids()[:1])


def test_a_bank_on_disk_is_the_same_and_another_guide_s_is_refused(tmp_path: Path) -> None:
    made = MapBank(guide(), tmp_path / "maps.lance").fill(IMAGES, epoch=2)
    again = MapBank(guide(), tmp_path / "maps.lance")
    frames = [Frame.whole(image.shape[:2], (32, 32)) for image in IMAGES]
    np.testing.assert_array_equal(again.maps(bank_ids(), frames).values, made.maps(bank_ids(), frames).values)
    assert (len(again), again.epoch) == (4, 2)
    assert again.maps(bank_ids(), frames).grids == made.maps(bank_ids(), frames).grids
    with pytest.raises(FingerprintMismatch, match="made by another guide"):
        MapBank(guide(reduce="max"), tmp_path / "maps.lance")
    (
        spile.extract(
            spile.tap(Brightness(), "pool", pool="avg", example=(1, 3, 32, 32)),
            np.zeros((2, 3, 32, 32), np.float32),
            tmp_path / "feats.lance",
            progress=False,
        )
    )
    with pytest.raises(StoreError, match="holds no maps"):
        MapBank(guide(), tmp_path / "feats.lance")


def test_kept_and_live_maps_are_the_same() -> None:
    image = IMAGES[3]
    bank = MapBank(guide()).fill([image])
    frame = whole_frame((80, 80), SEEN)
    pixels = spile.data.images.apply(image, SEEN)
    live = guide()(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
    one = spile.data.open_source([image]).records[0].id
    kept = bank.maps([one], [frame])
    np.testing.assert_array_equal(kept.values, live.values)
    np.testing.assert_allclose(kept.on_pixels(), live.on_pixels(), atol=1e-5)


def test_maps_of_the_training_model_s_own_pass_serve_the_next_epoch() -> None:
    bank = MapBank(guide(), refresh=2)
    assert bank.due(0)
    crop = Frame(source=(64, 96), top=0, left=0, height=64, width=64, size=(32, 32), flipped=True)
    picture = torch.from_numpy(cut(IMAGES[0], crop).copy()).permute(2, 0, 1)[None]
    bank.update(["a"], cut_from(guide()(picture), [crop]), epoch=0)
    assert not bank.due(1)
    assert bank.due(2)
    whole = bank.maps(["a"], [Frame.whole((64, 96))]).on_pixels()[0]
    bright = IMAGES[0][:, :, 0] > 127
    assert (bright & (whole > 0.5)).sum() / (bright | (whole > 0.5)).sum() > 0.75
    beyond = Frame(source=(64, 96), top=0, left=70, height=20, width=20, size=(32, 32))
    assert not bank.maps(["a"], [beyond]).values.any()  # nothing is known there


def test_a_bank_without_refresh_is_due_once() -> None:
    bank = MapBank(guide())
    assert bank.due(5)
    bank.fill(IMAGES)
    assert not bank.due(100)
    with pytest.raises(AugmentationError, match="refresh=0"):
        MapBank(guide(), refresh=0)


def test_filling_needs_the_guide_s_preprocessing() -> None:
    bare = spile.guide(Brightness(), "pool", given="ready", example=(1, 3, 32, 32))
    with pytest.raises(AugmentationError, match="filling a bank from data needs the guide's preprocessing"):
        MapBank(bare).fill(IMAGES)


def test_the_grid_is_that_of_the_source() -> None:
    values = np.zeros((1, 8, 8), np.float32)
    grid = Grid(Axis(8, 4.0, 1.5), Axis(8, 4.0, 1.5))
    made = cut_from(Maps(values, (grid,), (Frame.whole((32, 32)),)), [whole_frame((64, 96), SEEN)])
    assert made.grids[0].rows.stride == 8
    assert made.grids[0].rows.first == pytest.approx(3.5)
    assert made.grids[0].columns.first == pytest.approx(16 + 3.5)
