"""Operations of Kornia on one sample: images, masks, boxes and keypoints under one transformation."""

from __future__ import annotations

from typing import Any

import torch
from kornia.augmentation import (
    AugmentationBase2D,
    AugmentationSequential,
    ImageSequential,
    IntensityAugmentationBase2D,
    RigidAffineAugmentationBase2D,
)
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from spile.errors import AugmentationError

_EDGE = 0.5
"""Kornia moves boxes as it moves pixels' centres; torchvision's are of pixels' edges, half a pixel apart."""


def steps(operation: Any) -> list[Any]:
    """The operations of a sequence one by one."""
    if type(operation) in (AugmentationSequential, ImageSequential):
        if operation.random_apply:
            raise AugmentationError(
                f"{type(operation).__name__} draws which of its operations are done, of which some may move "
                "pixels and some not: list them one by one, each with its own chance"
            )
        return [step for each in operation.children() for step in steps(each)]
    return [operation]


def changed(operation: Any, image: Tensor, planes: Tensor, targets: Any) -> tuple[Tensor, Tensor, Any]:
    """The image, the planes (k, height, width) and the targets afterwards; random numbers are PyTorch's."""
    if isinstance(operation, IntensityAugmentationBase2D):  # RandomErasing would erase masks
        return repainted(operation, image), planes, targets
    if not isinstance(operation, AugmentationBase2D):
        raise _unknown(operation)
    kinds, values, names = ["input", "mask"], [_as_float(image), planes[None]], []
    for name, value in (targets or {}).items():
        if isinstance(value, tv_tensors.TVTensor):
            kind, given = _as_kornia(value)
            if kind != "mask" and not isinstance(operation, RigidAffineAugmentationBase2D):
                raise AugmentationError(
                    f"Kornia leaves boxes and keypoints where they are under {type(operation).__name__}: "
                    "take another operation, or pass none"
                )
            kinds.append(kind)
            values.append(given)
            names.append(name)
    try:
        done = AugmentationSequential(operation, data_keys=kinds)(*values)
    except NotImplementedError as error:  # of masks under some
        raise _unknown(operation) from error
    moved = dict(targets) if targets is not None else None
    for name, value in zip(names, done[2:], strict=True):
        assert moved is not None
        moved[name] = _as_torchvision(value, moved[name])
    return _as_before(done[0], image), done[1][0], moved


def repainted(operation: Any, image: Tensor) -> Tensor:
    """The image alone afterwards."""
    return _as_before(operation(_as_float(image)), image)


def _unknown(operation: Any) -> AugmentationError:
    return AugmentationError(
        f"{type(operation).__name__} does not say where it moves pixels to: use it in "
        "spile.augmentation.KeepSalient, which pastes the region back"
    )


def _as_float(image: Tensor) -> Tensor:
    """(1, channels, height, width), pixels from 0 to 1."""
    return (image / 255 if image.dtype == torch.uint8 else image.float())[None]


def _as_before(made: Tensor, image: Tensor) -> Tensor:
    if image.dtype != torch.uint8:
        return made[0].to(image.dtype)
    return (made[0] * 255).round().clamp(0, 255).to(torch.uint8)


def _as_kornia(value: Any) -> tuple[str, Tensor]:
    if isinstance(value, tv_tensors.BoundingBoxes):
        boxes = functional.convert_bounding_box_format(value, new_format=tv_tensors.BoundingBoxFormat.XYXY)
        return "bbox_xyxy", boxes.as_subclass(Tensor).float()[None] - _EDGE
    if isinstance(value, tv_tensors.KeyPoints):
        return "keypoints", value.as_subclass(Tensor).float()[None]
    masks = value.as_subclass(Tensor).float()
    return "mask", masks[None, None] if masks.ndim == 2 else masks[None]


def _as_torchvision(made: Tensor, before: Any) -> Any:
    if isinstance(before, tv_tensors.Mask):
        return tv_tensors.Mask(made.reshape(before.shape).to(before.dtype))
    made = made[0] if isinstance(before, tv_tensors.KeyPoints) else made[0] + _EDGE
    made = (made if before.is_floating_point() else made.round()).to(before.dtype)
    if isinstance(before, tv_tensors.KeyPoints):
        return tv_tensors.wrap(made, like=before)
    boxes = tv_tensors.BoundingBoxes(made, format="XYXY", canvas_size=before.canvas_size)
    return functional.convert_bounding_box_format(boxes, new_format=before.format)
