"""`ActivationTransformer` on Keras models: clones keep the pretrained network, folds share its work."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import spile
from spile.sklearn import ActivationTransformer


@pytest.fixture
def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, name="stem", activation="relu")(x)
    return keras.Model(x, layers.Dense(5)(layers.GlobalAveragePooling2D()(y)))


def test_clones_and_folds_keep_the_weights(net: Any) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.normal(size=(40, 8, 8, 3)).astype(np.float32)
    x[..., 0] += y[:, None, None] * 2
    before = [np.array(weight) for weight in net.get_weights()]
    pipeline = make_pipeline(ActivationTransformer(net, "stem"), StandardScaler(), LogisticRegression())

    again = clone(pipeline)
    assert again[0].model is net
    assert cross_val_score(pipeline, x, y, cv=4).mean() > 0.9

    features = again[0].fit(x)
    assert all(np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True))
    expected = keras.ops.convert_to_numpy(spile.tap(net, "stem", example=x[:2])(x)["stem"])
    np.testing.assert_allclose(features.transform(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.transform(x[7:8])[0], features.transform(x)[7], atol=1e-5)
    assert features.get_feature_names_out().tolist() == [f"stem[{i}]" for i in range(4)]
