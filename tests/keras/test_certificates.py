"""The proof that heads leave no trace, and that it would notice one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile

pytestmark = pytest.mark.essential


def network() -> keras.Model:
    start = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, activation="relu", name="middle")(start)
    x = layers.Conv2D(4, 3, activation="relu", name="late")(x)
    return keras.Model(start, layers.Dense(3, name="last")(layers.GlobalAveragePooling2D()(x)))


def supervise(base: keras.Model) -> Any:
    return spile.supervise(base, num_classes=3, taps=["middle"], head="linear")


IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")


def failing(certificate: Any) -> list[str]:
    checks = ("same_object", "same_keys", "same_outputs", "same_macs", "same_graph")
    return [check for check in checks if getattr(certificate, check) is False]


def test_it_holds_for_another_size_of_the_batch() -> None:
    assert supervise(network()).certificate(IMAGES[:1]).holds


def test_it_notices_a_changed_flag_or_a_further_weight() -> None:
    base = network()
    supervised = supervise(base)
    base.get_layer("late").trainable = False
    assert "same_keys" in failing(supervised.certificate(IMAGES))


def test_it_notices_a_pass_that_is_not_the_configured_one() -> None:
    """Such as a layer whose call was left wrapped."""
    base = network()
    supervised = supervise(base)
    late = base.get_layer("late")
    call = late.call
    object.__setattr__(late, "call", lambda x, **kwargs: call(x, **kwargs) * 1.0001)
    assert failing(supervised.certificate(IMAGES)) == ["same_outputs"]
    object.__delattr__(late, "call")
    assert supervised.certificate(IMAGES).holds


def test_it_notices_another_layer_and_another_graph() -> None:
    base = network()
    supervised = supervise(base)
    base.get_layer("late").activation = keras.activations.tanh
    assert "same_graph" in failing(supervised.certificate(IMAGES))
    supervised = supervise(base)
    base.further = layers.Dense(2)
    base.further.build((None, 2))
    assert {"same_object", "same_keys"} <= set(failing(supervised.certificate(IMAGES)))


class Unconfigured(keras.Model):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.middle, self.last = layers.Dense(width), layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.last(self.middle(ops.mean(x, axis=(1, 2))))


def test_a_model_without_a_configuration_has_no_twin() -> None:
    base = Unconfigured(5)
    base(IMAGES)
    supervised = spile.supervise(base, num_classes=3, taps=["middle"], head="linear", example=IMAGES)
    certificate = supervised.certificate(IMAGES)
    assert certificate.holds
    assert any("cannot be built from its configuration" in note for note in certificate.notes)


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", ["ResNet50V2", "MobileNetV2", "DenseNet121", "EfficientNetB0", "ConvNeXtTiny"]
)
def test_it_holds_for_applications(name: str) -> None:
    """After a step of training with heads where `spile.supervise` puts them."""
    base = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5)
    supervised = spile.supervise(base, num_classes=5)
    assert 2 <= len(supervised.heads) <= 3
    supervised.compile(optimizer=keras.optimizers.SGD(1e-3))
    images = np.random.default_rng(0).uniform(0, 1, (4, 64, 64, 3)).astype("float32")
    told = supervised.train_on_batch(images, np.arange(4), return_dict=True)
    assert all(np.isfinite(float(value)) for value in told.values())
    certificate = supervised.certificate(images)
    assert certificate.holds and certificate.same_graph, str(certificate)
