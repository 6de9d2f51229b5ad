"""A guide on Keras: where in each image of a batch a layer is active; see `spile.guide`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from spile.augmentation import reductions
from spile.augmentation.geometry import Frame, Grid
from spile.augmentation.maps import Maps, maps_of
from spile.augmentation.settings import FEWEST_CELLS, GuideSettings, Meaning, fingerprint, seen_size
from spile.errors import AugmentationError
from spile.keras.attributing import score_gradients
from spile.keras.placing import grid_of
from spile.keras.runtime import runtime
from spile.keras.taps import Tap
from spile.keras.trees import is_tensor, tensor_of
from spile.keras.weights import weights_hash
from spile.preprocessing import ImagePreprocessing


class Guide:
    """A layer of a model, and how its channels become one map."""

    framework = "keras"

    def __init__(self, model: keras.Model, settings: GuideSettings) -> None:
        if settings.reduce == "rollout":
            raise AugmentationError(
                "rollout reads the attention of timm's transformers; of a Keras model use reduce='l2'"
            )
        self.model = model
        self.settings = settings
        self._meaning = Meaning.of(settings.given, (0.0, 255.0))
        self._tap = Tap(model, settings.at, pool=None, example=settings.example)
        self._learnt = False
        self._grids: dict[tuple[int, int], Grid] = {}

    @property
    def fingerprint(self) -> str:
        """Text that changes with the weights, the layer, the reduction, the resolution, the preprocessing."""
        return fingerprint(self.settings, self._tap.points[0].address, weights_hash(self.model))

    @property
    def preprocessing(self) -> ImagePreprocessing | None:
        """What it does to pixels of 0..255."""
        return self.settings.preprocessing

    def __call__(self, images: Any, labels: Any = None) -> Maps:
        """The maps of images (n, height, width, channels), batched, on the backend's device.

        `labels` (n,) are the classes that ``gradcam`` explains; without them the model's own answer.
        """
        size = int(images.shape[1]), int(images.shape[2])
        with runtime().without_gradients():
            ready = self.ready(images)
            seen = self._seen(ready)
            if seen not in self._grids:
                self._grids[seen] = self._grid(ready[:1], seen)
            grid = self._grids[seen]
            raw = self._raw(ready, labels, grid)
        return maps_of(raw, grid.in_source(Frame.whole(size, seen)), size)

    def ready(self, images: Any) -> Any:
        """The images as the guide takes them: its own preprocessing and resolution."""
        pixels = tensor_of(images) if is_tensor(images) or isinstance(images, np.ndarray) else None
        if pixels is None or len(pixels.shape) != 4:
            raise AugmentationError(
                "a Keras guide takes arrays or tensors (n, height, width, channels), not "
                f"{type(images).__name__} {list(getattr(images, 'shape', []))}"
            )
        asked = self.settings
        whole = keras.backend.standardize_dtype(pixels.dtype) == "uint8"
        if self._meaning is None and not whole:
            return _oriented(self._resized(pixels))
        if asked.preprocessing is None:
            raise AugmentationError(
                "the guide's preprocessing is not known, as it is a bare model object: write preprocessing="
                "spile.ImagePreprocessing(...), give a reference such as 'keras:VGG16', or given='ready'"
            )
        values = ops.cast(pixels, "float32")
        if not whole and self._meaning is not None:
            self._meaning.check(float(ops.min(values)), float(ops.max(values)))
            values = values * _channels(self._meaning.factor) + _channels(self._meaning.shift)
            values = ops.flip(values, axis=-1) if self._meaning.bgr else values
        return _oriented(_normalised(self._resized(values), asked.preprocessing))

    def _resized(self, pixels: Any) -> Any:
        have = int(pixels.shape[1]), int(pixels.shape[2])
        wanted = seen_size(self.settings.resolution, have)
        if wanted == have:
            return pixels
        return ops.image.resize(
            ops.cast(pixels, "float32"),
            wanted,
            interpolation="bilinear",
            antialias=True,
            data_format="channels_last",
        )

    def _seen(self, ready: Any) -> tuple[int, int]:
        first = keras.config.image_data_format() == "channels_first"
        height, width = ready.shape[2:] if first else ready.shape[1:3]
        return int(height), int(width)

    def _grid(self, image: Any, seen: tuple[int, int]) -> Grid:
        if not self._learnt:
            self._tap(image)
            self._learnt = True
        if len(self._tap.points) != 1:
            names = ", ".join(point.name for point in self._tap.points[:8])
            raise AugmentationError(f"a guide reads one layer, and at={self.settings.at!r} names {names}")
        grid = grid_of(self._tap, image)
        if grid.shape[0] * grid.shape[1] < FEWEST_CELLS:
            raise AugmentationError(
                f"{self._tap.points[0].name} has {grid.shape[0]} x {grid.shape[1]} cells for images of "
                f"{seen[0]} x {seen[1]} pixels: guide by an earlier layer, or by larger images"
            )
        return grid

    def _raw(self, ready: Any, labels: Any, grid: Grid) -> Any:
        """(n, h, w) NumPy."""
        reduce, count = self.settings.reduce, int(ready.shape[0])
        if reduce == "gradcam":
            cells, gradients = score_gradients(self._tap, ready, labels)
            values = reductions.class_activation(self._cells(cells, grid), self._cells(gradients, grid))
            return values.reshape(count, *grid.shape)
        (value,) = self._tap(ready).values()
        value = ops.cast(value, "float32")
        if reduce == "pca":
            return reductions.principal(self._cells(value, grid)).reshape(count, *grid.shape)
        axis = self._axes.index("C")
        if reduce == "l2":
            reduced = ops.sqrt(ops.sum(ops.square(value), axis=axis))
        else:
            reduced = ops.mean(value, axis=axis) if reduce == "mean" else ops.amax(value, axis=axis)
        kept = self._patches(reduced, self._axes.replace("C", ""))
        return np.asarray(ops.convert_to_numpy(kept), np.float64).reshape(count, *grid.shape)

    @property
    def _axes(self) -> str:
        return "B" + (self._tap.points[0].layout or "").replace("B", "")

    def _patches(self, reduced: Any, axes: str) -> Any:
        """Without class and register tokens."""
        if "T" in axes:
            return reduced[:, self._tap.prefix_tokens(self._tap.points[0]) :]
        return reduced if axes.index("Y") < axes.index("X") else ops.swapaxes(reduced, 1, 2)

    def _cells(self, value: Any, grid: Grid) -> Any:
        """(n, cells, channels) float64 NumPy."""
        moved = ops.moveaxis(value, self._axes.index("C"), -1)
        kept = np.asarray(ops.convert_to_numpy(self._patches(moved, self._axes.replace("C", ""))), np.float64)
        return kept.reshape(len(kept), grid.shape[0] * grid.shape[1], -1)


def _channels(numbers: tuple[float, ...]) -> Any:
    return ops.convert_to_tensor(np.asarray(numbers, np.float32))


def _normalised(pixels: Any, preprocessing: ImagePreprocessing) -> Any:
    """RGB pixels of 0..255 as the guide's model takes them."""
    if preprocessing.channel_order == "BGR":
        pixels = ops.flip(pixels, axis=-1)
    if pixels.shape[-1] == 1 and preprocessing.channels == 3:
        pixels = ops.repeat(pixels, 3, axis=-1)
    return (pixels * preprocessing.scale - _channels(preprocessing.mean)) / _channels(preprocessing.std)


def _oriented(images: Any) -> Any:
    first = keras.config.image_data_format() == "channels_first"
    return ops.transpose(images, (0, 3, 1, 2)) if first else images
