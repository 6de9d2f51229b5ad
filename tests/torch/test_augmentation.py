"""Policies and mixes on PyTorch pixels, with exact maps made by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from spile.augmentation import (
    AttentionCrop,
    AttentionDrop,
    AttentiveCutMix,
    Augmenter,
    Axis,
    ByLevel,
    Frame,
    Grid,
    Inside,
    KeepSalient,
    MapCutMix,
    Maps,
    Mix,
    Outside,
    Photometric,
    Policy,
    Quantile,
    SaliencyMix,
    SnapMix,
    TargetedCutout,
)
from spile.errors import AugmentationError
from spile.torch.augmentation import TorchCanvas

SIDE = 32
GRID = Grid(Axis(8, 4.0, 1.5), Axis(8, 4.0, 1.5))
FRAME = Frame.whole((SIDE, SIDE))


def corner(count: int = 4) -> np.ndarray:
    """Maps that are active in the top left quarter."""
    values = np.zeros((count, 8, 8), np.float32)
    values[:, :4, :4] = 1
    return values


class Given:
    """A guide that gives what it was given."""

    framework = "torch"
    fingerprint = "by hand"
    preprocessing = None

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, images: Any, labels: Any = None) -> Maps:
        count = len(images)
        return Maps(self.values[:count], (GRID,) * count, (FRAME,) * count)


def augmenter(policy: Policy, values: np.ndarray | None = None, **options: Any) -> Augmenter:
    return Augmenter(policy, Given(corner() if values is None else values), TorchCanvas(), **options)


def pictures(count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    pixels = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return (pixels * 255).round().to(torch.uint8) if dtype == torch.uint8 else pixels


IDS = ["a", "b", "c", "d"]
QUARTER = Quantile(0.75)
INVERT = v2.RandomInvert(1.0)


def changed(policy: Policy, images: Tensor, **options: Any) -> Tensor:
    result: Tensor = augmenter(policy, **options)(images, ids=IDS[: len(images)]).images
    return result


# ------------------------------------------------------------------------------------------- bands


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_inside_and_outside_change_their_part_alone(dtype: torch.dtype) -> None:
    images = pictures(dtype=dtype)
    inverse = 255 - images if dtype == torch.uint8 else 1 - images
    inside = changed(Inside(INVERT, QUARTER, soft=False), images)
    assert inside.dtype == dtype
    torch.testing.assert_close(inside[:, :, :16, :16], inverse[:, :, :16, :16])
    assert torch.equal(inside[:, :, 16:], images[:, :, 16:])
    outside = changed(Outside(INVERT, QUARTER, soft=False), images)
    assert torch.equal(outside[:, :, :16, :16], images[:, :, :16, :16])
    torch.testing.assert_close(outside[:, :, 16:], inverse[:, :, 16:])


def test_soft_edges_are_one_cell_wide() -> None:
    result = changed(Inside(Photometric(torch.zeros_like), QUARTER), torch.ones(1, 3, SIDE, SIDE))
    profile = result[0, 0, 4]
    assert not profile[:14].any()  # the centre of the last active cell is 13.5
    assert (profile[18:] == 1).all()
    assert ((profile[14:18] > 0) & (profile[14:18] < 1)).all()


def test_every_band_in_its_own_way() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 8, dtype=np.float32), (1, 8, 8)) + np.zeros(
        (1, 8, 1), np.float32
    )
    policy = ByLevel(
        Quantile(0.5, 0.75),
        low=Photometric(lambda x: x + 1),
        mid=Photometric(lambda x: x + 2),
        high=Photometric(lambda x: x + 3),
        soft=False,
    )
    result = changed(policy, torch.zeros(1, 3, SIDE, SIDE), values=ramp)[0, 0, 0]
    assert result.tolist() == [1.0] * 16 + [2.0] * 8 + [3.0] * 8


# ---------------------------------------------------------------------------- operations that move


@pytest.mark.parametrize(
    "operation",
    [
        v2.RandomHorizontalFlip(1.0),
        v2.RandomRotation(30, interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomAffine(0, translate=(0.2, 0.2)),
        v2.RandomResizedCrop(128, scale=(0.3, 1.0), antialias=True),
        v2.RandomPerspective(0.3, p=1.0),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_content_and_mask_move_together(operation: v2.Transform) -> None:
    """The image is its own mask: afterwards what is bright is still what is inside."""
    mask = np.zeros((1, 128, 128), np.float32)
    mask[0, 32:96, 48:112] = 1
    image = torch.from_numpy(mask).expand(3, -1, -1)
    for key in (1, 2, 5):  # not a turn of less than half a pixel
        done = TorchCanvas().operate(operation, image, mask, None, key)
        assert done.moved
        content, inside = done.image[0].numpy() > 0.5, done.masks[0] > 0.5
        assert inside.sum() > 30
        assert (content & inside).sum() / (content | inside).sum() >= 0.95


def test_a_flip_moves_the_sample_with_its_bands_and_targets() -> None:
    images = torch.zeros(1, 3, SIDE, SIDE)
    images[:, :, :16, :16] = 1  # bright where the map is active
    targets = [
        {
            "boxes": tv_tensors.BoundingBoxes([[0, 0, 16, 16]], format="XYXY", canvas_size=(SIDE, SIDE)),
            "mask": tv_tensors.Mask(images[0, :1].to(torch.uint8)),
            "points": tv_tensors.KeyPoints([[2, 5]], canvas_size=(SIDE, SIDE)),
            "name": "kept",
        }
    ]
    policy = Inside([v2.RandomHorizontalFlip(1.0), INVERT], QUARTER, soft=False)
    result = augmenter(policy)(images, ids=["a"], targets=targets)
    assert not result.images.any()  # flipped, then inverted where the active part now is
    assert result.targets[0]["boxes"].tolist() == [[16, 0, 32, 16]]
    assert torch.equal(result.targets[0]["mask"].as_subclass(Tensor), images[0, :1].flip(-1).to(torch.uint8))
    assert result.targets[0]["points"].tolist() == [[29, 5]]
    assert result.targets[0]["name"] == "kept"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boxes", torch.tensor([[0.0, 0, 10, 10]])),
        ("boxes", [[0, 0, 10, 10]]),
        ("bbox", np.array([0, 0, 10, 10])),
        ("masks", torch.zeros(2, 8, 8)),
        ("keypoints", torch.zeros(4, 2)),
        ("depth", torch.zeros(1, SIDE, SIDE)),
        ("objects", [{"bndbox": {"xmin": "0", "xmax": "10"}}]),
    ],
)
def test_targets_that_would_stay_are_refused_where_pixels_move(name: str, value: Any) -> None:
    targets = [{name: value, "number": 3}]
    words = "would stay where it is while the image moves: wrap"
    for policy in (Inside(v2.RandomHorizontalFlip(1.0), QUARTER), AttentionCrop(QUARTER)):
        with pytest.raises(AugmentationError, match=rf"target '(bndbox|{name})' {words}"):
            augmenter(policy)(pictures(1), ids=["a"], targets=targets)
    for policy in (Inside(INVERT, QUARTER), AttentionDrop(QUARTER)):
        assert augmenter(policy)(pictures(1), ids=["a"], targets=targets).targets == targets


def test_what_is_of_no_place_stays() -> None:
    boxes = tv_tensors.BoundingBoxes([[0, 0, 16, 16]], format="XYXY", canvas_size=(SIDE, SIDE))
    others = {
        "labels": torch.tensor([1]),
        "box_labels": torch.tensor([1]),
        "num_boxes": 1,
        "mask": None,
        "keypoints": [],
        "scores": torch.zeros(1, 5),
        "name": "a",
    }
    targets = [{"objects": [{"boxes": boxes, "label": 3}], **others}]
    moved = augmenter(Inside(v2.RandomHorizontalFlip(1.0), QUARTER))(pictures(1), ids=["a"], targets=targets)
    assert moved.targets[0]["objects"][0]["boxes"].tolist() == [[16, 0, 32, 16]]
    assert {name: moved.targets[0][name] for name in others} == others


def test_composed_transforms_are_taken_one_by_one() -> None:
    images = torch.zeros(1, 3, SIDE, SIDE)
    images[:, :, :16, :16] = 1
    for composed in (v2.Compose([v2.RandomHorizontalFlip(1.0), INVERT]),):
        assert not changed(Inside(composed, QUARTER, soft=False), images).any()
    mixed = v2.RandomApply([v2.RandomHorizontalFlip(1.0), INVERT])
    with pytest.raises(AugmentationError, match="list them one by one"):
        changed(Inside(mixed, QUARTER), images)


def test_photometric_transforms_leave_targets_alone() -> None:
    targets = [{"mask": tv_tensors.Mask(torch.ones(1, SIDE, SIDE))}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = augmenter(Inside([v2.ColorJitter(0.5), v2.RandomErasing(1.0)], QUARTER))(
            pictures(1), ids=["a"], targets=targets
        )
    assert result.targets[0]["mask"] is targets[0]["mask"]


@pytest.mark.parametrize("operation", [lambda x: x, torch.nn.ReLU()])
def test_what_is_not_known_not_to_move_pixels_is_refused(operation: Any) -> None:
    with pytest.raises(AugmentationError, match=r"wrap a function that does not, .*Photometric\(function\)"):
        changed(Inside(operation, QUARTER), pictures(1))


def test_rand_augment_is_for_pasting_back() -> None:
    with pytest.raises(AugmentationError, match=r"use it in spile\.augmentation\.KeepSalient"):
        changed(Inside(v2.RandAugment(), QUARTER), pictures(1, torch.uint8))
    images = pictures(dtype=torch.uint8)
    kept = changed(KeepSalient(v2.RandAugment(), QUARTER, soft=False), images)
    assert torch.equal(kept[:, :, :16, :16], images[:, :, :16, :16])
    assert not torch.equal(kept, images)
    with pytest.raises(AugmentationError, match="pass no targets"):
        augmenter(KeepSalient(INVERT))(images, ids=IDS, targets=[{}] * 4)


def test_an_operation_that_changes_the_size_is_refused() -> None:
    with pytest.raises(AugmentationError, match="give operations that keep the size"):
        changed(Inside(v2.Resize((8, 8)), QUARTER), pictures(1))
    with pytest.raises(AugmentationError, match="give operations that keep the size"):
        changed(Inside(Photometric(lambda x: x[:, :4]), QUARTER), pictures(1))


def darkened(pixels: Tensor) -> Tensor:
    return pixels.mul_(0)


@pytest.mark.parametrize(
    "operation", [Photometric(darkened), v2.RandomErasing(1.0, (0.5, 0.5), (1, 1), inplace=True)]
)
def test_an_operation_in_place_changes_its_band_alone(operation: Any) -> None:
    images = pictures(dtype=torch.uint8).clamp(min=1)
    given = images.clone()
    inside = changed(Inside(operation, QUARTER, soft=False), images)
    assert torch.equal(images, given)
    assert torch.equal(inside[:, :, 16:], given[:, :, 16:])
    assert not inside[:, :, :16, :16].all()
    kept = changed(KeepSalient(operation, QUARTER, soft=False), images)
    assert torch.equal(images, given)
    assert torch.equal(kept[:, :, :16, :16], given[:, :, :16, :16])


@pytest.mark.parametrize("policy", [Inside, KeepSalient])
def test_a_step_that_changes_the_type_is_refused(policy: Any) -> None:
    for operation in (v2.ToDtype(torch.float32, scale=True), Photometric(lambda pixels: pixels / 255)):
        with pytest.raises(AugmentationError, match=r"made torch\.float32 of an image of torch\.uint8"):
            changed(policy(operation, QUARTER), pictures(dtype=torch.uint8))


# -------------------------------------------------------------------------------------- other policies


def test_crop_shows_the_active_part() -> None:
    images = torch.zeros(1, 3, SIDE, SIDE)
    images[:, :, :16, :16] = 1
    boxes = tv_tensors.BoundingBoxes([[0, 0, 8, 16]], format="XYXY", canvas_size=(SIDE, SIDE))
    result = augmenter(AttentionCrop(QUARTER, margin=0))(images, ids=["a"], targets=[{"boxes": boxes}])
    torch.testing.assert_close(result.images, torch.ones_like(images))
    assert result.targets[0]["boxes"].tolist() == [[0, 0, 16, 32]]


@pytest.mark.parametrize("fill", ["mean", 0.25])
def test_drop_paints_the_active_part_over(fill: Any) -> None:
    images = pictures()
    result = changed(AttentionDrop(QUARTER, fill=fill), images)
    expected = images.mean((2, 3))[:, :, None, None] if fill == "mean" else torch.tensor(fill)
    torch.testing.assert_close(result[:, :, :16, :16], expected.expand(4, 3, 16, 16))
    assert torch.equal(result[:, :, :, 16:], images[:, :, :, 16:])


def test_cutout_hits_what_is_active() -> None:
    values = np.zeros((4, 8, 8), np.float32)
    values[:, 6, 1] = 1
    images = torch.ones(4, 3, SIDE, SIDE)
    for at in ("peak", "drawn"):
        result = changed(TargetedCutout((0.05, 0.05), at=at, fill=0.0), images, values=values)
        assert not result[:, :, 25, 5].any()
        assert (result == 0).float().mean() == pytest.approx(0.05, abs=0.015)


# ------------------------------------------------------------------------------------------------ mixes


@pytest.mark.parametrize("policy", [MapCutMix(), MapCutMix(at="peak"), SaliencyMix(), AttentiveCutMix()])
def test_labels_count_by_the_exact_share_of_pixels(policy: Mix) -> None:
    """Each image is of one grey, so that its pixels can be counted afterwards."""
    values = np.random.default_rng(0).random((16, 8, 8)).astype(np.float32)
    images = torch.arange(16, dtype=torch.uint8)[:, None, None, None].expand(16, 3, SIDE, SIDE) * 10
    for epoch in range(3):
        result = augmenter(policy, values, classes=16)(
            images, torch.arange(16), ids=[f"s{i}" for i in range(16)], epoch=epoch
        )
        counted = torch.stack(
            [(result.images[:, 0] == 10 * k).double().mean((1, 2)) for k in range(16)], dim=1
        )
        torch.testing.assert_close(result.labels.double(), counted, atol=1e-6, rtol=0)
        assert result.labels.dtype == torch.float32
    assert (counted.diagonal() < 1).any()


def test_mass_weighted_labels_sum_to_one_and_differ_from_area() -> None:
    values = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32) ** 4
    images, labels = pictures(), torch.arange(4)
    by_area, by_mass = (
        augmenter(MapCutMix(labels=kind), values, classes=4)(images, labels, ids=IDS).labels
        for kind in ("area", "mass")
    )
    torch.testing.assert_close(by_mass.sum(1), torch.ones(4))
    assert not torch.allclose(by_area, by_mass)


def test_snapmix_labels_are_semantic_and_not_normalised() -> None:
    values = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32) ** 4
    result = augmenter(SnapMix(), values, classes=4)(pictures(), torch.arange(4), ids=IDS)
    assert result.images.shape == (4, 3, SIDE, SIDE)
    assert not torch.allclose(result.labels.sum(1), torch.ones(4))
    assert (result.labels >= 0).all()


def test_the_patch_is_what_the_partner_s_map_names() -> None:
    values = np.zeros((2, 8, 8), np.float32)
    values[:, 2, 5] = 1
    images = torch.stack([torch.zeros(3, SIDE, SIDE), torch.ones(3, SIDE, SIDE)])
    result = augmenter(AttentiveCutMix(1 / 64), values, classes=2)(images, torch.arange(2), ids=["a", "b"])
    assert (result.images[0, 0, 8:12, 20:24] == 1).all()
    assert result.images[0, 0].sum() == 16


def test_labels_may_be_weights_already() -> None:
    soft = torch.tensor([[0.7, 0.3], [0.0, 1.0]])
    result = augmenter(MapCutMix())(pictures(2), soft, ids=["a", "b"])
    torch.testing.assert_close(result.labels.sum(1), torch.ones(2))


def test_a_column_of_labels_is_mixed_as_they_are() -> None:
    mix = augmenter(MapCutMix(), classes=4)
    plain = mix(pictures(), torch.arange(4), ids=IDS)
    assert torch.equal(mix(pictures(), torch.arange(4)[:, None], ids=IDS).labels, plain.labels)


def test_a_batch_of_none_is_mixed_to_none() -> None:
    images, labels, _ = augmenter(MapCutMix(), classes=3)(
        pictures()[:0], torch.zeros(0, dtype=torch.int64), ids=[]
    )
    assert images.shape == (0, 3, SIDE, SIDE)
    assert labels.shape == (0, 3)


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        (torch.eye(4), 5, r"labels are \[4, 4\] of float32: pass .*, or \(samples, 5\) weights"),
        (None, 4, "MapCutMix mixes labels: pass 4 of them"),
        (torch.arange(4), None, "how many classes there are: write classes=10"),
        (torch.arange(4), 3, r"labels lie in 0..3, and classes=3 allows 0..2"),
        (torch.arange(3), 4, "pass 4 of them"),
    ],
)
def test_labels_that_cannot_be_mixed(labels: Any, classes: int | None, words: str) -> None:
    with pytest.raises(AugmentationError, match=words):
        augmenter(MapCutMix(), classes=classes)(pictures(), labels, ids=IDS)


def test_a_mix_with_boxes_is_refused() -> None:
    with pytest.raises(AugmentationError, match="cannot be mixed"):
        augmenter(MapCutMix(), classes=4)(pictures(), torch.arange(4), ids=IDS, targets=[{}] * 4)


# ------------------------------------------------------------------------------------------ randomness

RANDOM: list[Policy] = [
    Inside([v2.ColorJitter(0.5, 0.5), v2.RandomHorizontalFlip()], QUARTER),
    TargetedCutout(),
    MapCutMix(),
    SnapMix(),
    Outside(v2.GaussianBlur(3), QUARTER, p=0.5),
]


@pytest.mark.parametrize("policy", RANDOM, ids=lambda policy: type(policy).__name__)
def test_a_permuted_batch_gives_the_permuted_result(policy: Policy) -> None:
    values = np.random.default_rng(0).random((6, 8, 8)).astype(np.float32)
    images, labels, ids = pictures(6), torch.arange(6), [f"s{i}" for i in range(6)]
    order = [3, 0, 5, 1, 4, 2]
    first = augmenter(policy, values, classes=6)(images, labels, ids=ids)
    other = augmenter(policy, values[order], classes=6)(
        images[order], labels[order], ids=[ids[i] for i in order]
    )
    assert torch.equal(first.images[order], other.images)
    assert torch.equal(first.labels[order], other.labels)


@pytest.mark.parametrize("policy", RANDOM[:2], ids=lambda policy: type(policy).__name__)
def test_identical_images_give_distinct_results(policy: Policy) -> None:
    images = pictures(1).expand(4, -1, -1, -1)
    result = changed(policy, images, values=np.ones((4, 8, 8), np.float32))
    assert len({row.numpy().tobytes() for row in result}) == 4


def test_seed_epoch_and_id_decide_and_the_caller_s_generator_does_not() -> None:
    policy = RANDOM[0]

    def run(seed: int = 0, epoch: int = 0, ids: list[str] = IDS) -> bytes:
        torch.rand(1)
        before = torch.get_rng_state()
        result = augmenter(policy, seed=seed)(pictures(), ids=ids, epoch=epoch).images
        assert torch.equal(torch.get_rng_state(), before)
        return result.numpy().tobytes()

    assert run() == run()
    assert len({run(), run(seed=1), run(epoch=1), run(ids=["e", "f", "g", "h"])}) == 4
    by_epoch = augmenter(policy)
    by_epoch.set_epoch(1)
    assert by_epoch(pictures(), ids=IDS).images.numpy().tobytes() == run(epoch=1)


def test_a_chance_leaves_some_samples_as_they_are() -> None:
    images = pictures(1).expand(64, -1, -1, -1)
    result = augmenter(Inside(INVERT, QUARTER, p=0.5), corner(64))(images, ids=range(64)).images
    same = sum(torch.equal(a, b) for a, b in zip(images, result, strict=True))
    assert 18 <= same <= 46


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ids": ["a"]}, "1 ids for 4 images"),
        ({"ids": IDS, "targets": [{}]}, "1 targets for 4 images"),
    ],
)
def test_one_of_each_a_sample(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AugmentationError, match=words):
        augmenter(Inside(INVERT))(pictures(), **options)


def test_a_map_of_another_picture_is_refused() -> None:
    maps = Maps(corner(1), (GRID,), (Frame.whole((64, 64)),))
    with pytest.raises(
        AugmentationError, match="a map is for a picture of 64 x 64 pixels, and the images have 32"
    ):
        augmenter(Inside(INVERT))(pictures(1), ids=["a"], maps=maps)


def test_images_in_another_form_are_refused() -> None:
    with pytest.raises(AugmentationError, match="takes tensors"):
        augmenter(Inside(INVERT))(np.zeros((2, 32, 32, 3), np.uint8), ids=["a", "b"])
