"""Guided augmentation of the batches of a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from spile.augmentation.presets import policy_named
from spile.augmenting import augment, guide
from spile.backend import backend_named, framework_of
from spile.data import Source
from spile.errors import TrainingError
from spile.fitting import LabelledBatch
from spile.models import LoadedModel, as_loaded
from spile.training.recipe import Augmentation
from spile.training.rows import TrainingRows

Read = Callable[[int], Iterable[LabelledBatch]]


def augmented(
    read: Read, wanted: Augmentation, loaded: LoadedModel, source: Source, rows: TrainingRows, *, seed: int
) -> Read:
    """What reads the batches of an epoch, changed as a policy says.

    Raises `TrainingError` for data without pixels, and for a policy that mixes labels.
    """
    if source.kind != "image":
        raise TrainingError(
            f"{source.name} holds {source.kind}s, and augment= changes uint8 images: give a folder, a "
            "manifest, or uint8 arrays (n, height, width, 3)"
        )
    framework = framework_of(loaded.model) or "torch"
    canvas = backend_named(framework).canvas()
    policy = policy_named(wanted.policy, canvas) if isinstance(wanted.policy, str) else wanted.policy
    guiding = guide(
        loaded if wanted.guide is None else as_loaded(wanted.guide),
        wanted.at,
        reduce=wanted.reduce,
        resolution=wanted.resolution,
    )
    augmenter = augment(guiding, policy, seed=seed, maps=wanted.maps, framework=framework)
    if augmenter.mixes:
        raise TrainingError(
            f"{type(policy).__name__} mixes labels, and spile.train learns class numbers: use spile.feed in "
            "your own loop, or a policy that does not mix"
        )

    def changed(epoch: int) -> Iterator[LabelledBatch]:
        train = rows.train
        for batch in read(epoch):
            ids = [source.records[int(train[row])].id for row in np.asarray(batch.rows)]
            found = augmenter(canvas.from_pixels(batch.inputs), ids=ids, epoch=epoch)
            yield batch._replace(inputs=canvas.to_pixels(found.images))

    return changed
