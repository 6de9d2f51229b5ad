"""`spile.backend.Backend` for Keras."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from spile.augmentation.canvas import Canvas
from spile.augmentation.features import FeatureOperation
from spile.augmentation.settings import GuideLike, GuideSettings
from spile.errors import ModelError
from spile.fitting import Fitted, Job
from spile.interfaces import AtLayer, Engine, EngineName, Kept, Mode, Precision, Take
from spile.keras.accelerating import engine_for
from spile.keras.classifiers import set_classifier, with_classifier
from spile.keras.deploying import save_reached, save_trained
from spile.keras.engines import model_inputs
from spile.keras.exporting import export_tap as export
from spile.keras.observing import observe
from spile.keras.runtime import runtime
from spile.keras.supervision import supervise
from spile.keras.taps import Tap
from spile.keras.weights import architecture_hash, load_weights, weights_hash
from spile.keras.whole import FORMATS, open_whole, save_whole
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressesLike, PoolsLike

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
    """The engine that runs `tap` during extraction; floats come in float32 with `half` too."""
    return engine_for(tap, name=name, preprocessing=preprocessing, precision=precision, samples=samples)


def pack(tap: Tap, devices: Sequence[str]) -> bytes:
    """Refuse: a backend of Keras takes its devices for itself when it is loaded."""
    raise ModelError(
        "devices= is for PyTorch models. With Keras, run one extraction a device, each of a part of the "
        "data, and show each process its own device alone (CUDA_VISIBLE_DEVICES)"
    )


def unpack(packed: bytes, device: str, of: int) -> Tap:
    """There is nothing to unpack."""
    raise NotImplementedError


def example(inputs: Any, *, preprocessing: ImagePreprocessing | None, model: Any) -> Any:
    """The inputs of one batch as the model takes them, for a dry pass."""
    return model_inputs(inputs, preprocessing=preprocessing)


def guide(model: Any, settings: GuideSettings) -> GuideLike:
    """Make a `spile.keras.guides.Guide`."""
    from spile.keras.guides import Guide

    return Guide(model, settings)


def canvas() -> Canvas:
    """What changes the pixels of a batch; the library of its operations is imported only now."""
    from spile.keras.augmentation import KerasCanvas

    return KerasCanvas()


def at_layer(
    model: Any, at: Any, operation: FeatureOperation, *, example: Any, seed: int, classes: int | None
) -> AtLayer:
    """Make a `spile.keras.at_layer.AtLayer`."""
    from spile.keras.at_layer import AtLayer as Made

    return Made(model, at, operation, example=example, seed=seed, classes=classes)


def feed(feed: Any, workers: int) -> Any:
    """A ``PyDataset`` of whole batches."""
    from spile.keras.feeding import Batches

    return Batches(feed, workers)


def keep(guide: Any, take: Take, *, pictures: bool = False) -> Kept:
    """Watch the training passes of a guide's model."""
    from spile.keras.keeping import Watched

    return Watched(guide, take, pictures=pictures)


def seed(seed: int) -> None:
    """Seed Python, NumPy and the backend."""
    keras.utils.set_random_seed(seed)


def fit(job: Job) -> Fitted:
    """Train with `keras.Model.fit`."""
    from spile.keras import training

    return training.fit(job)


def load_trained(model: Any, path: Path) -> None:
    """Put all weights of another model of the same architecture into this one."""
    load_weights(model, path)


def load_reached(model: Any, path: Path) -> None:
    """Put back what `save_reached` wrote; layers past the deepest point keep what they have."""
    load_weights(model, path, allow_missing=True)


def device(model: Any) -> str:
    """What the backend of Keras computes on: ``cpu`` or ``cuda``."""
    return runtime().versions()["device"]


def versions(model: Any) -> dict[str, str]:
    """What can change a value: versions of Keras, its backend and the layers' library, and the machine."""
    found = runtime().versions()
    device = found.pop("device")
    roots = {type(layer).__module__.partition(".")[0] for layer in model._flatten_layers()}
    hub = {"keras_hub": sys.modules["keras_hub"].__version__} if "keras_hub" in roots else {}
    return {"keras": keras.__version__, **found, **hub, "machine": f"{platform.machine()} {device}"}
