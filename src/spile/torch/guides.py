"""A guide on PyTorch: where in each image of a batch a layer is active; see `spile.guide`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spile.augmentation import reductions
from spile.augmentation.geometry import Frame, Grid
from spile.augmentation.maps import Maps, maps_of
from spile.augmentation.settings import FEWEST_CELLS, GuideSettings, Meaning, fingerprint, seen_size
from spile.errors import AugmentationError
from spile.preprocessing import ImagePreprocessing
from spile.torch import attributing
from spile.torch.models import weights_hash
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
    def fingerprint(self) -> str:
        """Text that changes with the weights, the layer, the reduction, the resolution, the preprocessing."""
        return fingerprint(self.settings, self._tap.points[0].address, weights_hash(self.model))

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
        if not self._learnt:
            with torch.no_grad():
                self._tap(ready[:1])
            self._learnt = True
        if len(self._tap.points) != 1:
            names = ", ".join(point.name for point in self._tap.points[:8])
            raise AugmentationError(f"a guide reads one layer, and at={self.settings.at!r} names {names}")
        if seen not in self._grids:
            self._grids[seen] = self._grid(ready[:1], seen)
        grid = self._grids[seen]
        return maps_of(self._raw(ready, labels, grid), grid.in_source(Frame.whole(size, seen)), size)

    def ready(self, images: Any) -> Tensor:
        """The images as the guide takes them: its own preprocessing and resolution."""
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise AugmentationError(
                "a PyTorch guide takes tensors (n, channels, height, width), not "
                f"{type(images).__name__} {list(getattr(images, 'shape', []))}"
            )
        device = device_of(self.model)
        asked = self.settings
        pixels = images.detach().to(device)
        if self._meaning is None and pixels.dtype != torch.uint8:
            return self._resized(pixels)
        if asked.preprocessing is None:
            raise AugmentationError(
                "the guide's preprocessing is not known, as it is a bare model object: write preprocessing="
                "spile.ImagePreprocessing(...), give a reference such as 'timm:resnet18', or given='ready'"
            )
        if pixels.dtype != torch.uint8 and self._meaning is not None:
            self._meaning.check(float(pixels.min()), float(pixels.max()))
            pixels = pixels.float() * _channels(self._meaning.factor, device)
            pixels = pixels + _channels(self._meaning.shift, device)
            pixels = pixels.flip(1) if self._meaning.bgr else pixels
        return _normalised(self._resized(pixels.float()), asked.preprocessing)

    def _resized(self, pixels: Tensor) -> Tensor:
        wanted = seen_size(self.settings.resolution, (int(pixels.shape[-2]), int(pixels.shape[-1])))
        if wanted == tuple(pixels.shape[-2:]):
            return pixels
        return functional.interpolate(
            pixels.float(), wanted, mode="bilinear", align_corners=False, antialias=True
        )

    def _grid(self, image: Tensor, seen: tuple[int, int]) -> Grid:
        grid = grid_of(self._tap, image)
        if grid.shape[0] * grid.shape[1] < FEWEST_CELLS:
            raise AugmentationError(
                f"{self._tap.points[0].name} has {grid.shape[0]} x {grid.shape[1]} cells for images of "
                f"{seen[0]} x {seen[1]} pixels: guide by an earlier layer, or by larger images"
            )
        return grid

    def _raw(self, ready: Tensor, labels: Any, grid: Grid) -> Any:
        """(n, h, w) float64 NumPy."""
        reduce = self.settings.reduce
        if reduce == "gradcam":
            cells, gradients = attributing.score_gradients(self._tap, ready, labels)
            values = reductions.class_activation(self._cells(cells, grid), self._cells(gradients, grid))
        elif reduce == "rollout":
            attentions, prefix = attributing.attentions(self._tap, ready)
            values = reductions.rollout(attentions, prefix)
        else:
            with torch.inference_mode():
                (value,) = self._tap(ready).values()
                value = value.float()
                axis = self._axes.index("C")
                if reduce == "pca":
                    values = reductions.principal(self._cells(value, grid))
                else:
                    reduced = {
                        "mean": lambda: value.mean(axis),
                        "max": lambda: value.amax(axis),
                        "l2": lambda: value.square().sum(axis).sqrt(),
                    }[reduce]()
                    values = self._patches(reduced, self._axes.replace("C", "")).double().cpu().numpy()
        return values.reshape(len(ready), *grid.shape)

    @property
    def _axes(self) -> str:
        return "B" + (self._tap.points[0].layout or "").replace("B", "")

    def _patches(self, reduced: Tensor, axes: str) -> Tensor:
        """Without class and register tokens."""
        if "T" in axes:
            return reduced[:, self._tap.prefix_tokens(self._tap.points[0]) :]
        return reduced if axes.index("Y") < axes.index("X") else reduced.transpose(1, 2)

    def _cells(self, value: Tensor, grid: Grid) -> Any:
        """(n, cells, channels) float64 NumPy."""
        moved = value.movedim(self._axes.index("C"), -1)
        kept = self._patches(moved, self._axes.replace("C", ""))
        return kept.reshape(len(kept), grid.shape[0] * grid.shape[1], -1).double().cpu().numpy()


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
