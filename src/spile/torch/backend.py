"""`spile.backend.Backend` for PyTorch."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import torch

from spile.augmentation.canvas import Canvas
from spile.augmentation.features import FeatureOperation
from spile.augmentation.settings import GuideLike, GuideSettings
from spile.fitting import Fitted, Job
from spile.interfaces import AtLayer, Engine, EngineName, Kept, Mode, Precision, Take
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressesLike, PoolsLike
from spile.supervision.settings import Settings
from spile.torch.accelerating import engine_for
from spile.torch.classifiers import set_classifier, with_classifier
from spile.torch.deploying import save_reached, save_trained
from spile.torch.exporting import export_tap as export
from spile.torch.inputs import model_inputs
from spile.torch.models import architecture_hash, load_weights, weights_hash
from spile.torch.observing import observe
from spile.torch.packing import pack, unpack
from spile.torch.supervision import Supervised
from spile.torch.taps import Tap
from spile.torch.trees import device_of, floating_of, transform
from spile.torch.whole import FORMATS, open_whole, save_whole

__all__ = [
    "FORMATS",
    "architecture_hash",
    "at_layer",
    "canvas",
    "device",
    "engine",
    "example",
    "export",
    "feed",
    "fit",
    "guide",
    "keep",
    "load_reached",
    "load_trained",
    "observe",
    "open_whole",
    "pack",
    "save_reached",
    "save_trained",
    "save_whole",
    "seed",
    "set_classifier",
    "supervise",
    "tap",
    "unpack",
    "versions",
    "weights_hash",
    "with_classifier",
]


_LIBRARIES = {"timm", "torchvision", "transformers"}


def tap(model: Any, addresses: AddressesLike, *, pool: PoolsLike, example: Any, mode: Mode) -> Tap:
    """Make a `Tap`."""
    return Tap(model, addresses, pool=pool, example=example, mode=mode)


def engine(
    tap: Tap,
    *,
    preprocessing: ImagePreprocessing | None,
    precision: Precision,
    name: EngineName = "auto",
    samples: int | None = None,
    half: bool = False,
) -> Engine:
    """The engine that runs `tap` during extraction of that many `samples`, where the number is known."""
    return engine_for(
        tap, name=name, preprocessing=preprocessing, precision=precision, samples=samples, half=half
    )


def example(inputs: Any, *, preprocessing: ImagePreprocessing | None, model: Any) -> Any:
    """The inputs of one batch as the model takes them, for a dry pass."""
    ready = model_inputs(
        inputs, preprocessing=preprocessing, device=device_of(model), floating=floating_of(model)
    )
    return transform(ready, torch.Tensor.contiguous)  # which every model takes


def supervise(model: Any, settings: Settings) -> Supervised:
    """Make a `Supervised`."""
    return Supervised(model, settings)


def guide(model: Any, settings: GuideSettings) -> GuideLike:
    """Make a `spile.torch.guides.Guide`."""
    from spile.torch.guides import Guide

    return Guide(model, settings)


def canvas() -> Canvas:
    """What changes the pixels of a batch; the library of its operations is imported only now."""
    from spile.torch.augmentation import TorchCanvas

    return TorchCanvas()


def at_layer(
    model: Any, at: Any, operation: FeatureOperation, *, example: Any, seed: int, classes: int | None
) -> AtLayer:
    """Make a `spile.torch.at_layer.AtLayer`."""
    from spile.torch.at_layer import AtLayer as Made

    return Made(model, at, operation, example=example, seed=seed, classes=classes)


def feed(feed: Any, workers: int) -> Any:
    """A ``DataLoader`` of whole batches."""
    from spile.torch.feeding import loader

    return loader(feed, workers)


def keep(guide: Any, take: Take, *, pictures: bool = False) -> Kept:
    """Watch the training passes of a guide's model."""
    from spile.torch.keeping import Watched

    return Watched(guide, take, pictures=pictures)


def seed(seed: int) -> None:
    """Seed every device."""
    torch.manual_seed(seed)


def fit(job: Job) -> Fitted:
    """Train with Lightning, which is imported only now."""
    from spile.torch import training

    return training.fit(job)


def load_trained(model: Any, path: Path) -> None:
    """Put all weights that `save_trained` wrote into a model of the same architecture."""
    load_weights(model, path)


def load_reached(model: Any, path: Path) -> None:
    """Put back what `save_reached` wrote; layers past the deepest point keep what they have."""
    load_weights(model, path, allow_missing=True)


def device(model: Any) -> str:
    """What the model is on: ``cpu``, ``cuda``, ``mps``, …."""
    return device_of(model).type


def versions(model: Any) -> dict[str, str]:
    """What can change a value: versions of PyTorch and the libraries of the layers, and the machine."""
    roots = {type(module).__module__.partition(".")[0] for module in model.modules()}
    libraries = {name: sys.modules[name].__version__ for name in sorted(roots & _LIBRARIES)}
    machine = f"{platform.machine()} {device(model)}"
    return {"torch": torch.__version__, **libraries, "machine": machine}
