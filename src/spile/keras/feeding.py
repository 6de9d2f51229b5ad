"""A feed as a ``PyDataset``, and an augmenter inside a ``tf.data`` pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from spile.augmentation.augmenter import Augmenter

if TYPE_CHECKING:
    from spile.feeding import Feed


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

    def set_epoch(self, epoch: int) -> None:
        """The epoch that comes, counted from 0."""
        self.epoch = epoch
        self._begun = False

    def __len__(self) -> int:
        return len(self.feed)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        """Images and labels."""
        found = self.feed.batch(number, self.epoch)
        return found.images, found.labels

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
