"""`spile.extract` on a Keras model gives the same store from data in every form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import spile
from spile.data import open_source

pytestmark = pytest.mark.essential

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
READY = PIXELS.astype(np.float32) / 255
LABELS = np.arange(11) % 3
SCALED = spile.ImagePreprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(4, 3, activation="relu", name="first"),
            keras.layers.Conv2D(6, 3, strides=2, name="second"),
        ]
    )


def extract(model: keras.Model, data: Any, path: Path | None = None, **options: Any) -> Any:
    tap = spile.tap(model, ["first", "second"])
    return spile.extract(
        tap, data, path, **{"dtype": "float32", "progress": False, "batch_size": 4, **options}
    )


@pytest.fixture(scope="module")
def expected(model: keras.Model) -> np.ndarray[Any, Any]:
    """The mean of the last maps, as the model itself gives them."""
    return keras.ops.convert_to_numpy(model(READY)).mean((1, 2))


def chunks() -> Iterator[tuple[Any, Any]]:
    for start in range(0, 11, 4):
        yield READY[start : start + 4], LABELS[start : start + 4]


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        part = slice(4 * index, 4 * index + 4)
        return READY[part], LABELS[part], np.ones(len(LABELS[part]))


def slices(*parts: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0])


FORMS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (READY, LABELS),
    "tensors": lambda: (keras.ops.convert_to_tensor(READY), keras.ops.convert_to_tensor(LABELS)),
    "TensorFlow's tensors": lambda: (tf.constant(READY), tf.constant(LABELS)),
    "dict of arrays": lambda: {"image": READY, "label": LABELS},
    "tf.data": lambda: slices(READY, LABELS).batch(4).prefetch(1),
    "tf.data with weights": lambda: slices(READY, LABELS, np.ones(11)).batch(4),
    "tf.data of dicts": lambda: slices({"image": READY, "label": LABELS}).batch(4),
    "tf.data, one-hot": lambda: slices(READY, np.eye(3, dtype=np.float32)[LABELS]).batch(4),
    "PyDataset": lambda: Batches(workers=2),
    "generator": chunks,
    "generator function": lambda: chunks,
    "generator of tensors": lambda: ((keras.ops.convert_to_tensor(x), y) for x, y in chunks()),
    "generator of TensorFlow's tensors": lambda: ((tf.constant(x), tf.constant(y)) for x, y in chunks()),
}
RAW: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (PIXELS, LABELS),
    "tf.data": lambda: slices(PIXELS, LABELS).batch(4),
    "generator function": lambda: lambda: ((PIXELS[i : i + 4], LABELS[i : i + 4]) for i in (0, 4, 8)),
}


def check(store: Any, expected: np.ndarray[Any, Any], ids: list[str] | None = None) -> None:
    np.testing.assert_allclose(store["second"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert store.ids.tolist() == (ids or [str(i) for i in range(11)])
    assert store.labels.tolist() == LABELS.tolist()
    assert store.complete


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_store(
    model: keras.Model, expected: np.ndarray[Any, Any], form: str
) -> None:
    check(extract(model, FORMS[form]()), expected)


@pytest.mark.parametrize("form", RAW)
def test_uint8_images_are_prepared_in_every_form(
    model: keras.Model, expected: np.ndarray[Any, Any], form: str
) -> None:
    check(extract(model, RAW[form](), preprocessing=SCALED), expected)
    with pytest.raises(spile.ModelError, match="uint8 images need the model's preprocessing"):
        extract(model, RAW[form]())


def test_ids_are_kept(model: keras.Model, expected: np.ndarray[Any, Any]) -> None:
    ids = [f"picture {i}" for i in range(11)]
    named = slices({"image": READY, "label": LABELS, "id": ids}).batch(4)
    check(extract(model, named), expected, ids)
    check(extract(model, {"image": READY, "label": LABELS, "id": np.array(ids)}), expected, ids)
    check(extract(model, open_source(Batches(), ids=ids)), expected, ids)


@pytest.mark.parametrize("form", ["tf.data", "PyDataset", "generator function"])
def test_a_run_that_was_cut_off_goes_on(
    model: keras.Model, expected: np.ndarray[Any, Any], tmp_path: Path, form: str
) -> None:
    whole = extract(model, FORMS[form](), tmp_path / "whole.lance")
    stream = open_source(FORMS[form]())
    reading = stream.batches

    def broken() -> Iterator[Any]:
        for number, batch in enumerate(reading()):
            if number == 2:
                raise RuntimeError("cut off")
            yield batch

    stream.batches = broken
    with pytest.raises(RuntimeError, match="cut off"):
        extract(model, stream, tmp_path / "cut.lance")
    again = extract(model, FORMS[form](), tmp_path / "cut.lance")
    check(again, expected)
    for point in whole.points:
        assert again[point].numpy().tobytes() == whole[point].numpy().tobytes()
    assert extract(model, FORMS[form](), tmp_path / "cut.lance").fingerprint == whole.fingerprint


def test_layers_are_added_from_the_same_stream(model: keras.Model, expected: np.ndarray[Any, Any]) -> None:
    data = slices(READY, LABELS).batch(4)
    store = spile.extract(spile.tap(model, "first"), data, dtype="float32", progress=False, batch_size=4)
    check(store.add(spile.tap(model, "second"), data, dtype="float32", progress=False), expected)


@pytest.mark.parametrize(
    "form", ["dict of tf.data", "tuple of tf.data", "list of a generator", "dict of arrays"]
)
def test_several_inputs(form: str) -> None:
    keras.utils.set_random_seed(0)
    a, b = keras.Input((16, 16, 3), name="a"), keras.Input((3,), name="b")
    both = keras.layers.Concatenate(name="both")([keras.layers.GlobalAveragePooling2D()(a), b])
    named = form.startswith("dict")
    model = keras.Model({"a": a, "b": b} if named else [a, b], keras.layers.Dense(2)(both))
    vectors = np.random.default_rng(1).random((11, 3), dtype=np.float32)
    data = {
        "dict of tf.data": lambda: slices({"a": READY, "b": vectors}, LABELS).batch(4),
        "tuple of tf.data": lambda: slices((READY, vectors), LABELS).batch(4),
        "list of a generator": lambda: (
            ([READY[i : i + 4], vectors[i : i + 4]], LABELS[i : i + 4]) for i in (0, 4, 8)
        ),
        "dict of arrays": lambda: ({"a": READY, "b": vectors}, LABELS),
    }[form]()
    store = spile.extract(spile.tap(model, "both"), data, dtype="float32", progress=False, batch_size=4)
    np.testing.assert_allclose(
        store["both"].numpy(), np.concatenate([READY.mean((1, 2)), vectors], 1), atol=1e-5
    )
    assert store.labels.tolist() == LABELS.tolist()
