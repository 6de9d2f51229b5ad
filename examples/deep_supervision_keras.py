"""Deep supervision in Keras: a ResNet50 with three auxiliary classifiers, and no trace of them afterwards.

    KERAS_BACKEND=jax python examples/deep_supervision_keras.py

Early layers learn from losses of their own, beside what reaches them from the far end. The images are small
and the training is short, so that it takes seconds: look at the losses of the heads, not at the accuracy.
"""

from __future__ import annotations

import keras
import numpy as np

import spile

CLASSES = 4
SIZE = 32


def quarters(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, of which one quarter is brighter: the label says which."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, samples)
    images = random.normal(size=(samples, SIZE, SIZE, 3)).astype("float32")
    half = SIZE // 2
    for image, label in zip(images, labels, strict=True):
        y, x = half * (label // 2), half * (label % 2)
        image[y : y + half, x : x + half] += 1
    return images, labels


def main(samples: int = 64, epochs: int = 2) -> dict[str, list[float]]:
    """Train, report, and give the model back."""
    keras.utils.set_random_seed(0)
    network = keras.applications.ResNet50(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES)
    supervised = spile.supervise(
        network,
        num_classes=CLASSES,
        taps=["conv1_relu", "conv3_block4_out", "conv5_block3_out"],
        weight=spile.supervision.Constant(0.9),  # shared evenly: 1 for the output, 0.3 for each head
    )
    supervised.compile(optimizer=keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    images, labels = quarters(samples, seed=0)
    history: dict[str, list[float]] = supervised.fit(
        images, labels, epochs=epochs, batch_size=16, verbose=2
    ).history

    certificate = supervised.certificate(images[:2])
    print(certificate)
    assert certificate.holds
    assert supervised.strip() is network
    return history


if __name__ == "__main__":
    main()
