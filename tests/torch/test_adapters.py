"""Operations of Kornia and Albumentations: masks, boxes and points go with the pixels, seeded by spile."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from spile.augmentation import Augmenter, Axis, Frame, Grid, Inside, KeepSalient, Maps, Quantile
from spile.errors import AugmentationError
from spile.torch.augmentation import TorchCanvas

SIDE = 32
GRID = Grid(Axis(8, 4.0, 1.5), Axis(8, 4.0, 1.5))
QUARTER = Quantile(0.75)
IDS = ["a", "b", "c", "d"]
LIBRARIES = ("kornia", "albumentations")

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version


def operations(library: str) -> dict[str, Any]:
    if library == "kornia":
        K = pytest.importorskip("kornia.augmentation")
        return {
            "flip": K.RandomHorizontalFlip(p=1.0),
            "moving": [
                K.RandomHorizontalFlip(p=1.0),
                K.RandomAffine(20.0, translate=(0.15, 0.15), p=1.0),
                K.RandomPerspective(0.3, p=1.0),
            ],
            "colour": K.ColorJiggle(0.3, 0.3, 0.3, 0.1, p=1.0),
            "several": K.AugmentationSequential(K.RandomHorizontalFlip(p=1.0), K.RandomInvert(p=1.0)),
            "invert": K.RandomInvert(p=1.0),
            "drawn": K.AugmentationSequential(K.RandomInvert(), K.RandomHorizontalFlip(), random_apply=1),
            "any": K.auto.RandAugment(n=2, m=10),
        }
    A = pytest.importorskip("albumentations")
    return {
        "flip": A.HorizontalFlip(p=1.0),
        "moving": [
            A.HorizontalFlip(p=1.0),
            A.Affine(rotate=(15, 30), p=1.0),
            A.Perspective((0.1, 0.2), p=1.0),
        ],
        "colour": A.ColorJitter((0.5, 0.9), (0.5, 0.9), p=1.0),
        "several": A.Compose([A.HorizontalFlip(p=1.0), A.InvertImg(p=1.0)]),
        "invert": A.InvertImg(p=1.0),
        "drawn": A.SomeOf([A.InvertImg(), A.HorizontalFlip()], n=1),
        "any": A.SomeOf([A.InvertImg(p=1.0), A.HorizontalFlip(p=1.0)], n=1),
    }


class Corner:
    """A guide that finds the top left quarter active."""

    framework = "torch"
    fingerprint = "by hand"
    preprocessing = None

    def __call__(self, images: Any, labels: Any = None) -> Maps:
        values = np.zeros((len(images), 8, 8), np.float32)
        values[:, :4, :4] = 1
        frame = Frame.whole((SIDE, SIDE))
        return Maps(values, (GRID,) * len(images), (frame,) * len(images))


def augmenter(policy: Any) -> Augmenter:
    return Augmenter(policy, Corner(), TorchCanvas())


def pictures(dtype: torch.dtype = torch.uint8) -> Tensor:
    pixels = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return (pixels * 255).round().to(torch.uint8) if dtype == torch.uint8 else pixels


@pytest.mark.parametrize("library", LIBRARIES)
def test_content_and_mask_move_together(library: str) -> None:
    mask = np.zeros((1, 128, 128), np.float32)
    mask[0, 32:96, 48:112] = 1
    image = torch.from_numpy(mask).expand(3, -1, -1)
    for operation in operations(library)["moving"]:
        for key in (1, 2, 5):
            done = TorchCanvas().operate(operation, image, mask, None, key)
            assert done.moved, operation
            content, inside = done.image[0].numpy() > 0.5, done.masks[0] > 0.5
            assert inside.sum() > 30
            assert (content & inside).sum() / (content | inside).sum() >= 0.95, operation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("library", LIBRARIES)
def test_targets_go_where_those_of_torchvision_go(library: str, dtype: torch.dtype) -> None:
    size = (SIDE, SIDE)
    images = pictures(dtype)[:1]
    targets = {
        "boxes": tv_tensors.BoundingBoxes([[0, 0, 16, 12], [4, 6, 8, 9]], format="XYWH", canvas_size=size),
        "mask": tv_tensors.Mask(torch.arange(SIDE * SIDE).reshape(1, SIDE, SIDE) % 7),
        "flat": tv_tensors.Mask(torch.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 5),
        "points": tv_tensors.KeyPoints([[2, 5], [30, 1]], canvas_size=size),
        "name": "kept",
    }
    found, expected = (
        augmenter(Inside([flip], QUARTER, soft=False))(images, ids=["a"], targets=[targets])
        for flip in (operations(library)["flip"], v2.RandomHorizontalFlip(1.0))
    )
    torch.testing.assert_close(found.images, expected.images)
    for name in ("boxes", "mask", "flat", "points"):
        got, wanted = found.targets[0][name], expected.targets[0][name]
        assert type(got) is type(wanted)
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got.as_subclass(Tensor), wanted.as_subclass(Tensor))
    assert found.targets[0]["boxes"].format == targets["boxes"].format
    assert found.targets[0]["name"] == "kept"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_box_that_leaves_the_picture_is_no_other_s(library: str) -> None:
    """Whatever a library does with such boxes, the ones that stay keep their places in the list."""
    A = pytest.importorskip("albumentations")
    K = pytest.importorskip("kornia.augmentation")
    shift = (
        K.RandomTranslate(translate_x=(0.5, 0.5), p=1.0)
        if library == "kornia"
        else A.Affine(translate_px={"x": (16, 16), "y": 0}, p=1.0)
    )
    boxes = tv_tensors.BoundingBoxes(
        [[20, 4, 30, 10], [2, 4, 8, 10]], format="XYXY", canvas_size=(SIDE, SIDE)
    )
    policy = Inside([shift], QUARTER)
    found = augmenter(policy)(pictures()[:1], ids=["a"], targets=[{"boxes": boxes}]).targets[0]["boxes"]
    assert len(found) == 2
    np.testing.assert_allclose(found[1].numpy(), [18, 4, 24, 10], atol=1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_colour_changes_its_band_alone(library: str) -> None:
    made, images = operations(library), pictures()
    for operation in (made["colour"], made["invert"]):
        targets = [{"mask": tv_tensors.Mask(torch.ones(1, SIDE, SIDE))}] * 4
        found = augmenter(Inside(operation, QUARTER, soft=False))(images, ids=IDS, targets=targets)
        assert torch.equal(found.images[:, :, 16:], images[:, :, 16:])
        assert not torch.equal(found.images[:, :, :16, :16], images[:, :, :16, :16])
        assert found.targets[0]["mask"] is targets[0]["mask"]
    inverse = augmenter(Inside(made["invert"], QUARTER, soft=False))(images, ids=IDS).images
    torch.testing.assert_close(inverse[:, :, :16, :16], 255 - images[:, :, :16, :16])
    both = augmenter(Inside(made["several"], QUARTER, soft=False))(images, ids=IDS).images
    flipped = images.flip(-1)
    torch.testing.assert_close(both[:, :, :16, 16:], 255 - flipped[:, :, :16, 16:])
    assert torch.equal(both[:, :, 16:], flipped[:, :, 16:])


@pytest.mark.parametrize("library", LIBRARIES)
def test_seed_epoch_and_id_decide_and_the_caller_s_generators_do_not(library: str) -> None:
    operation = operations(library)["moving"][1]
    change, images = augmenter(Inside([operation], QUARTER)), pictures()[:1].repeat(4, 1, 1, 1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = change(images, ids=IDS, epoch=0).images
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    torch.rand(3), np.random.random(3), random.random()
    assert torch.equal(change(images, ids=IDS, epoch=0).images, first)
    assert torch.equal(change(images, ids=IDS[::-1], epoch=0).images, first.flip(0))
    assert not torch.equal(change(images, ids=IDS, epoch=1).images, first)
    assert len({each.numpy().tobytes() for each in first}) == 4


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_does_not_say_where_pixels_go_is_for_pasting_back(library: str) -> None:
    made, images = operations(library), pictures()
    with pytest.raises(AugmentationError, match="list them one by one"):
        augmenter(Inside(made["drawn"], QUARTER))(images, ids=IDS)
    if library == "kornia":
        with pytest.raises(AugmentationError, match=r"use it in spile\.augmentation\.KeepSalient"):
            augmenter(Inside(made["any"], QUARTER))(images, ids=IDS)
        kept = augmenter(KeepSalient(made["any"], QUARTER, soft=False))(images, ids=IDS).images
    else:
        kept = augmenter(KeepSalient(made["flip"], QUARTER, soft=False))(images, ids=IDS).images
    assert torch.equal(kept[:, :, :16, :16], images[:, :, :16, :16])
    assert not torch.equal(kept, images)


def test_kornia_leaves_points_behind_under_some_operations() -> None:
    K = pytest.importorskip("kornia.augmentation")
    images = pictures()[:1]
    points = [{"points": tv_tensors.KeyPoints([[2, 5]], canvas_size=(SIDE, SIDE))}]
    with pytest.raises(
        AugmentationError, match="leaves boxes and keypoints where they are under RandomElastic"
    ):
        augmenter(Inside(K.RandomElasticTransform(p=1.0)))(images, ids=["a"], targets=points)
    with pytest.raises(AugmentationError, match="RandomThinPlateSpline does not say where it moves pixels"):
        augmenter(Inside(K.RandomThinPlateSpline(p=1.0)))(images, ids=["a"])
    erased = augmenter(Inside(K.RandomErasing((0.5, 0.6), p=1.0), QUARTER, soft=False))(
        images, ids=["a"]
    ).images
    assert torch.equal(erased[:, :, 16:], images[:, :, 16:])  # its own mask is not taken for a movement
    assert not torch.equal(erased, images)


def test_albumentations_that_change_the_type_are_refused() -> None:
    A = pytest.importorskip("albumentations")
    images = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    for policy in (Inside, KeepSalient):
        with pytest.raises(
            AugmentationError, match=r"ToFloat made torch\.float32 of an image of torch\.uint8"
        ):
            augmenter(policy(A.ToFloat(max_value=255), QUARTER))(images, ids=["a"])


@pytest.mark.parametrize("library", LIBRARIES)
def test_targets_that_would_stay_are_refused(library: str) -> None:
    flip = operations(library)["flip"]
    mask = tv_tensors.Mask(torch.zeros(1, SIDE, SIDE))
    for target in ({"masks": torch.zeros(1, SIDE, SIDE)}, {"objects": [{"masks": mask}]}):
        with pytest.raises(AugmentationError, match="would stay where it is while the image moves: wrap"):
            augmenter(Inside(flip, QUARTER))(torch.zeros(1, 3, SIDE, SIDE), ids=["a"], targets=[target])
