"""A guide on Keras: where in each image of a batch a layer is active; see `spile.guide`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from spile.augmentation import reductions
from spile.augmentation.canvas import not_images
from spile.augmentation.centring import measured
from spile.augmentation.geometry import Frame, Grid
from spile.augmentation.maps import Maps, maps_of
from spile.augmentation.settings import (
    GuideSettings,
    Meaning,
    checked_grid,
    fingerprint,
    needed_preprocessing,
    only_point,
    seen_size,
)
from spile.keras import attributing
from spile.keras.placing import grid_of
from spile.keras.runtime import runtime
from spile.keras.taps import Tap
from spile.keras.trees import is_tensor, tensor_of
from spile.keras.weights import architecture_hash, weights_hash
from spile.preprocessing import ImagePreprocessing
from spile.resolution import Point


class Guide:
    """A layer of a model, and how its channels become one map."""

    framework = "keras"

    def __init__(self, model: keras.Model, settings: GuideSettings) -> None:
        self.model = model
        self.settings = settings
        self._meaning = Meaning.of(settings.given, (0.0, 255.0))
        self._tap = Tap(model, settings.at, pool=None, example=settings.example)
        self._learnt = False
        self._grids: dict[tuple[int, int], Grid] = {}

    @property
    def point(self) -> Point:
        """The layer that is read."""
        return only_point(self._tap.points, self.settings.at)

    @property
    def fingerprint(self) -> str:
        """Text that changes with the weights, the layer, the reduction, the resolution, the preprocessing."""
        return fingerprint(self.settings, self.point.address, weights_hash(self.model))

    def fingerprint_in(self, run: str) -> str:
        """The same of a model in training: its layers and the run take the place of its weights."""
        model = f"run {run} of {architecture_hash(self.model)}"
        return fingerprint(self.settings, self.point.address, model)

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
            seen, grid = self._seen(ready), self.grid(ready[:1])
            raw = self._raw(ready, labels, grid)
        return maps_of(raw, grid.in_source(Frame.whole(size, seen)), size)

    def ready(self, images: Any) -> Any:
        """The images as the guide takes them: its own preprocessing and resolution."""
        pixels = tensor_of(images) if is_tensor(images) or isinstance(images, np.ndarray) else None
        if pixels is None or len(pixels.shape) != 4:
            raise not_images("Keras guide", "arrays or tensors (n, height, width, channels)", images)
        asked = self.settings
        whole = keras.backend.standardize_dtype(pixels.dtype) == "uint8"
        if self._meaning is None and not whole:
            return _oriented(self._resized(pixels))
        preprocessing = needed_preprocessing(asked, "keras:VGG16")
        values = ops.cast(pixels, "float32")
        if not whole and self._meaning is not None:
            self._meaning.check(float(ops.min(values)), float(ops.max(values)))
            values = values * _channels(self._meaning.factor) + _channels(self._meaning.shift)
            values = ops.flip(values, axis=-1) if self._meaning.bgr else values
        return _oriented(_normalised(self._resized(values), preprocessing))

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

    def grid(self, image: Any) -> Grid:
        """Where the cells lie in what the guide sees, one image as the model takes it."""
        seen = self._seen(image)
        if not self._learnt:
            self._tap(image)
            self._learnt = True
        point = self.point
        if seen not in self._grids:
            found = checked_grid(grid_of(self._tap, image), point, seen)
            if self.settings.centres == "measured":
                first = keras.config.image_data_format() == "channels_first"
                found = measured(found, self._response, seen, int(image.shape[1 if first else -1]))
            self._grids[seen] = found
        return self._grids[seen]

    def _response(self, pictures: Any) -> Any:
        """How active the cells are, (n, h, w) NumPy, for uint8 pictures (n, height, width, channels)."""
        pixels = ops.cast(tensor_of(pictures.copy()), "float32")
        known = self.settings.preprocessing
        ready = (pixels - 127.5) / 64 if known is None else _normalised(pixels, known)
        (value,) = self._tap(_oriented(ready)).values()
        strength = self._strength(ops.cast(value, "float32"))
        return ops.convert_to_numpy(self._patches(strength, self._axes.replace("C", "")))

    def _strength(self, value: Any) -> Any:
        return ops.sqrt(ops.sum(ops.square(value), axis=self._axes.index("C")))

    def kept(self, value: Any) -> Any:
        """What is copied of an activation at the layer; `reduced` is what it becomes on the host."""
        value = ops.cast(ops.stop_gradient(value), "float32")
        axis = self._axes.index("C")
        match self.settings.reduce:
            case "pca":
                return self._patches(ops.moveaxis(value, axis, -1), self._axes.replace("C", ""))
            case "mean":
                found = ops.mean(value, axis=axis)
            case "max":
                found = ops.amax(value, axis=axis)
            case _:
                found = self._strength(value)
        return self._patches(found, self._axes.replace("C", ""))

    def reduced(self, kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(n, cells) float64; not normalised."""
        values = np.asarray(kept, np.float64)
        if self.settings.reduce == "pca":
            return reductions.principal(values.reshape(len(values), -1, values.shape[-1]))
        return values.reshape(len(values), -1)

    def _raw(self, ready: Any, labels: Any, grid: Grid) -> Any:
        """(n, h, w) NumPy."""
        if self.settings.reduce == "gradcam":
            cells, gradients = attributing.score_gradients(self._tap, ready, labels)
            values = reductions.class_activation(self._cells(cells), self._cells(gradients))
        elif self.settings.reduce == "rollout":
            values = reductions.rollout(*attributing.attentions(self._tap, ready))
        else:
            (value,) = self._tap(ready).values()
            values = self.reduced(np.asarray(ops.convert_to_numpy(self.kept(value))))
        return values.reshape(int(ready.shape[0]), *grid.shape)

    @property
    def _axes(self) -> str:
        return "B" + (self.point.layout or "").replace("B", "")

    def _patches(self, reduced: Any, axes: str) -> Any:
        """Without class and register tokens."""
        if "T" in axes:
            return reduced[:, self._tap.prefix_tokens(self.point) :]
        return reduced if axes.index("Y") < axes.index("X") else ops.swapaxes(reduced, 1, 2)

    def _cells(self, value: Any) -> Any:
        """(n, cells, channels) float64 NumPy."""
        moved = ops.moveaxis(value, self._axes.index("C"), -1)
        kept = np.asarray(ops.convert_to_numpy(self._patches(moved, self._axes.replace("C", ""))), np.float64)
        return kept.reshape(len(kept), -1, kept.shape[-1])


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
