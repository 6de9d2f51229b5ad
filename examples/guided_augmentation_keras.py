"""Guided augmentation in Keras: where a layer of VGG16 is active, images change otherwise than elsewhere.

    KERAS_BACKEND=jax python examples/guided_augmentation_keras.py --weights imagenet

The activations of ``block3_conv3`` become one map an image, scaled to 0..1; what exceeds 0.5 is the active
region. Outside of it colours change much and details blur; inside, brightness changes a little. Without
``--weights`` the network is untrained, so that the example runs without a download.
"""

from __future__ import annotations

import argparse

import keras
import numpy as np
from keras import layers

import spile
from spile.augmentation import Absolute, ByLevel
from spile.data import open_source

SIZE = 64
CLASSES = 5


def images_of(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn shapes on grey ground, and which shape it is."""
    source = open_source("demo:shapes")
    names = sorted({record.label for record in source.records})
    images = np.stack([source.read(position) for position in range(samples)])
    return images, np.array([names.index(record.label) for record in source.records[:samples]])


def classifier() -> keras.Model:
    """A small network to be trained."""
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )


def main(options: argparse.Namespace) -> dict[str, list[float]]:
    """Augment, train, and say what was changed."""
    keras.utils.set_random_seed(0)
    vgg = keras.applications.VGG16(weights=options.weights, include_top=False, input_shape=(SIZE, SIZE, 3))
    caffe = spile.ImagePreprocessing(
        crop=(SIZE, SIZE),
        scale=1.0,
        mean=(103.939, 116.779, 123.68),
        std=(1.0, 1.0, 1.0),
        channel_order="BGR",
    )
    guide = spile.guide(vgg, "block3_conv3", preprocessing=caffe)
    policy = ByLevel(
        Absolute(0.5),
        low=[
            layers.RandomColorJitter((0, 255), brightness_factor=0.4, contrast_factor=0.4, hue_factor=0.2),
            layers.RandomGaussianBlur(1.0, kernel_size=5, sigma=1.0),
        ],
        high=layers.RandomBrightness(0.1),
    )
    augment = spile.augment(guide, policy, seed=0)

    images, labels = images_of(options.samples)
    changed = augment(images[:4], ids=range(4), epoch=0).images
    maps = guide(images[:4]).on_pixels()
    difference = np.abs(changed.astype(float) - images[:4]).mean(-1)
    print(f"mean change where the layer is active:  {difference[maps > 0.5].mean():.1f} of 255")
    print(f"mean change elsewhere:                  {difference[maps <= 0.5].mean():.1f} of 255")

    model = classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    batches = spile.feed(augment, (images, labels), batch_size=16)
    history: dict[str, list[float]] = model.fit(batches, epochs=options.epochs, verbose=2).history
    return history


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--weights", default=None, help="imagenet, or a file")
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--epochs", type=int, default=2)

if __name__ == "__main__":
    main(parser.parse_args())
