"""Feeds on Keras: `fit` counts the epochs, threads change nothing, and tf.data takes an augmenter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import spile
from spile.augmentation import ByLevel, Crop, Inside, MapCutMix, Quantile
from spile.keras.feeding import Epochs, mapped

SEEN = spile.ImagePreprocessing(resize=32, crop=(32, 32))


def data(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), np.uint8), np.arange(count) % 3


@pytest.fixture(scope="module")
def guide() -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=4, padding="same", activation="relu", name="early")(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    return spile.guide(model, "early", preprocessing=SEEN)


def policy() -> ByLevel:
    return ByLevel(Quantile(0.5), low=layers.RandomBrightness(0.5), high=layers.RandomFlip("horizontal"))


def test_batches_do_not_depend_on_when_they_are_made(guide: Any) -> None:
    bank = spile.MapBank(guide).fill(spile.data.open_source(data()))
    batches = spile.feed(spile.augment(bank, policy()), data(), batch_size=4, crop=Crop((24, 24)))
    first = [batches[number][0] for number in range(3)]
    assert first[0].shape == (4, 24, 24, 3)
    np.testing.assert_array_equal(batches[1][0], first[1])
    batches.on_epoch_end()
    assert batches.epoch == 0  # none had begun
    batches.on_epoch_begin()
    batches.on_epoch_end()
    assert batches.epoch == 1
    assert any((batches[number][0] != first[number]).any() for number in range(3))
    batches.set_epoch(0)
    np.testing.assert_array_equal(batches[2][0], first[2])


def test_threads_that_share_a_layer_make_the_same_batches(guide: Any) -> None:
    drawn = Inside([layers.RandomRotation(0.2), layers.RandomBrightness(0.4)])
    batches = spile.feed(spile.augment(guide, drawn), data(64), batch_size=4)
    alone = [batches[number][0] for number in range(16)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda number: batches[number][0], range(16)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fit_goes_through_the_epochs(guide: Any) -> None:
    batches = spile.feed(spile.augment(guide, MapCutMix()), data(), batch_size=4)
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    seen: list[int] = []
    make = batches.feed.traced
    batches.feed.traced = lambda number, epoch: seen.append(epoch) or make(number, epoch)
    model.fit(batches, epochs=3, verbose=0)
    assert len(set(seen)) >= 3  # never the same epoch twice
    assert seen == sorted(seen)
    seen.clear()
    model.fit(batches, epochs=6, initial_epoch=4, verbose=0, callbacks=[Epochs(batches)])
    assert {4, 5} <= set(seen)
    assert seen[-1] == 5
    images, labels = batches[0]
    assert images.dtype == np.uint8
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)


def test_the_callback_counts_for_a_pipeline_of_one_s_own(guide: Any) -> None:
    augmenter = spile.augment(guide, policy())
    callback = Epochs(augmenter)
    callback.on_epoch_begin(3)
    assert augmenter.epoch == 3


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data runs TensorFlow")
@pytest.mark.parametrize("mixes", [False, True])
def test_tf_data(guide: Any, mixes: bool) -> None:
    import tensorflow as tf

    augmenter = spile.augment(guide, MapCutMix() if mixes else policy(), classes=3)
    images, labels = data()[0][:, :32, :32], data()[1]
    ids = [f"s{i}" for i in range(12)]
    batches = tf.data.Dataset.from_tensor_slices((images, labels, ids)).batch(4)
    found = list(batches.map(mapped(augmenter)))
    assert found[0][0].shape == (4, 32, 32, 3)
    direct = augmenter(images[:4], labels[:4], ids=ids[:4])
    np.testing.assert_array_equal(found[0][0].numpy(), direct.images)
    np.testing.assert_allclose(found[0][1].numpy(), direct.labels, atol=1e-6)
    together = list(batches.map(mapped(augmenter), num_parallel_calls=3))
    for (pixels, _), (others, _) in zip(found, together, strict=True):
        np.testing.assert_array_equal(pixels.numpy(), others.numpy())
