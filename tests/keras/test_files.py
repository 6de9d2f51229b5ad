"""Keras models in files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from spile.errors import ModelError
from spile.models import example_for, load_model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keras warns through absl that .h5 is an old format."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def net(*layers: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense"), *layers])


class Mine(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x


@keras.saving.register_keras_serializable(package="spile_tests")
class Registered(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x + 1


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_a_saved_model(name: str) -> None:
    model = net(Registered())
    model.compile(optimizer="adam", loss="mse")
    model.save(name)
    loaded = load_model(name)
    assert (loaded.reference, loaded.preprocessing, loaded.classes) == (name, None, None)
    assert loaded.channels_last
    assert example_for(loaded) is None
    assert not loaded.model.compiled
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(loaded.model(x)), keras.ops.convert_to_numpy(model(x)), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_code_in_a_file_is_not_run(name: str) -> None:
    net(keras.layers.Lambda(lambda x: x * 2)).save(name)
    with pytest.raises(
        ModelError, match=r"Lambda layer.*safe mode.*load_model\('net\.\w+', safe_mode=False\)"
    ):
        load_model(name)


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_an_unregistered_class_is_named(name: str) -> None:
    net(Mine()).save(name)
    with pytest.raises(ModelError, match=r"net\.\w+ needs Mine, .*register_keras_serializable.*import that"):
        load_model(name)


def test_files_that_hold_no_model() -> None:
    net().save_weights("net.weights.h5")
    Path("net.weights.h5").rename("weights.h5")
    with pytest.raises(ModelError, match=r"weights.h5 holds weights only.*keras:NAME --weights weights.h5"):
        load_model("weights.h5")
    for name in ("broken.keras", "broken.h5"):
        Path(name).write_text("no")
        with pytest.raises(ModelError, match=rf"{name} is no model that Keras 3\.\S+ can load") as caught:
            load_model(name)
        assert "\n" not in str(caught.value)
        with pytest.raises(ModelError, match=f"There is no Keras file absent_{name}"):
            load_model(f"absent_{name}")


def test_what_a_file_settles_by_itself() -> None:
    net().save("net.keras")
    with pytest.raises(ModelError, match=r"net.keras holds its own weights: leave out other.h5"):
        load_model("net.keras", weights="other.h5")
    with pytest.raises(ModelError, match="has no image preprocessing"):
        load_model("net.keras", input_size=32)
