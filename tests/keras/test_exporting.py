"""A tap as a `.keras` file: the same values, nothing past the point, and no code of the user's in it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from spile.errors import ModelError
from spile.interfaces import Exported
from spile.keras.exporting import export_tap
from spile.keras.taps import Tap
from spile.keras.weights import weights_hash

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
"""Of NumPy, when Keras saves a model."""

X = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)


@keras.saving.register_keras_serializable("spile-tests")
class Doubling(layers.Layer):
    """An option that its configuration tells."""

    def __init__(self, factor: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("spile-tests")
class Forgetful(Doubling):
    """Its configuration leaves its option out."""

    def get_config(self) -> dict[str, Any]:
        return layers.Layer.get_config(self)


class Unknown(Doubling):
    """Not registered."""


@keras.saving.register_keras_serializable("spile-tests")
class Net(keras.Model):
    """Runs by Python alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stem = layers.Conv2D(4, 3)
        self.blocks = [layers.Conv2D(4, 3), layers.Conv2D(4, 3)]

    def call(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


class Stranger(Net):
    """Not registered."""


def functional(*between: keras.Layer) -> keras.Model:
    """A nested model before the tap, and a large layer past it."""
    inner_in = keras.Input((12, 12, 3))
    y = layers.Conv2D(4, 3, name="first")(inner_in)
    y = layers.Conv2D(4, 3, name="second")(layers.BatchNormalization(name="norm")(y))
    inner = keras.Model(inner_in, y, name="inner")
    x = keras.Input((12, 12, 3))
    y = layers.Conv2D(8, 3, name="body")(inner(x))
    for layer in between:
        y = layer(y)
    y = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="act")(y))
    return keras.Model(x, layers.Dense(10_000, name="late")(y), name="net")


def sequential() -> keras.Model:
    stack = [layers.Conv2D(4, 3, name="body"), layers.Flatten(name="flat"), layers.Dense(2, name="late")]
    return keras.Sequential([keras.Input((12, 12, 3)), *stack])


def net(kind: type[Net] = Net) -> keras.Model:
    model = kind()
    model(X)
    return model


def exported(model: keras.Model, at: str, folder: Path, pool: str = "auto") -> tuple[Exported, keras.Model]:
    """Export, and compare what is read back."""
    tap = Tap(model, at, pool=pool, example=X)
    made = export_tap(tap, X[:2], folder)
    again = keras.saving.load_model(folder / made.file, compile=False)
    (found,) = Tap(again, made.addresses[0], pool=made.pools[0], example=X)(X).values()
    (expected,) = tap(X).values()
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found, expected)), rtol=1e-4, atol=1e-5)
    return made, again


@pytest.mark.parametrize(
    ("at", "held"),
    [
        ("body", {"inner", "body"}),
        ("inner/norm", {"inner"}),
        ("body@in", {"inner", "body"}),
        ("pool", {"inner", "body", "act", "pool"}),
        ("@in", {"inner", "body", "act", "pool", "late"}),
    ],
)
def test_a_graph_is_cut_and_nothing_past_the_point_is_saved(at: str, held: set[str], tmp_path: Path) -> None:
    made, again = exported(functional(), at, tmp_path)

    assert made.file == "network.keras" and made.addresses == (at,)
    assert {layer.name for layer in again.layers if not isinstance(layer, layers.InputLayer)} == held
    assert ((tmp_path / made.file).stat().st_size < 250_000) == ("late" not in held)
    assert [path.name for path in tmp_path.iterdir()] == ["network.keras"]


@pytest.mark.parametrize("pool", ["none", "avg", "grid:2", "flatten"])
def test_the_pool_goes_along_by_name(pool: str, tmp_path: Path) -> None:
    made, _ = exported(functional(), "body", tmp_path, pool)
    assert made.pools == (pool,)


def test_sequential(tmp_path: Path) -> None:
    _, again = exported(sequential(), "body", tmp_path)
    assert again.layers[-1].name == "body"


def test_a_registered_subclass_is_saved_whole(tmp_path: Path) -> None:
    made, again = exported(net(), "blocks/0", tmp_path)
    assert made.addresses == ("blocks/0",) and isinstance(again, Net)


def test_the_optimizer_stays_behind_and_the_model_as_it_was(tmp_path: Path) -> None:
    for model in (net(), functional()):
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        optimizer, before = model.optimizer, weights_hash(model)

        exported(model, "@out", tmp_path)

        assert model.optimizer is optimizer and model.compiled
        assert weights_hash(model) == before
        with zipfile.ZipFile(tmp_path / "network.keras") as archive:
            assert b"adam" not in archive.read("config.json").lower()
            assert b"optimizer" not in archive.read("model.weights.h5")


def test_registered_layers_with_options(tmp_path: Path) -> None:
    exported(functional(Doubling(3.0, name="mine")), "mine", tmp_path)


CODE = [
    (functional(layers.Lambda(lambda x: x + 1, name="mine")), "mine"),
    (functional(Unknown(3.0, name="mine")), "mine"),
    (net(Stranger), "stem"),
]


@pytest.mark.parametrize(("model", "at"), CODE, ids=["lambda", "layer", "model"])
@pytest.mark.parametrize("dry", [True, False])
def test_what_would_need_foreign_code_is_refused(
    model: keras.Model, at: str, dry: bool, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="register_keras_serializable") as caught:
        export_tap(Tap(model, at, example=X), X, tmp_path, dry=dry)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    if dry:
        assert not list(tmp_path.iterdir())


def test_code_past_the_point_does_not_matter(tmp_path: Path) -> None:
    exported(functional(Unknown(3.0, name="mine")), "body", tmp_path)


def test_dry_takes_several_points_and_writes_nothing(tmp_path: Path) -> None:
    export_tap(Tap(functional(), ["body", "inner/norm"], example=X), X, tmp_path, dry=True)
    assert not list(tmp_path.iterdir())


def test_other_values_after_reading_back_are_an_error(tmp_path: Path) -> None:
    model = functional(Forgetful(3.0, name="mine"))
    with pytest.raises(ModelError, match=r"gives other values at 'mine' .*get_config"):
        export_tap(Tap(model, "mine", example=X), X, tmp_path)


def test_a_pool_that_is_a_function_cannot_be_saved(tmp_path: Path) -> None:
    tap = Tap(functional(), "body", pool=lambda x: x[:, 0, 0], example=X)
    with pytest.raises(ModelError, match="pool"):
        export_tap(tap, X, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be saved to .*network.keras"):
        export_tap(Tap(functional(), "body", example=X), X, tmp_path / "file")
