"""A guide on PyTorch: where in each image of a batch a layer is active; see `spile.guide`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
from spile.preprocessing import ImagePreprocessing
from spile.resolution import Point
from spile.torch import attributing
from spile.torch.inputs import laid_out
from spile.torch.models import architecture_hash, weights_hash
from spile.torch.placing import grid_of
from spile.torch.taps import Tap
from spile.torch.trees import device_of


class Guide:
    """A layer of a model, and how its channels become one map."""

    framework = "torch"

    def __init__(self, model: nn.Module, settings: GuideSettings) -> None:
        self.model = model
        self.settings = settings
        self._meaning = Meaning.of(settings.given, (0.0, 1.0))
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
        """The maps of images (n, channels, height, width), batched, on the model's device.

        `labels` (n,) are the classes that ``gradcam`` explains; without them the model's own answer.
        """
        size = int(images.shape[-2]), int(images.shape[-1])
        ready = self.ready(images)
        seen = int(ready.shape[-2]), int(ready.shape[-1])
        grid = self.grid(ready[:1])
        return maps_of(self._raw(ready, labels, grid), grid.in_source(Frame.whole(size, seen)), size)

    def ready(self, images: Any) -> Tensor:
        """The images as the guide takes them: its own preprocessing and resolution."""
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise not_images("PyTorch guide", "tensors (n, channels, height, width)", images)
        device = device_of(self.model)
        asked = self.settings
        pixels = images.detach().to(device)
        if self._meaning is None and pixels.dtype != torch.uint8:
            return self._resized(pixels)
        preprocessing = needed_preprocessing(asked, "timm:resnet18")
        if pixels.dtype != torch.uint8 and self._meaning is not None:
            self._meaning.check(float(pixels.min()), float(pixels.max()))
            pixels = pixels.float() * _channels(self._meaning.factor, device)
            pixels = pixels + _channels(self._meaning.shift, device)
            pixels = pixels.flip(1) if self._meaning.bgr else pixels
        return _normalised(self._resized(pixels.float()), preprocessing)

    def _resized(self, pixels: Tensor) -> Tensor:
        wanted = seen_size(self.settings.resolution, (int(pixels.shape[-2]), int(pixels.shape[-1])))
        if wanted == tuple(pixels.shape[-2:]):
            return pixels
        return functional.interpolate(
            pixels.float(), wanted, mode="bilinear", align_corners=False, antialias=True
        )

    def grid(self, image: Tensor) -> Grid:
        """Where the cells lie in what the guide sees, an image (1, channels, height, width)."""
        seen = int(image.shape[-2]), int(image.shape[-1])
        if not self._learnt:
            with torch.no_grad():
                self._tap(image)
            self._learnt = True
        point = self.point
        if seen not in self._grids:
            found = checked_grid(grid_of(self._tap, image), point, seen)
            if self.settings.centres == "measured":
                found = measured(found, self._response, seen, int(image.shape[1]))
            self._grids[seen] = found
        return self._grids[seen]

    def _response(self, pictures: Any) -> Any:
        """How active the cells are, (n, h, w) NumPy, for uint8 pictures (n, height, width, channels)."""
        pixels = torch.from_numpy(pictures.copy()).to(device_of(self.model)).movedim(-1, 1).float()
        known = self.settings.preprocessing
        ready = (pixels - 127.5) / 64 if known is None else _normalised(pixels, known)
        with torch.inference_mode():
            (value,) = self._tap(ready).values()
        return self._patches(self._strength(value.float()), self._axes.replace("C", "")).cpu().numpy()

    def _strength(self, value: Tensor) -> Tensor:
        return value.square().sum(self._axes.index("C")).sqrt()

    def reduced(self, value: Tensor) -> Any:
        """(n, cells) float64 NumPy of an activation at the layer, samples first; not normalised."""
        value = value.detach().float()
        axis = self._axes.index("C")
        match self.settings.reduce:
            case "pca":
                return reductions.principal(self._cells(value))
            case "mean":
                found = value.mean(axis)
            case "max":
                found = value.amax(axis)
            case _:
                found = self._strength(value)
        kept = self._patches(found, self._axes.replace("C", ""))
        return kept.flatten(1).double().cpu().numpy()

    def _raw(self, ready: Tensor, labels: Any, grid: Grid) -> Any:
        """(n, h, w) float64 NumPy."""
        if self.settings.reduce == "gradcam":
            cells, gradients = attributing.score_gradients(self._tap, ready, labels)
            values = reductions.class_activation(self._cells(cells), self._cells(gradients))
        elif self.settings.reduce == "rollout":
            values = reductions.rollout(*attributing.attentions(self._tap, ready))
        else:
            with torch.inference_mode():
                # On two cores a fifth less time for convolutions and pooling.
                (value,) = self._tap(laid_out(ready)).values()
                values = self.reduced(value)
        return values.reshape(len(ready), *grid.shape)

    @property
    def _axes(self) -> str:
        return "B" + (self.point.layout or "").replace("B", "")

    def _patches(self, reduced: Tensor, axes: str) -> Tensor:
        """Without class and register tokens."""
        if "T" in axes:
            return reduced[:, self._tap.prefix_tokens(self.point) :]
        return reduced if axes.index("Y") < axes.index("X") else reduced.transpose(1, 2)

    def _cells(self, value: Tensor) -> Any:
        """(n, cells, channels) float64 NumPy."""
        moved = value.movedim(self._axes.index("C"), -1)
        kept = self._patches(moved, self._axes.replace("C", ""))
        return kept.flatten(1, -2).double().cpu().numpy()


def _channels(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device).view(1, -1, 1, 1)


def _normalised(pixels: Tensor, preprocessing: ImagePreprocessing) -> Tensor:
    """RGB pixels of 0..255 as the guide's model takes them."""
    if preprocessing.channel_order == "BGR":
        pixels = pixels.flip(1)
    if pixels.shape[1] == 1 and preprocessing.channels == 3:
        pixels = pixels.expand(-1, 3, -1, -1)
    mean = _channels(preprocessing.mean, pixels.device)
    return (pixels * preprocessing.scale - mean) / _channels(preprocessing.std, pixels.device)
