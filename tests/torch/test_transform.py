"""One sample at a time, for datasets: `transform=augment.transform`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import spile
from spile.augmentation import (
    AttentionCrop,
    Augmenter,
    ByLevel,
    Frame,
    Inside,
    KeepSalient,
    MapCutMix,
    Quantile,
)
from spile.errors import AugmentationError

SEEN = spile.ImagePreprocessing(crop=(32, 32))
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8))


def made(policy: Any = None, **options: Any) -> Augmenter:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1))
    guide = spile.guide(model, "0", preprocessing=SEEN, example=(1, 3, 32, 32))
    return spile.augment(guide, policy or ByLevel(Quantile(0.5), low=v2.ColorJitter(0.5)), **options)


class Photos(Dataset[Any]):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(IMAGES[number])  # type: ignore[no-any-return]


def epochs(augmenter: Augmenter, workers: int) -> list[Tensor]:
    loader = DataLoader(Photos(augmenter.transform), 2, num_workers=workers, persistent_workers=workers > 0)
    found = []
    for epoch in (0, 1, 0):
        augmenter.set_epoch(epoch)
        found.append(torch.cat(list(loader)))
    return found


def test_workers_that_live_on_see_the_epoch() -> None:
    alone = epochs(made(), 0)
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(alone[0], alone[2])
    assert all(torch.equal(a, b) for a, b in zip(alone, epochs(made(), 1), strict=True))


def test_it_is_what_a_batch_gets() -> None:
    augment = made(seed=3)
    batch = augment(IMAGES, ids=range(6), epoch=0).images
    assert all(torch.equal(augment.transform(IMAGES[i], id=i), batch[i]) for i in range(6))
    first = augment.transform(IMAGES[0])
    assert torch.equal(augment.transform(IMAGES[0].clone()), first)  # by its pixels
    assert not torch.equal(augment.transform(IMAGES[0], id="another"), first)


def test_pictures_come_back_as_they_came() -> None:
    augment = made()
    for mode in ("RGB", "L"):
        picture = Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).convert(mode)
        changed = made(Inside(v2.RandomInvert(1.0), Quantile(0.5))).transform(picture)
        assert isinstance(changed, Image.Image)
        assert (changed.mode, changed.size) == (mode, (32, 32))
        assert changed.tobytes() != picture.tobytes()
    assert torch.equal(
        v2.functional.pil_to_tensor(augment.transform(v2.functional.to_pil_image(IMAGES[0]))),
        augment.transform(IMAGES[0]),
    )


@pytest.mark.parametrize("mode", ["P", "RGBA", "1", "LA"])
def test_pictures_of_other_modes_are_refused(mode: str) -> None:
    picture = Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).convert(mode)
    with pytest.raises(AugmentationError, match=rf"mode '{mode}': .*image\.convert\(\"RGB\"\)"):
        made().transform(picture)


def test_targets_move_along_and_labels_stay() -> None:
    augment = made(Inside([v2.RandomHorizontalFlip(1.0)], Quantile(0.5)))
    boxes = tv_tensors.BoundingBoxes([[0, 0, 8, 8]], format="XYXY", canvas_size=(32, 32))
    image, target = augment.transform(IMAGES[0], {"boxes": boxes, "label": 3})
    assert torch.equal(image, IMAGES[0].flip(-1))
    assert target["boxes"].tolist() == [[24, 0, 32, 8]]
    assert target["label"] == 3
    assert augment.transform(IMAGES[0], 7)[1] == 7


def test_a_mask_alone_moves_along() -> None:
    augment = made(Inside([v2.RandomHorizontalFlip(1.0)], Quantile(0.5)))
    mask = tv_tensors.Mask(torch.arange(32).expand(32, 32).clone())
    image, moved = augment.transform(IMAGES[0], mask, id=0)
    assert torch.equal(image, IMAGES[0].flip(-1))
    assert isinstance(moved, tv_tensors.Mask)
    assert torch.equal(moved.as_subclass(Tensor), mask.flip(-1).as_subclass(Tensor))


MASK = np.zeros((32, 32), np.uint8)


@pytest.mark.parametrize(
    "target",
    [
        Image.fromarray(MASK),
        MASK,
        torch.from_numpy(MASK),
        [{"bbox": [0, 0, 8, 8]}],
        (3, Image.fromarray(MASK)),
    ],
    ids=["pillow", "array", "tensor", "annotations", "tuple"],
)
def test_a_target_that_would_stay_is_refused_where_pixels_move(target: Any) -> None:
    for policy in (Inside([v2.RandomHorizontalFlip(1.0)], Quantile(0.5)), AttentionCrop()):
        with pytest.raises(AugmentationError, match="would stay where it is while the image moves: wrap"):
            made(policy).transform(IMAGES[0], target, id=0)
    assert made().transform(IMAGES[0], target, id=0)[1] is target


@pytest.mark.parametrize("label", [(3, "cat"), np.eye(10)[3], torch.tensor(3), [1, 2]])
def test_labels_are_no_targets(label: Any) -> None:
    moving = Inside([v2.RandomHorizontalFlip(1.0)], Quantile(0.5))
    for policy in (moving, KeepSalient(v2.RandomInvert(1.0))):
        assert made(policy).transform(IMAGES[0], label, id=0)[1] is label


def test_kept_maps_need_the_frame_and_the_id() -> None:
    guide = made().source
    bank = spile.MapBank(guide)
    frame = Frame.whole((32, 32))
    bank.update(["a"], guide(IMAGES[:1]))
    augment = spile.augment(bank, ByLevel(Quantile(0.5), low=v2.ColorJitter(0.5)))
    assert torch.equal(augment.transform(IMAGES[0], id="a", frame=frame), made().transform(IMAGES[0], id="a"))
    with pytest.raises(AugmentationError, match="pass frames="):
        augment.transform(IMAGES[0], id="a")


def test_a_mix_takes_another_sample() -> None:
    with pytest.raises(
        AugmentationError, match=r"MapCutMix takes another sample too: use collate, or spile\.feed"
    ):
        made(MapCutMix()).transform(IMAGES[0])
