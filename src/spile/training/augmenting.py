"""Guided augmentation of the batches of a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spile.augmentation.augmenter import Augmenter
from spile.augmentation.pictures import rows_of
from spile.augmentation.presets import policy_named
from spile.augmenting import augment, guide
from spile.backend import backend_named, framework_of
from spile.data import Source
from spile.errors import TrainingError
from spile.fitting import LabelledBatch
from spile.models import as_loaded
from spile.training.building import Built
from spile.training.recipe import Augmentation
from spile.training.rows import TrainingRows

Read = Callable[[int], Iterable[LabelledBatch]]

_DRAWN = 4


def augmenter_of(
    wanted: Augmentation, built: Built, source: Source, rows: TrainingRows, *, seed: int, heads: bool
) -> Augmenter:
    """What changes the batches as a policy says.

    Raises `TrainingError` for data without pixels, and for a policy that mixes labels beside auxiliary heads.
    """
    if source.kind != "image":
        raise TrainingError(
            f"{source.name} holds {source.kind}s, and augment= changes uint8 images: give a folder, a "
            "manifest, or uint8 arrays (n, height, width, 3)"
        )
    loaded = built.loaded
    framework = framework_of(loaded.model) or "torch"
    canvas = backend_named(framework).canvas()
    policy = policy_named(wanted.policy, canvas) if isinstance(wanted.policy, str) else wanted.policy
    guiding = guide(
        loaded if wanted.guide is None else as_loaded(wanted.guide),
        wanted.at,
        reduce=wanted.reduce,
        resolution=wanted.resolution,
        example=built.example if wanted.guide is None else None,
    )
    made = augment(
        guiding, policy, seed=seed, maps=wanted.maps, classes=len(rows.classes), framework=framework
    )
    if made.mixes and heads:
        raise TrainingError(
            f"{type(policy).__name__} mixes labels, and the targets of auxiliary heads learn class numbers: "
            "leave supervise= out, or take a policy that does not mix"
        )
    return made


def augmented(read: Read, augmenter: Augmenter, source: Source, rows: TrainingRows) -> Read:
    """What reads the batches of an epoch, changed; after a mix labels are (n, classes) weights."""
    canvas = augmenter.canvas

    def changed(epoch: int) -> Iterator[LabelledBatch]:
        train = rows.train
        for batch in read(epoch):
            ids = [source.records[int(train[row])].id for row in np.asarray(batch.rows)]
            weights = _weights(augmenter, batch.labels)
            found = augmenter(canvas.from_pixels(batch.inputs), weights, ids=ids, epoch=epoch)
            labels = batch.labels if weights is None else canvas.array(found.labels)
            yield LabelledBatch(canvas.to_pixels(found.images), labels, batch.rows)

    return changed


def drawn(
    augmenter: Augmenter, read: Read, source: Source, rows: TrainingRows, folder: Path, *, epoch: int
) -> list[dict[str, Any]]:
    """Pictures of what is done to a few samples, in `folder`, as ``run.json`` names them."""
    batch = next(iter(read(epoch)), None)
    if batch is None:
        return []
    train = rows.train
    ids = [str(source.records[int(train[row])].id) for row in np.asarray(batch.rows)][:_DRAWN]
    pixels, weights = np.asarray(batch.inputs)[:_DRAWN], _weights(augmenter, batch.labels[:_DRAWN])
    made, _, _ = rows_of(augmenter, ids, pixels, weights, epochs=(epoch, epoch + 1))
    names = ("map", "bands", f"epoch {epoch + 1}", f"epoch {epoch + 2}")
    target = folder / "augmented"
    target.mkdir(exist_ok=True)
    found = []
    for row, (one, pictures) in enumerate(zip(ids, made, strict=True)):
        paths = [f"augmented/{row}-{column}.png" for column in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            Image.fromarray(np.squeeze(picture)).save(folder / path)
        levels = [{"point": name, "picture": path} for name, path in zip(names, paths[1:], strict=True)]
        found.append({"title": one, "picture": paths[0], "levels": levels})
    return found


def _weights(augmenter: Augmenter, labels: Any) -> Any:
    """Class numbers as weights, where they are mixed; a guide of other classes must not be told of them."""
    if not augmenter.mixes:
        return None
    return np.eye(augmenter.classes or 0, dtype=np.float32)[np.asarray(labels)]
