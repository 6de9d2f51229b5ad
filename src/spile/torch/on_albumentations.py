"""Operations of Albumentations on one sample: images, masks, boxes and keypoints under one transformation."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import albumentations
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from spile.errors import AugmentationError

_SEEDS = 2**32


def steps(operation: Any) -> list[Any]:
    """The operations of a sequence one by one."""
    if isinstance(operation, (albumentations.Compose, albumentations.Sequential)):
        if operation.p < 1:
            raise AugmentationError(
                f"{type(operation).__name__} has p={operation.p}, a chance of all at once: list its "
                "operations one by one, each with its own chance"
            )
        return [step for each in operation.transforms for step in steps(each)]
    if isinstance(operation, (albumentations.SomeOf, albumentations.RandomOrder)):
        raise AugmentationError(
            f"{type(operation).__name__} does several operations of which some may move pixels and some not: "
            "list them one by one, each with its own chance"
        )
    return [operation]


def changed(
    operation: Any, image: Tensor, planes: Tensor, targets: Any, key: int
) -> tuple[Tensor, Tensor, Any]:
    """Image, planes (k, height, width) and targets afterwards; random numbers are made of `key`."""
    if isinstance(operation, albumentations.ImageOnlyTransform):
        return repainted(operation, image, key), planes, targets
    held = {name: v for name, v in (targets or {}).items() if isinstance(v, tv_tensors.TVTensor)}
    masks, boxes, points = list(planes.cpu().numpy()), [], []
    for value in held.values():
        if isinstance(value, tv_tensors.Mask):
            masks += list(_planes(value))
        elif isinstance(value, tv_tensors.BoundingBoxes):
            boxes.append(_corners(value))
        else:
            points.append(value.as_subclass(Tensor).float().cpu().numpy())
    given: dict[str, Any] = {"masks": masks}
    given |= {"bboxes": np.concatenate(boxes)} if boxes else {}
    given |= {"keypoints": np.concatenate(points)} if points else {}
    left = [name for name in given if name not in operation.available_keys]
    if left:
        raise AugmentationError(
            f"Albumentations leaves {' and '.join(left)} where they are under {type(operation).__name__}: "
            "take another operation, or KeepSalient, which pastes the region back"
        )
    done = _run(operation, key, image=_pixels(image), **given)
    corners = np.zeros_like(given.get("bboxes", np.zeros((0, 4))))  # a box that left the picture is empty
    stayed = [int(number) for number in done.get("numbers", ())]
    corners[stayed] = np.reshape(done.get("bboxes", ()), (-1, 4))
    rest = {
        "masks": list(done["masks"])[len(planes) :],
        "boxes": list(corners),
        "points": list(done.get("keypoints", ())),
    }
    moved = None if targets is None else dict(targets)
    for name, value in held.items():
        assert moved is not None
        moved[name] = _put_back(rest, value)
    first = np.stack(list(done["masks"])[: len(planes)])
    return _tensor(done["image"], image), torch.from_numpy(np.ascontiguousarray(first)), moved


def repainted(operation: Any, image: Tensor, key: int) -> Tensor:
    """The image alone afterwards."""
    return _tensor(_run(operation, key, image=_pixels(image))["image"], image)


def _run(operation: Any, key: int, **given: Any) -> dict[str, Any]:
    composed = _composed(operation, "bboxes" in given, "keypoints" in given)
    composed.set_random_seed(key % _SEEDS)
    if "bboxes" in given:
        given["numbers"] = list(range(len(given["bboxes"])))
    found: dict[str, Any] = composed(**given)
    return found


@lru_cache(maxsize=64)
def _composed(operation: Any, boxes: bool, points: bool) -> Any:
    """A copy, whose random state is ours to set."""
    return albumentations.Compose(
        [copy.deepcopy(operation)],
        bbox_params=albumentations.BboxParams("pascal_voc", label_fields=["numbers"]) if boxes else None,
        keypoint_params=albumentations.KeypointParams("xy", remove_invisible=False) if points else None,
    )


def _pixels(image: Tensor) -> Any:
    """(height, width, channels)."""
    pixels = image if image.dtype == torch.uint8 else image.float()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def _tensor(pixels: Any, like: Tensor) -> Tensor:
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    made = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    same = made.is_floating_point() == like.is_floating_point()  # of other numbers the caller tells
    return made.to(like.device, like.dtype if same else made.dtype)


def _planes(value: Tensor) -> Any:
    masks = value.as_subclass(Tensor).float().cpu().numpy()
    return masks[None] if masks.ndim == 2 else masks


def _corners(value: Any) -> Any:
    boxes = functional.convert_bounding_box_format(value, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    return boxes.as_subclass(Tensor).float().cpu().numpy()


def _put_back(rest: dict[str, list[Any]], before: Any) -> Any:
    """The next of what was done that stands for `before`."""
    if isinstance(before, tv_tensors.Mask):
        count = 1 if before.ndim == 2 else len(before)
        found, rest["masks"] = rest["masks"][:count], rest["masks"][count:]
        return tv_tensors.Mask(torch.from_numpy(np.stack(found)).reshape(before.shape).to(before.dtype))
    kind = "boxes" if isinstance(before, tv_tensors.BoundingBoxes) else "points"
    found, rest[kind] = rest[kind][: len(before)], rest[kind][len(before) :]
    made = torch.from_numpy(np.asarray(found, np.float32).reshape(before.shape))
    made = (made if before.is_floating_point() else made.round()).to(before.dtype)
    if kind == "points":
        return tv_tensors.wrap(made, like=before)
    boxes = tv_tensors.BoundingBoxes(made, format="XYXY", canvas_size=before.canvas_size)
    return functional.convert_bounding_box_format(boxes, new_format=before.format)
