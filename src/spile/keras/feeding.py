"""A feed as a ``PyDataset``, and an augmenter inside a ``tf.data`` pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from spile.augmentation.augmenter import Augmenter
from spile.augmentation.geometry import Frame

if TYPE_CHECKING:
    from spile.feeding import Feed

_Given = dict[bytes, list[tuple[str, Frame | None]]]


class Batches(keras.utils.PyDataset):
    """Augmented batches. `fit` goes on to the next epoch by itself.

    The backends signal the ends of epochs differently, so the first epoch may count as 1. With
    ``callbacks=[Epochs(batches)]`` the number is Keras' own, also in a run that is resumed.
    """

    def __init__(self, feed: Feed, workers: int) -> None:
        super().__init__(workers=max(1, workers), use_multiprocessing=False)
        self.feed = feed
        self.epoch = 0
        self._begun = False
        self._given: list[_Given] | None = None
        """Of this epoch, which the next one's may run ahead of, and of the one before."""

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes, counted from 0."""
        self.epoch = epoch
        self._begun = False

    def __len__(self) -> int:
        return len(self.feed)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        """Images and labels."""
        found, origins = self.feed.traced(number, self.epoch)
        if self._given is not None:
            for image, one, frame in zip(found.images, origins.ids, origins.frames, strict=True):
                self._given[0].setdefault(_digest(image), []).append((one, frame))
        return found.images, found.labels

    def remember(self) -> None:
        """From now on know by its pixels which sample a picture is of."""
        self._given = [{}, {}]

    def forget(self) -> None:
        """An epoch is over."""
        if self._given is not None:
            self._given = [{}, self._given[0]]

    def recognised(self, pictures: Any) -> tuple[list[str], list[Frame | None]]:
        """Which samples pictures (n, height, width, channels) are of; a frame of ``None`` for any other.

        Of equal pictures of several samples, whose maps are equal too, each is taken in its turn.
        """
        ids: list[str] = []
        frames: list[Frame | None] = []
        for picture in pictures:
            key = _digest(picture)
            found = next((held for given in self._given or () if (held := given.get(key))), None)
            one, frame = found[0] if found else ("", None)
            if found and len(found) > 1:
                found.append(found.pop(0))
            ids.append(one)
            frames.append(frame)
        return ids, frames

    def on_epoch_begin(self) -> None:
        """Keras' own signal."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Keras' own signal, which also comes where no epoch has begun."""
        self.epoch += self._begun
        self._begun = False


class Epochs(keras.callbacks.Callback):
    """Tells a feed, or an augmenter in a pipeline of your own, which epoch it is."""

    def __init__(self, told: Batches | Augmenter) -> None:
        super().__init__()
        self.told = told

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras' own signal."""
        self.told.set_epoch(epoch)


def mapped(augmenter: Augmenter) -> Callable[..., Any]:
    """For ``dataset.map`` of batches (images, labels, ids), on the TensorFlow backend.

    The augmenter runs as plain Python: its guide is a Keras model of its own.
    """
    import tensorflow as tf

    def run(images: Any, labels: Any, ids: Any) -> tuple[Any, Any]:
        names = [one.decode() if isinstance(one, bytes) else str(one) for one in ids.numpy().tolist()]
        found = augmenter(images.numpy(), labels.numpy(), ids=names)
        return found.images, found.labels

    def step(images: Any, labels: Any, ids: Any) -> tuple[Any, Any]:
        mixes = tf.float32 if augmenter.mixes else labels.dtype
        pixels, weights = tf.py_function(run, [images, labels, ids], [images.dtype, mixes])
        pixels.set_shape(images.shape)
        weights.set_shape([images.shape[0], augmenter.classes] if augmenter.mixes else labels.shape)
        return pixels, weights

    return step


def _digest(picture: Any) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=16).digest()
