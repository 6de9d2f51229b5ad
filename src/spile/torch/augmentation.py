"""The pixels of `spile.augment` on PyTorch: images (n, channels, height, width), uint8 or float."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from spile.augmentation.boxes import Box
from spile.augmentation.canvas import (
    Array,
    Operated,
    check_mode,
    check_same_size,
    is_picture,
    leaves,
    left_behind,
    not_images,
)
from spile.augmentation.policies import Photometric
from spile.errors import AugmentationError


class TorchCanvas:
    """See `spile.augmentation.canvas.Canvas`."""

    framework = "torch"

    def size(self, images: Any) -> tuple[int, int]:
        """Height and width of every image."""
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise not_images("PyTorch augmenter", "tensors (n, channels, height, width)", images)
        return int(images.shape[2]), int(images.shape[3])

    def count(self, images: Any) -> int:
        """How many."""
        return len(images)

    def split(self, images: Any) -> list[Any]:
        """One image each."""
        return list(images.detach())

    def joined(self, images: Sequence[Any], like: Any) -> Any:
        """The batch again."""
        for image in images:
            check_same_size(image, like[0])
        return torch.stack([image.to(like.dtype) for image in images]) if images else like

    def opened(self, image: Any) -> tuple[Any, Callable[[Any], Any]]:
        """One image as a tensor (channels, height, width), and the way back."""
        if isinstance(image, Tensor):
            return image.as_subclass(Tensor), lambda made: made
        check_mode(image)
        return functional.pil_to_tensor(image), functional.to_pil_image

    def has_places(self, target: Any, image: Any) -> bool:
        """What torchvision marks, pictures and dicts of annotations."""
        size = (int(image.shape[-2]), int(image.shape[-1]))
        listed = isinstance(target, (list, tuple)) and any(isinstance(each, Mapping) for each in target)
        return listed or any(
            isinstance(each, tv_tensors.TVTensor) or is_picture(each, size) for each in leaves(target)
        )

    def shared_number(self) -> Any:
        """In shared memory."""
        return torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def steps(self, operation: Any) -> list[Any]:
        """Composed transforms one by one."""
        match _library(operation):
            case "kornia":
                from spile.torch import on_kornia

                return on_kornia.steps(operation)
            case "albumentations":
                from spile.torch import on_albumentations

                return on_albumentations.steps(operation)
        if isinstance(operation, (v2.Compose, nn.Sequential)):
            held = operation.transforms if isinstance(operation, v2.Compose) else operation
            return [step for each in held for step in self.steps(each)]
        inner = getattr(operation, "transforms", ())
        several = isinstance(operation, (v2.RandomApply, v2.RandomOrder)) and len(inner) > 1
        if several or any(isinstance(each, (v2.Compose, nn.Sequential)) for each in inner):
            raise AugmentationError(
                f"{_name(operation)} holds several transforms of which some may move pixels and some not: "
                "list them one by one, each with its own chance"
            )
        return [operation]

    def operate(self, operation: Any, image: Any, masks: Any, targets: Any, key: int) -> Operated:
        """One operation on one sample."""
        if isinstance(operation, Photometric):
            with seeded(key, image.device):
                pixels = operation.function(image.clone())  # which it may change in place
            return Operated(_of_same_type(pixels, image, operation), masks, targets, False)
        height, width = image.shape[-2:]
        # Two planes that are different everywhere show whether pixels were moved.
        rows = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
        columns = torch.arange(width, dtype=torch.float32)[None].expand(height, width)
        planes = torch.cat([torch.stack([rows, columns]), torch.as_tensor(masks)]).to(image.device)
        left = _left_behind(targets, (height, width), deep=_library(operation) == "torchvision")
        given = targets if left is None else None
        with seeded(key, image.device):
            pixels, after, moved = _changed(operation, image.clone(), planes, given, key)
        pixels = _of_same_type(pixels, image, operation)
        if after.shape == planes.shape and torch.equal(after[:2], planes[:2]):
            return Operated(pixels, masks, targets, False)
        _refuse(left)
        return Operated(pixels, after[2:].cpu().numpy(), moved, True)

    def repainted(self, operation: Any, image: Any, key: int) -> Any:
        """One operation on the pixels alone."""
        with seeded(key, image.device):
            return _of_same_type(_repainted(operation, image.clone(), key), image, operation)

    def blended(self, image: Any, other: Any, mask: Array) -> Any:
        """``image + (other - image) * mask``."""
        check_same_size(other, image)
        weight = torch.as_tensor(mask, device=image.device, dtype=torch.float32)[None]
        blend = torch.lerp(image.float(), other.float(), weight.expand(image.shape))
        return (
            blend.round().clamp(0, 255).to(torch.uint8)
            if image.dtype == torch.uint8
            else blend.to(image.dtype)
        )

    def filled(self, image: Any, fill: float | str) -> Any:
        """An image of one colour."""
        if fill == "mean":
            colour = image.float().mean((1, 2), keepdim=True)
            colour = colour.round() if image.dtype == torch.uint8 else colour
            return colour.to(image.dtype).expand(image.shape)
        return torch.full_like(image, float(fill))

    def cropped(self, image: Any, box: Box, size: tuple[int, int]) -> Any:
        """A box of an image, resized."""
        return functional.resized_crop(
            image, box.top, box.left, box.bottom - box.top, box.right - box.left, list(size), antialias=True
        )

    def cropped_targets(self, targets: Any, box: Box, size: tuple[int, int]) -> Any:
        """Boxes, masks and keypoints after the same."""
        _refuse(_left_behind(targets, size, deep=False))
        area = box.top, box.left, box.bottom - box.top, box.right - box.left
        return {
            name: functional.resized_crop(value, *area, list(size))
            if isinstance(value, tv_tensors.TVTensor)
            else value
            for name, value in targets.items()
        }

    def placed_at(self, image: Any, patch: Any, box: Box) -> Any:
        """The image with a patch in it."""
        changed = image.clone()
        changed[:, box.top : box.bottom, box.left : box.right] = patch
        return changed

    def array(self, values: Any) -> Array:
        """Labels on the host."""
        return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)

    def beside(self, numbers: Array, images: Any) -> Any:
        """Numbers where the images are."""
        return torch.from_numpy(numbers).to(images.device)

    def from_pixels(self, pixels: Array) -> Any:
        """Images of uint8 pixels (n, height, width, channels)."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)

    def to_pixels(self, images: Any) -> Array:
        """The same back."""
        pixels: Array = images.permute(0, 2, 3, 1).cpu().numpy()
        return pixels

    def stacked(self, images: Sequence[Any]) -> Any:
        """A batch of single images."""
        return torch.stack([torch.as_tensor(image) for image in images])

    def standard(self, strength: str) -> list[Any]:
        """Operations that move nothing."""
        if strength == "weak":
            return [v2.ColorJitter(0.1, 0.1, 0.1)]
        return [v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.GaussianBlur(5, (0.5, 2.0))]


def _library(operation: Any) -> str:
    """Whose an operation is; the libraries are imported only where one of theirs comes."""
    roots = {base.__module__.partition(".")[0] for base in type(operation).__mro__}
    return next((name for name in ("kornia", "albumentations") if name in roots), "torchvision")


def _repainted(operation: Any, image: Tensor, key: int) -> Any:
    function = operation.function if isinstance(operation, Photometric) else operation
    match _library(operation):
        case "kornia":
            from spile.torch import on_kornia

            return on_kornia.repainted(operation, image)
        case "albumentations":
            from spile.torch import on_albumentations

            return on_albumentations.repainted(operation, image, key)
    return function(tv_tensors.Image(image) if isinstance(function, v2.Transform) else image)


def _of_same_type(made: Any, image: Tensor, operation: Any) -> Tensor:
    """What an operation made, as a plain tensor. Raises `AugmentationError` where its numbers mean others."""
    if made.dtype != image.dtype:
        raise AugmentationError(
            f"{_name(operation)} made {made.dtype} of an image of {image.dtype}, and a band is part of one "
            "image: convert the whole batch before, images.float() / 255, or leave it out"
        )
    plain: Tensor = made.as_subclass(Tensor)
    return plain


def _left_behind(targets: Any, size: tuple[int, int], *, deep: bool) -> str | None:
    """The name of a target that a move would leave where it is; `deep` where those in lists are moved too."""
    if targets is None:
        return None
    if not deep:
        for name, value in targets.items():
            marked = any(isinstance(each, tv_tensors.TVTensor) for each in leaves(value))
            if marked and not isinstance(value, tv_tensors.TVTensor):
                return str(name)
    return left_behind(targets, size, lambda value: isinstance(value, tv_tensors.TVTensor))


def _refuse(left: str | None) -> None:
    if left is not None:
        name = f"target {left!r}" if left else "the target"
        raise AugmentationError(
            f"{name} would stay where it is while the image moves: wrap it as Mask, BoundingBoxes or "
            "KeyPoints of torchvision, e.g. {'masks': tv_tensors.Mask(mask)}"
        )


def _changed(
    operation: Any, image: Tensor, planes: Tensor, targets: Any, key: int
) -> tuple[Tensor, Tensor, Any]:
    """Image, planes (k, height, width) and targets under one random transformation."""
    match _library(operation):
        case "kornia":
            from spile.torch import on_kornia

            return on_kornia.changed(operation, image, planes, targets)
        case "albumentations":
            from spile.torch import on_albumentations

            return on_albumentations.changed(operation, image, planes, targets, key)
    if not isinstance(operation, v2.Transform):
        raise AugmentationError(
            f"{_name(operation)} is no transform of torchvision.transforms.v2, Kornia or Albumentations, so "
            "it is not known whether it moves pixels: wrap a function that does not, "
            "spile.augmentation.Photometric(function)"
        )
    sample = {"image": tv_tensors.Image(image), "planes": tv_tensors.Mask(planes), "targets": targets}
    try:
        with warnings.catch_warnings():
            # Some that move nothing warn that they leave masks alone, which is what is wanted.
            warnings.filterwarnings("ignore", message=".*passing through inputs of type")
            done = operation(sample)
    except TypeError as error:
        if "Mask" not in str(error):
            raise
        raise AugmentationError(
            f"{_name(operation)} does not say where it moves pixels to: use it in "
            "spile.augmentation.KeepSalient, which pastes the region back"
        ) from error
    return done["image"].as_subclass(Tensor), done["planes"].as_subclass(Tensor), done["targets"]


@contextmanager
def seeded(key: int, device: torch.device) -> Iterator[None]:
    """Random numbers made of `key` inside, and those of the caller untouched."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(key)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _name(operation: Any) -> str:
    return getattr(operation, "__qualname__", type(operation).__name__)
