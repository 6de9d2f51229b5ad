"""A fitted downstream model as a folder that needs nothing else, and back: safetensors, skops and JSON, no pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.backend import Engine, Tap, backend_of
from spile.data import Batch, batches, open_source
from spile.errors import DataError, ModelError
from spile.models import LoadedModel, load_model
from spile.preprocessing import ImagePreprocessing, Preprocessing, from_json
from spile.probing.ridge import RidgeFit
from spile.taps import tap as make_tap

Array = npt.NDArray[Any]

FORMAT = 1
_DESCRIPTION, _WEIGHTS, _NETWORK = "model.json", "network.safetensors", "network.pt2"
_RIDGE, _SKOPS = "head.safetensors", "head.skops"
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Deployed:
    """A network truncated at one point, and the model fitted on what flows out. Made by `transfer`, read by `load`."""

    tap: Tap
    head: Any
    preprocessing: Preprocessing | None
    description: dict[str, Any]

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The labels, in the order of `predict_proba`'s columns; ``None`` for regression."""
        classes = self.description["classes"]
        return None if classes is None else tuple(classes)

    def features(self, images: Any) -> Array:
        """What flows out of the tap: float32 (n, features)."""
        return np.concatenate([values for _, values in self._run(images, strict=True)])

    def predict(self, images: Any) -> Array:
        """One label a sample (one number, for regression).

        `images` is anything `spile.extract` reads: paths, Pillow images, arrays, a folder, texts for a text model. Raises
        `DataError` naming a sample that cannot be read.
        """
        found: Array = np.asarray(self.head.predict(self.features(images)))
        return found

    def predict_proba(self, images: Any) -> Array:
        """One row a sample, one column a class of `classes`. Of a ridge head: a softmax, which is not calibrated."""
        if self.classes is None:
            raise ModelError(
                "this model was fitted on numbers and gives no probabilities: use predict(images)"
            )
        found: Array = np.asarray(self.head.predict_proba(self.features(images)))
        return found

    def predict_batches(self, data: Any) -> Any:
        """Yield ``(batch, labels, probabilities or None)`` over `data`; unreadable samples are in ``batch.skipped``."""
        for batch, values in self._run(data, strict=False):
            known = self.classes is not None and hasattr(self.head, "predict_proba") and len(values)
            labels = self.head.predict(values) if len(values) else np.empty(0)
            yield batch, labels, self.head.predict_proba(values) if known else None

    def batch_features(self, batch: Batch) -> Array:
        """What flows out of the tap for one batch that is read already: float32 (n, features)."""
        return _features(self._engine(), batch)

    def _run(self, data: Any, *, strict: bool) -> Any:
        source = open_source(
            [data] if isinstance(data, (str, Path)) and Path(data).is_file() and _is_image(data) else data
        )
        engine = self._engine()
        origin: LoadedModel | None = self.tap.origin
        reading = batches(
            source,
            self.preprocessing,
            batch_size=_BATCH,
            tokenizer=origin.tokenize if origin else None,
        )
        for batch in reading:
            if strict and batch.skipped:
                raise DataError(f"{batch.skipped[0].id} cannot be used: {batch.skipped[0].reason}")
            yield batch, _features(engine, batch)

    def _engine(self) -> Engine:
        images = self.preprocessing if isinstance(self.preprocessing, ImagePreprocessing) else None
        return backend_of(self.tap.model).engine(self.tap, preprocessing=images, precision="float32")


def _features(engine: Engine, batch: Batch) -> Array:
    if not batch.records:
        return np.empty((0, 0), np.float32)
    (values,) = engine(batch.inputs).values()
    return np.asarray(values).reshape(len(batch.records), -1)


def _is_image(path: str | Path) -> bool:
    return Path(path).suffix.lower() not in (".csv", ".parquet", ".npz")


def save(
    folder: Path,
    *,
    tap: Tap,
    example: Any,
    head: Any,
    preprocessing: Preprocessing | None,
    about: dict[str, Any],
) -> None:
    """Write the folder. `tap` has one point; `example` is a batch as the model takes it.

    A model that came from a reference is saved as that reference and the weights it needs to reach the point; a bare
    object as an exported program. `about` is added to the description.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend = backend_of(tap.model)
    (point,) = tap.points
    origin: LoadedModel | None = tap.origin
    if origin is not None:
        network = {"reference": origin.reference, "address": point.address, "pool": str(point.pool)}
        backend.save_reached(tap, example, folder / _WEIGHTS)
    else:
        network = {"reference": _NETWORK, "address": "@out:0", "pool": "auto"}
        backend.export(tap, example, folder / _NETWORK)
    if isinstance(head, RidgeFit):
        classes = None if head.classes is None else head.classes.tolist()
        _save_ridge(head, folder / _RIDGE)
    else:
        classes = (
            [c.item() if isinstance(c, np.generic) else c for c in head.classes_]
            if hasattr(head, "classes_")
            else None
        )
        _save_estimator(head, folder / _SKOPS)
    description = {
        "format": FORMAT,
        **network,
        "preprocessing": preprocessing.to_json() if preprocessing else None,
        "classes": classes,
        "alpha": head.alpha if isinstance(head, RidgeFit) else None,
        **about,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def load(path: str | Path, *, device: str | None = None, trusted: Sequence[str] = ()) -> Deployed:
    """Load what `transfer` saved; ``run/`` and ``run/model`` both work. No code from the folder is run.

    `trusted` names types beyond scikit-learn's own that a saved estimator may hold. Raises `ModelError` where the folder is
    no saved model, or needs a type that is not trusted.
    """
    folder = Path(path)
    if not (folder / _DESCRIPTION).is_file() and (folder / "model" / _DESCRIPTION).is_file():
        folder = folder / "model"
    if not (folder / _DESCRIPTION).is_file():
        raise ModelError(
            f"{path} holds no saved model (no {_DESCRIPTION}): give the folder that spile transfer wrote, e.g. run/model"
        )
    description = json.loads((folder / _DESCRIPTION).read_text())
    if description.get("format") != FORMAT:
        raise ModelError(
            f"{path} has format {description.get('format')!r}; this spile reads {FORMAT}: pip install --upgrade spile"
        )
    loaded = _network(folder, description, device)
    tapped = make_tap(loaded, description["address"], pool=_pool(description["pool"]))
    head = (
        _load_ridge(folder / _RIDGE, description)
        if (folder / _RIDGE).is_file()
        else _load_estimator(folder / _SKOPS, trusted)
    )
    return Deployed(tapped, head, from_json(description["preprocessing"]), description)


def _network(folder: Path, description: dict[str, Any], device: str | None) -> LoadedModel:
    preprocessing = from_json(description["preprocessing"])
    if description["reference"] == _NETWORK:
        loaded = load_model(str(folder / _NETWORK), device=device)
    else:
        loaded = load_model(
            description["reference"],
            pretrained=False,
            device=device,
            input_size=description.get("input_size"),
        )
        backend_of(loaded.model).load_reached(loaded.model, folder / _WEIGHTS)
    return replace(loaded, preprocessing=preprocessing or loaded.preprocessing)


def _pool(name: str) -> str | None:
    return None if name == "none" else name


def _save_ridge(fit: RidgeFit, path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {"mean": fit.mean, "scale": fit.scale, "coef": fit.coef, "intercept": fit.intercept}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def _load_ridge(path: Path, description: dict[str, Any]) -> RidgeFit:
    from safetensors.numpy import load_file

    arrays = load_file(path)
    classes = None if description["classes"] is None else np.asarray(description["classes"])
    return RidgeFit(
        mean=arrays["mean"],
        scale=arrays["scale"],
        coef=arrays["coef"],
        intercept=arrays["intercept"],
        alpha=description["alpha"],
        classes=classes,
    )


def _save_estimator(head: Any, path: Path) -> None:
    import skops.io

    skops.io.dump(head, path)


def _load_estimator(path: Path, trusted: Sequence[str]) -> Any:
    import skops.io

    unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(trusted))
    if unknown:
        raise ModelError(
            f"{path.name} holds types that are not trusted: {', '.join(unknown)}. If you trust them: spile.load(..., trusted={unknown})"
        )
    return skops.io.load(path, trusted=list(trusted))
