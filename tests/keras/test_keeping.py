"""Kept maps out of a compiled `fit`, on every backend: the guide's own, each of its own sample."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import spile
from spile.augmentation import AttentionDrop, ByLevel, Crop, Frame, Photometric, Quantile
from spile.augmentation.policies import Policy
from spile.data import open_source
from spile.errors import AugmentationError, CaptureError
from spile.keras.keeping import KeepMaps

SIDE = 16


def net(scale: float = 1 / 255, side: int = SIDE) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((side, side, 3))
    x = layers.Rescaling(scale)(inputs)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="early")(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
    return model


PIXELS = np.random.default_rng(0).integers(0, 256, (10, SIDE, SIDE, 3), np.uint8)
DATA = (PIXELS, np.arange(10) % 2)
IDS = [record.id for record in open_source(DATA).records]
NOTHING = ByLevel(Quantile(0.5), low=Photometric(lambda pixels: pixels))


def parts(model: keras.Model, policy: Policy = NOTHING) -> tuple[spile.MapBank, Any]:
    bank = spile.MapBank(spile.guide(model, "early", given="ready"), refresh=1, missing="flat")
    return bank, spile.feed(
        spile.augment(bank, policy), DATA, batch_size=4, crop=Crop((SIDE, SIDE)), workers=2
    )


def test_fit_fills_a_bank() -> None:
    model = net()
    bank, batches = parts(model)
    model.fit(batches, epochs=1, verbose=0)  # traced before there is anything to tell
    drawn = []
    make = batches.feed.traced
    batches.feed.traced = lambda number, epoch: drawn.append((epoch, make(number, epoch))) or drawn[-1][1]
    model.fit(batches, epochs=2, verbose=0, callbacks=[KeepMaps(bank, batches)])  # in an order of Keras' own
    assert sorted(bank._kept) == sorted(IDS)
    assert bank.epoch == 2
    guide = spile.guide(model, "early", given="ready")
    last = {}
    for _, (found, origins) in drawn:
        expected = guide(found.images.astype(np.float32))
        for row, one in enumerate(origins.ids):
            last.setdefault(one, []).append((origins.frames[row], expected.values[row]))
    for one, seen in last.items():
        frame, values = next(
            (f, v) for f, v in reversed(seen) if bank._kept[one][1].grid(v.shape) == _grid(guide, f)
        )
        np.testing.assert_allclose(bank.maps([one], [frame]).values[0], values, atol=5e-3)
    assert not any("call" in vars(layer) for layer in (model, *model.layers))
    bank._kept.clear()
    model.fit(batches, epochs=1, verbose=0)
    assert not bank._kept  # nothing is told once it is over


def _grid(guide: Any, frame: Frame) -> Any:
    return guide.grid(keras.ops.zeros((1, SIDE, SIDE, 3))).in_source(frame)


def test_centres_are_measured_when_an_epoch_is_over() -> None:
    """On JAX a model has no weights while it is fitted."""
    model = net(side=32)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    places = {}
    for centres in ("fields", "measured"):
        guide = spile.guide(model, "early", given="ready", centres=centres)
        bank = spile.MapBank(guide, refresh=1, missing="flat")
        augmented = spile.augment(bank, NOTHING)
        batches = spile.feed(augmented, (pixels, np.arange(6) % 2), batch_size=3, workers=1)
        model.fit(batches, epochs=1, verbose=0, callbacks=[KeepMaps(bank, batches)])
        assert len(bank._kept) == 6
        (kept,) = {place.grid((16, 16)) for _, place in bank._kept.values()}
        assert kept == guide.grid(keras.ops.zeros((1, 32, 32, 3)))
        places[centres] = kept
    assert 0 < abs(places["measured"].rows.first - places["fields"].rows.first) < 2


def test_pictures_that_are_not_known_are_not_kept() -> None:
    model = net()
    bank, batches = parts(model)
    with pytest.raises(CaptureError, match=r"the model must get the feed's numbers of 0\.\.255"):
        model.fit(PIXELS / 255, DATA[1], epochs=1, verbose=0, callbacks=[first := KeepMaps(bank, batches)])
    first.close()  # `fit` does not say that it was interrupted
    bank, batches = parts(model, AttentionDrop())
    callback = KeepMaps(bank, batches)
    with pytest.raises(CaptureError, match="Mixes, crops and drops of a policy hide samples"):
        model.fit(batches, epochs=1, verbose=0, callbacks=[callback])
    callback.close()
    assert not any("call" in vars(layer) for layer in (model, *model.layers))


def test_what_cannot_be_kept() -> None:
    model = net()
    bank, batches = parts(net())
    with pytest.raises(AugmentationError, match="make the bank's guide of that model"):
        model.fit(batches, epochs=1, verbose=0, callbacks=[KeepMaps(bank, batches)])
    with pytest.raises(AugmentationError, match="origins=True is for PyTorch"):
        spile.feed(spile.augment(bank, NOTHING), DATA, origins=True)
    if keras.backend.backend() == "tensorflow":
        bank, batches = parts(model)
        model.compile("sgd", "mse", jit_compile=True)
        with pytest.raises(AugmentationError, match="jit_compile=False"):
            model.fit(batches, epochs=1, verbose=0, callbacks=[KeepMaps(bank, batches)])


def test_a_loop_of_one_s_own_says_its_samples() -> None:
    model = net()
    bank, _ = parts(model)
    frames = [Frame.whole((SIDE, SIDE))] * 4
    images = PIXELS[:4].astype(np.float32)
    with bank.keeper() as keeper:
        keeper.step(IDS[:4], frames=frames, epoch=0)
        model(images, training=False)  # no training pass
        model(images, training=True)
        keeper.end(0)
    expected = spile.guide(model, "early", given="ready")(images).values
    np.testing.assert_allclose(bank.maps(IDS[:4], frames).values, expected, atol=2e-3)
