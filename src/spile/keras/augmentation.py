"""The pixels of `spile.augment` on Keras: images (n, height, width, channels), arrays or tensors.

Operations run on Keras' backend; between them pixels are NumPy arrays, as a data pipeline has them.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops
from PIL import Image

from spile.augmentation.boxes import Box
from spile.augmentation.canvas import (
    Array,
    Operated,
    check_mode,
    check_same_size,
    is_picture,
    leaves,
    not_images,
)
from spile.augmentation.policies import Photometric
from spile.errors import AugmentationError
from spile.keras.trees import is_tensor

_SEEDS = 2**30
_TARGETS = "segmentation_masks", "bounding_boxes", "labels"
_MIXES = keras.layers.MixUp, keras.layers.CutMix, keras.layers.AugMix

_one_at_a_time = threading.RLock()


class KerasCanvas:
    """See `spile.augmentation.canvas.Canvas`."""

    framework = "keras"

    def size(self, images: Any) -> tuple[int, int]:
        """Height and width of every image."""
        if not (isinstance(images, np.ndarray) or is_tensor(images)) or len(images.shape) != 4:
            raise not_images("Keras augmenter", "arrays or tensors (n, height, width, channels)", images)
        return int(images.shape[1]), int(images.shape[2])

    def count(self, images: Any) -> int:
        """How many."""
        return int(images.shape[0])

    def split(self, images: Any) -> list[Any]:
        """One image each."""
        return list(self.array(images))

    def joined(self, images: Sequence[Any], like: Any) -> Any:
        """The batch again."""
        if not images:
            return like
        for image in images:
            check_same_size(image, like[0])
        batch = np.stack(images)
        if is_tensor(like):
            return ops.convert_to_tensor(batch, dtype=keras.backend.standardize_dtype(like.dtype))
        return batch.astype(like.dtype)

    def opened(self, image: Any) -> tuple[Any, Callable[[Any], Any]]:
        """One image as an array (height, width, channels), and the way back."""
        if isinstance(image, Image.Image):
            check_mode(image)
            pixels = np.asarray(image)
            grey = pixels.ndim == 2
            return pixels[:, :, None] if grey else pixels, lambda made: Image.fromarray(
                np.squeeze(made) if grey else made
            )
        if is_tensor(image):
            dtype = keras.backend.standardize_dtype(image.dtype)
            return self.array(image), lambda made: ops.convert_to_tensor(made, dtype=dtype)
        return np.asarray(image), lambda made: made

    def has_places(self, target: Any, image: Any) -> bool:
        """Pictures and dicts of annotations."""
        size = (int(image.shape[0]), int(image.shape[1]))
        listed = isinstance(target, (list, tuple)) and any(isinstance(each, Mapping) for each in target)
        return listed or any(is_picture(each, size) for each in leaves(target))

    def shared_number(self) -> Any:
        """Keras' workers are threads."""
        return [0]

    def steps(self, operation: Any) -> list[Any]:
        """A pipeline's layers one by one."""
        if isinstance(operation, keras.layers.Pipeline | keras.Sequential):
            return [step for layer in operation.layers for step in self.steps(layer)]
        return [operation]

    def operate(self, operation: Any, image: Any, masks: Any, targets: Any, key: int) -> Operated:
        """One operation on one sample."""
        if isinstance(operation, Photometric):
            return Operated(self._by_function(operation, image), masks, targets, False)
        if not hasattr(operation, "transform_segmentation_masks"):
            raise AugmentationError(
                f"{_name(operation)} is no image preprocessing layer of Keras, so it is not known whether it "
                "moves pixels: wrap a function that does not, spile.augmentation.Photometric(function)"
            )
        if isinstance(operation, _MIXES):
            instead = (
                "use it in spile.augmentation.KeepSalient, which pastes the region back"
                if isinstance(operation, keras.layers.AugMix)
                else "take the policy spile.augmentation.MapCutMix() in its place"
            )
            raise AugmentationError(
                f"{_name(operation)} mixes images, and would mix masks with them: {instead}"
            )
        targets = {} if targets is None else targets
        own = targets.get("segmentation_masks")
        planes = [*_coordinates(image.shape[0], image.shape[1]), *masks]
        stacked = np.stack(planes, axis=-1).astype(np.float32)
        if own is not None:
            own = np.asarray(self.array(own))
            own = own[:, :, None] if own.ndim == 2 else own
            stacked = np.concatenate([stacked, own.astype(np.float32)], axis=-1)
        boxes = targets.get("bounding_boxes")
        with seeded(operation, key):
            pixels, after, boxes = _transformed(operation, image, stacked, boxes)
        if after.shape == stacked.shape and np.array_equal(after[:, :, :2], stacked[:, :, :2]):
            return Operated(pixels, masks, targets or None, False)
        left = [name for name in targets if name not in _TARGETS]
        if left:
            name = f"target {left[0]!r}" if left[0] else "the target"
            raise AugmentationError(
                f"{name} would stay where it is while the image moves: pass a dict of {', '.join(_TARGETS)}, "
                "and leave others out"
            )
        moved = dict(targets)
        if own is not None:
            kept = after[:, :, len(planes) :].astype(own.dtype)
            moved["segmentation_masks"] = kept.reshape(
                kept.shape[:2] if np.ndim(targets["segmentation_masks"]) == 2 else kept.shape
            )
        if boxes is not None:
            moved["bounding_boxes"] = boxes
        return Operated(pixels, np.moveaxis(after[:, :, 2 : len(planes)], -1, 0), moved or None, True)

    def repainted(self, operation: Any, image: Any, key: int) -> Any:
        """One operation on the pixels alone."""
        if isinstance(operation, Photometric):
            return self._by_function(operation, image)
        with seeded(operation, key):
            done = operation(image[None].astype(np.float32), training=True)
        return self.array(done)[0]

    def _by_function(self, operation: Photometric, image: Array) -> Array:
        return self.array(operation.function(image.copy()))  # which it may change in place

    def blended(self, image: Any, other: Any, mask: Array) -> Any:
        """``image + (other - image) * mask``."""
        check_same_size(other, image)
        a, b, weight = image.astype(np.float32), other.astype(np.float32), mask[:, :, None]
        # From the nearer end, so that it is exact at both.
        blend = np.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))
        return np.clip(np.rint(blend), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else blend

    def filled(self, image: Any, fill: float | str) -> Any:
        """An image of one colour."""
        if fill != "mean":
            return np.full_like(image, fill)
        colour = image.astype(np.float32).mean((0, 1), keepdims=True)
        colour = np.rint(colour) if image.dtype == np.uint8 else colour
        return np.broadcast_to(colour.astype(image.dtype), image.shape)

    def cropped(self, image: Any, box: Box, size: tuple[int, int]) -> Any:
        """A box of an image, resized."""
        part = image[box.top : box.bottom, box.left : box.right].astype(np.float32)
        resized = self.array(
            ops.image.resize(
                part, size, interpolation="bilinear", antialias=True, data_format="channels_last"
            )
        )
        return np.clip(np.rint(resized), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else resized

    def cropped_targets(self, targets: Any, box: Box, size: tuple[int, int]) -> Any:
        """Masks after the same."""
        if set(targets) - {"segmentation_masks"}:
            raise AugmentationError(
                f"a crop moves segmentation_masks of Keras samples, not {', '.join(map(repr, targets))}: "
                "leave them out"
            )
        masks = np.asarray(self.array(targets["segmentation_masks"]))
        rows = np.linspace(box.top, box.bottom, size[0], endpoint=False)
        columns = np.linspace(box.left, box.right, size[1], endpoint=False)
        half = (box.bottom - box.top) / size[0] / 2, (box.right - box.left) / size[1] / 2
        places = np.floor(rows + half[0]).astype(int), np.floor(columns + half[1]).astype(int)
        return {"segmentation_masks": masks[np.ix_(*places)]}

    def placed_at(self, image: Any, patch: Any, box: Box) -> Any:
        """The image with a patch in it."""
        changed = image.copy()
        changed[box.top : box.bottom, box.left : box.right] = patch
        return changed

    def array(self, values: Any) -> Array:
        """A tensor on the host."""
        return np.asarray(ops.convert_to_numpy(values) if is_tensor(values) else values)

    def beside(self, numbers: Array, images: Any) -> Any:
        """Numbers in the type of the images."""
        return ops.convert_to_tensor(numbers) if is_tensor(images) else numbers

    def from_pixels(self, pixels: Array) -> Any:
        """Images of uint8 pixels: themselves."""
        return pixels

    def to_pixels(self, images: Any) -> Array:
        """The same back."""
        return self.array(images)

    def stacked(self, images: Sequence[Any]) -> Any:
        """A batch of single images."""
        return np.stack([self.array(image) for image in images])

    def standard(self, strength: str) -> list[Any]:
        """Operations that move nothing."""
        last: dict[str, Any] = {"data_format": "channels_last"}
        made: list[Any] = [keras.layers.RandomColorJitter((0, 255), 0.1, 0.1, 0.1, **last)]
        if strength != "weak":
            made = [
                keras.layers.RandomColorJitter((0, 255), 0.4, 0.4, 0.4, 0.1, **last),
                keras.layers.RandomGaussianBlur(1.0, kernel_size=5, sigma=1.0, **last),
            ]
        for inner in made[0]._flatten_layers():  # RandomColorJitter does not hand it on
            inner.data_format = "channels_last"
        return made


@contextmanager
def seeded(layer: Any, key: int) -> Iterator[None]:
    """A layer whose random numbers are made of `key`, and whose own state is untouched afterwards.

    Threads share the layer and its state, so they wait for each other.
    """
    _check_axes(layer)
    with _one_at_a_time:
        generators = [
            value
            for each in (layer._flatten_layers() if isinstance(layer, keras.Layer) else ())
            for value in vars(each).values()
            if isinstance(value, keras.random.SeedGenerator)
        ]
        before = [ops.convert_to_numpy(generator.state.value) for generator in generators]
        try:
            for number, generator in enumerate(generators):
                words = [(key + 7919 * number) % _SEEDS, (key >> 31) % _SEEDS]
                generator.state.assign(np.asarray(words, before[number].dtype))
            yield
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.state.assign(state)


def _check_axes(layer: Any) -> None:
    for each in layer._flatten_layers() if isinstance(layer, keras.Layer) else ():
        if getattr(each, "data_format", None) == "channels_first":
            held = "" if each is layer else f" in {_name(layer)}, to which Keras hands no data_format on,"
            raise AugmentationError(
                f"{_name(each)}{held} takes images (channels, height, width), and here they are (height, "
                "width, channels): write data_format='channels_last'"
                + (" of layers one by one" if held else "")
            )


def _transformed(layer: Any, image: Array, planes: Array, boxes: Any) -> tuple[Array, Array, Any]:
    """Image, planes and boxes of one sample under one random transformation.

    Each gets a copy of it: Keras 3.15 on PyTorch changes it in place when it moves the image, so that masks
    and boxes that follow are moved otherwise (`keras.ops.image.affine_transform`).
    """
    images = ops.convert_to_tensor(image[None].astype(np.float32))
    if not layer.built:
        layer.build(images.shape)
    # RandomGrayscale takes the images, other layers a dict with them.
    bare = "images" in inspect.signature(layer.get_random_transformation).parameters
    drawn = layer.get_random_transformation(images if bare else {"images": images}, training=True)

    def once() -> Any:
        return keras.tree.map_structure(_copied, drawn)

    pixels = layer.transform_images(images, once(), training=True)
    after = layer.transform_segmentation_masks(ops.convert_to_tensor(planes[None]), once(), training=True)
    if boxes is not None:
        if not getattr(layer, "bounding_box_format", None):
            raise AugmentationError(
                f"{_name(layer)} is given boxes: say how they are written, e.g. bounding_box_format='xyxy'"
            )
        batch = {name: ops.convert_to_tensor(np.asarray(value)[None]) for name, value in boxes.items()}
        moved = layer.transform_bounding_boxes(batch, once(), training=True)
        boxes = {name: ops.convert_to_numpy(value)[0] for name, value in moved.items()}
    return ops.convert_to_numpy(pixels)[0], ops.convert_to_numpy(after)[0], boxes


def _copied(value: Any) -> Any:
    return ops.copy(value) if is_tensor(value) else value


def _coordinates(height: int, width: int) -> tuple[Array, Array]:
    """Two planes that are different everywhere: they show whether pixels were moved."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return rows, columns


def _name(operation: Any) -> str:
    return getattr(operation, "__qualname__", type(operation).__name__)
