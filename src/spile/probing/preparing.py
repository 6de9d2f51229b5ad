"""Getting ready: the data opened, a few samples read, the layers tapped, the folder made."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from spile import structure
from spile.backend import backend_of
from spile.data import Batch, Source, Stream, batches, open_source
from spile.data.folders import has_image_suffix
from spile.errors import DataError, StoreError
from spile.interfaces import Tap
from spile.models import LoadedModel
from spile.observation import Observation
from spile.preprocessing import ImagePreprocessing
from spile.probing.rows import check_labels
from spile.resolution import AddressesLike, AddressLike
from spile.store import Store
from spile.taps import tap as make_tap

_RAW_IMAGE, _RAW_VECTOR = "raw pixels", "raw input"
_RAW_CELLS = "grid:28"
_FEW = 8


def open_data(data: Any) -> Source | Stream:
    """The data, which is read twice: a few samples, then all. What is useless is refused."""
    if isinstance(data, Iterator):
        raise DataError(
            f"a {type(data).__name__} can be read only once: pass what makes it, such as a DataLoader, a "
            "list of samples, or arrays (x, y)"
        )
    source = open_source(data)
    if isinstance(source, Source):
        check_labels(record.label for record in source.records)
    return source


def open_samples(data: Any) -> Source | Stream:
    """As `open_source`; a file that is named twice is two samples, the second with the id ``file (2)``."""
    given = listed(data)
    if isinstance(given, list) and all(
        isinstance(one, str | Path) and has_image_suffix(one) for one in given
    ):
        names = [Path(one).as_posix() for one in given]
        counts: Counter[str] = Counter()
        for at, name in enumerate(names):
            counts[name] += 1
            names[at] = name if counts[name] == 1 else f"{name} ({counts[name]})"
        if len(counts) < len(names):
            return open_source(given, ids=names)
    return open_source(data)


def listed(data: Any) -> Any:
    """Paths, texts and images in an array, a pandas series or a tuple as a list; all else as it is."""
    values = data
    if getattr(getattr(data, "dtype", None), "kind", None) in ("O", "T", "U"):
        values = data.squeeze(1).tolist() if data.ndim == 2 and data.shape[1] == 1 else data.tolist()
    elif isinstance(data, tuple):
        values = list(data)
    plain = isinstance(values, list) and all(isinstance(one, str | Path | Image.Image) for one in values)
    return values if plain else data


def few_samples(loaded: LoadedModel, source: Source | Stream) -> Batch:
    """A few samples as the model is given them, for the dry pass and for comparing the saved model."""
    preprocessing = None if source.kind == "array" else loaded.preprocessing
    reading = batches(source, preprocessing, batch_size=_FEW, tokenizer=loaded.tokenize)
    skipped: list[str] = []
    try:
        for batch in reading:
            if batch.records:
                return batch
            skipped += [f"{bad.id}: {bad.reason}" for bad in batch.skipped]
    finally:
        reading.close()
    raise DataError(f"{source.name}: not one sample can be used ({'; '.join(skipped[:3]) or 'it is empty'})")


def example_of(loaded: LoadedModel, few: Batch) -> Any:
    """The batch as the model takes it."""
    return backend_of(loaded.model).example(few.inputs, preprocessing=images_of(loaded), model=loaded.model)


def images_of(loaded: LoadedModel) -> ImagePreprocessing | None:
    """What the model wants done to images; ``None`` where it takes none."""
    return loaded.preprocessing if isinstance(loaded.preprocessing, ImagePreprocessing) else None


def texts_of(source: Source | Stream, store: Store) -> list[str] | None:
    """The texts behind the rows of the store; ``None`` where samples are none, or are not read again."""
    if isinstance(source, Stream) or source.kind != "text":
        return None
    return [str(source.read(int(position))) for position in store.positions]


def texts_again(data: Any, store: Store) -> list[str]:
    """The texts behind the rows of a store, from the data that it was made of.

    Raises `DataError` where that is other data, by the ids of its samples, or none of texts.
    """
    source = open_source(data)
    if isinstance(source, Stream) or source.kind != "text":
        raise DataError(f"{source.name} holds no texts, so tf-idf cannot count words. Leave texts out")
    known = {position: record.id for position, record in enumerate(source.records)}
    if [known.get(int(position)) for position in store.positions] != list(store.ids):
        raise DataError(
            f"{source.name} is not what the store was made of ({store.manifest.recorded['data']})"
        )
    return texts_of(source, store) or []


def make_folder(out: str | os.PathLike[str]) -> Path:
    """The run's folder, made if need be. Raises `StoreError` where that cannot be."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}. Name another folder (out=, --out)"
        ) from error
    return folder


def tap_for(loaded: LoadedModel, observation: Observation, addresses: AddressesLike, example: Any) -> Tap:
    """The wanted layers, the last features, and the input where it is one image or one vector."""
    wanted: dict[str, AddressLike] = {}
    raw = _raw(observation)
    if raw is not None:
        wanted[raw] = "@in"
    with closing(make_tap(loaded, addresses, example=example)) as found:
        wanted |= {point.name: point.address for point in found.points}
        taken = {point.address for point in found.points}
    last = structure.last_features(observation)
    if last not in taken:
        wanted[last] = last
    return make_tap(loaded, wanted, pool={raw: _RAW_CELLS} if raw == _RAW_IMAGE else "auto", example=example)


def _raw(observation: Observation) -> str | None:
    items = observation.root.inputs
    if len(items) != 1 or not items[0].dtype.startswith("float"):
        return None
    return {"BCYX": _RAW_IMAGE, "BYXC": _RAW_IMAGE, "BC": _RAW_VECTOR}.get(items[0].layout or "")
