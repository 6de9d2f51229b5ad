"""A fitted downstream model as a folder that needs nothing else: safetensors, skops and JSON, no pickle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from spile import saved
from spile.backend import backend_of
from spile.data import Batch, batches
from spile.errors import DataError, ModelError
from spile.interfaces import Engine, Tap
from spile.models import LoadedModel, load_network, rebuildable
from spile.preprocessing import ImagePreprocessing, Preprocessing
from spile.probing.features import joined
from spile.probing.logits import Logits
from spile.probing.preparing import open_samples
from spile.probing.ridge import RidgeFit
from spile.probing.trusting import TREES, TRUSTED, sound_trees
from spile.taps import tap as make_tap

if TYPE_CHECKING:
    from spile.probing.exporting import Export

Array = npt.NDArray[Any]

_RIDGE, _SKOPS = "head.safetensors", "head.skops"
_ARRAYS = ("mean", "scale", "coef", "intercept")
_SETTINGS = ("alpha", "multilabel", "temperature")
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Deployed:
    """A network up to its points, and the model fitted on what flows out; made by `transfer` and `load`."""

    tap: Tap
    head: Any
    preprocessing: Preprocessing | None
    description: dict[str, Any]

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The labels, in the order of `predict_proba`'s columns; ``None`` for regression."""
        classes = self.description["classes"]
        return None if classes is None else tuple(classes)

    @property
    def unit_rows(self) -> bool:
        """Whether the head is given rows of length 1, see `spile.probing.features`."""
        return bool(self.description.get("unit_rows", len(self.description["points"]) > 1))

    def features(self, data: Any) -> Array:
        """What the head is given, (n, features): the points' activations as `probing.features` joins them."""
        return np.concatenate([values for _, values in self._run(data, strict=True)])

    def predict(self, data: Any) -> Array:
        """One label a sample: a number for regression; a row of 0 and 1, by `classes`, for several.

        `data` is anything `spile.extract` reads: paths, Pillow images, arrays, a folder, texts for a text
        model. Raises `DataError` naming a sample that cannot be read.
        """
        found: Array = np.asarray(self.head.predict(self.features(data)))
        return found

    def predict_proba(self, data: Any) -> Array:
        """One row a sample, one column a class of `classes`."""
        if not self._has_probabilities:
            fitted = "on numbers" if self.classes is None else f"with {type(self.head).__name__}"
            raise ModelError(f"this model was fitted {fitted} and gives no probabilities: use predict")
        found: Array = np.asarray(self.head.predict_proba(self.features(data)))
        return found

    def predict_batches(self, data: Any) -> Iterator[tuple[Batch, Array, Array | None]]:
        """Yield ``(batch, labels, probabilities or None)``; unreadable samples are in ``batch.skipped``."""
        for batch, values in self._run(data, strict=False):
            if not len(values):
                yield batch, np.empty(0), None
                continue
            sure = self.head.predict_proba(values) if self._has_probabilities else None
            yield batch, np.asarray(self.head.predict(values)), sure

    def batch_features(self, batch: Batch) -> Array:
        """The same as `features` for one batch that is read already."""
        return self._features(self._engine(), batch)

    def export(self, folder: str | Path, data: Any, *, formats: str | Sequence[str] = "all") -> Export:
        """Write network, pools, scaler and head as one model that needs no spile, and verify it.

        Formats: ``"pt2"``, ``"onnx"`` and ``"openvino"`` of a PyTorch model, ``"keras"`` of a Keras model.
        The input is what the preprocessing gives: uint8 images of the model's input size are normalised
        inside; resizing is described in ``model.json``, which also holds the labels. The first output is the
        scores (n, c), probabilities or decision values. A support vector machine brings its vectors along, a
        kNN all rows it was fitted on. Every file is run on up to 32 samples of `data` and compared with this
        pipeline.

        Raises `ModelError` for a head of trees or of the user's own and for a model that cannot be converted,
        `MissingDependency` for a format whose package is missing, and `CaptureError` where a file gives
        other scores (by more than 1e-4) or labels.
        """
        from spile.probing.exporting import export

        return export(self, folder, data, formats=formats)

    @property
    def _has_probabilities(self) -> bool:
        return self.classes is not None and hasattr(self.head, "predict_proba")

    def _run(self, data: Any, *, strict: bool) -> Iterator[tuple[Batch, Array]]:
        origin: LoadedModel | None = self.tap.origin
        engine = self._engine()
        reading = batches(
            open_samples([data] if isinstance(data, Image.Image) else data),
            self.preprocessing,
            batch_size=_BATCH,
            tokenizer=origin.tokenize if origin else None,
        )
        for batch in reading:
            if strict and batch.skipped:
                raise DataError(f"{batch.skipped[0].id} cannot be used: {batch.skipped[0].reason}")
            yield batch, self._features(engine, batch)

    def _engine(self) -> Engine:
        images = self.preprocessing if isinstance(self.preprocessing, ImagePreprocessing) else None
        return backend_of(self.tap.model).engine(self.tap, preprocessing=images, precision="float32")

    def _features(self, engine: Engine, batch: Batch) -> Array:
        if not batch.records:
            return np.empty((0, 0), np.float32)
        n = len(batch.records)
        try:
            found = engine(batch.inputs)
        except Exception as error:
            if problem := self._misfit(batch):
                raise DataError(problem) from error
            raise
        parts = [np.asarray(values).reshape(n, -1) for values in found.values()]
        return joined(parts, unit_rows=self.unit_rows)

    def _misfit(self, batch: Batch) -> str:
        """What is wrong with the shape of images that are taken as ready; empty where nothing seems to be."""
        images, shape = self.preprocessing, getattr(batch.inputs, "shape", None)
        if batch.kind != "array" or shape is None or not isinstance(images, ImagePreprocessing):
            return ""
        last = self.tap.origin is not None and self.tap.origin.channels_last
        sides = ("height", "width") if images.crop is None else images.crop
        wanted = (*sides, images.channels) if last else (images.channels, *sides)
        got = tuple(shape)[1:]
        if len(got) == 3 and all(isinstance(w, str) or w == g for w, g in zip(wanted, got, strict=True)):
            return ""
        return (
            f"arrays that are not uint8 are taken as ready, and the network cannot take these, (n, "
            f"{_sides(got)}): give (n, {_sides(wanted)}), or images as uint8 (n, height, width, 3)"
        )


def _sides(shape: Sequence[Any]) -> str:
    return ", ".join(map(str, shape))


def named(tap: Tap) -> bool:
    """Whether a library can build the tap's model again from its reference, without the user's own code."""
    origin: LoadedModel | None = tap.origin
    return origin is not None and rebuildable(origin.reference)


def check(tap: Tap, example: Any) -> None:
    """Raise the `ModelError` that `save` would, as far as it can be told before anything is fitted."""
    if not named(tap):
        backend_of(tap.model).export(tap, example, Path(), dry=True)


def save(
    folder: Path,
    *,
    tap: Tap,
    example: Any,
    head: Any,
    preprocessing: Preprocessing | None,
    about: dict[str, Any],
    exported: bool,
) -> None:
    """Write the folder, in place of what it held.

    `tap` has the points that `head` was fitted on, in that order; `example` is a batch as the model takes it.
    The network is saved as its reference and the weights that are needed to reach the points or, if
    `exported`, as a program. `about` is added to the
    description.
    """
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        network = _save_network(draft, tap, example, exported=exported)
        classes = _save_head(draft, head)
        settings = {name: getattr(head, name) for name in _SETTINGS} if isinstance(head, RidgeFit) else None
        description = {
            **network,
            "preprocessing": preprocessing.to_json() if preprocessing else None,
            "classes": classes,
            "ridge": settings,
            **about,
        }
        saved.write_description(draft, description)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(path: str | Path, *, device: str | None = None, trusted: Sequence[str] = ()) -> Deployed:
    """Load what `transfer` or `train` saved; ``run/`` and ``run/model`` both work. No code in it is run.

    `trusted` names types that a saved estimator may hold beside scikit-learn's public ones and those of
    spile's named heads, `spile.probing.heads.NAMES`. Raises `ModelError` where the folder is no saved model,
    or needs a type that is not trusted.
    """
    folder = saved.folder_of(path)
    if folder is None:
        raise ModelError(
            f"{path} holds no saved model (no {saved.DESCRIPTION}): give the folder that spile transfer or "
            "spile train wrote, e.g. run"
        )
    description = saved.read_description(folder)
    loaded = load_network(folder, description, device=device)
    points = description["points"]
    pools = {p["name"]: None if p["pool"] == "none" else p["pool"] for p in points}
    tapped = make_tap(loaded, {p["name"]: p["address"] for p in points}, pool=pools)
    return Deployed(tapped, _load_head(folder, description, trusted), loaded.preprocessing, description)


def untrusted_types(folder: Path) -> list[str]:
    """The types that a saved head holds and that skops does not trust by itself."""
    import skops.io

    path = folder / _SKOPS
    return sorted(skops.io.get_untrusted_types(file=path)) if path.is_file() else []


def _save_network(folder: Path, tap: Tap, example: Any, *, exported: bool) -> dict[str, Any]:
    backend = backend_of(tap.model)
    names = [point.name for point in tap.points]
    if exported:
        made = backend.export(tap, example, folder)
        reference, addresses, pools = made.file, made.addresses, made.pools
    else:
        backend.save_reached(tap, example, folder / saved.WEIGHTS)
        reference = saved.HERE if (folder / saved.CONFIG).is_file() else tap.origin.reference
        addresses = tuple(point.address for point in tap.points)
        pools = tuple(str(point.pool) for point in tap.points)
    points = [
        {"name": name, "address": address, "pool": pool}
        for name, address, pool in zip(names, addresses, pools, strict=True)
    ]
    return {"reference": reference, "points": points}


def _save_head(folder: Path, head: Any) -> list[Any] | None:
    """Write the head; returns its classes as JSON has them."""
    if isinstance(head, RidgeFit):
        from safetensors.numpy import save_file

        arrays = {name: getattr(head, name) for name in _ARRAYS}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _RIDGE)
        return None if head.classes is None else list(head.classes.tolist())
    import skops.io

    skops.io.dump(head, folder / _SKOPS)
    return list(np.asarray(head.classes_).tolist()) if hasattr(head, "classes_") else None


def _load_head(folder: Path, description: dict[str, Any], trusted: Sequence[str]) -> Any:
    if description.get("trained") is not None:
        return Logits(np.asarray(description["classes"]))
    if (folder / _SKOPS).is_file():
        return _load_estimator(folder, trusted)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        stored = load_file(folder / _RIDGE)
        mean, scale, coef, intercept = (stored[name] for name in _ARRAYS)
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder / _RIDGE} cannot be read ({error}): make the run again") from error
    classes = None if description["classes"] is None else np.asarray(description["classes"])
    return RidgeFit(mean, scale, coef, intercept, classes=classes, **description["ridge"])


def _load_estimator(folder: Path, trusted: Sequence[str]) -> Any:
    import skops.io

    unknown = [name for name in untrusted_types(folder) if name not in (*TRUSTED, *trusted)]
    if unknown:
        raise ModelError(
            f"{folder / _SKOPS} holds types that are not trusted: {', '.join(unknown)}. If you trust them: "
            f"spile.load({str(folder)!r}, trusted={unknown})"
        )
    head = skops.io.load(folder / _SKOPS, trusted=[*TRUSTED, *trusted])
    if TREES not in trusted and not sound_trees(head):
        raise ModelError(
            f"{folder / _SKOPS} holds trees that lead outside of themselves, or split by category, and are "
            "not trusted: the file may be broken or forged. If you trust it: "
            f"spile.load({str(folder)!r}, trusted={[TREES]})"
        )
    return head
