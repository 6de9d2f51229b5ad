"""Data as Keras users have it. TensorFlow is imported as they do it, whichever backend Keras runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from spile.data import Stream, batches, open_source
from spile.errors import DataError
from spile.preprocessing import ImagePreprocessing

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
READY = PIXELS.astype(np.float32) / 255
LABELS = np.arange(7) % 3
SMALL = ImagePreprocessing(resize=4, crop=(4, 4))


def slices(*parts: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0])


def records(data: Any) -> list[tuple[str, Any]]:
    return [(r.id, r.label) for batch in open_source(data).batches() for r in batch.records]


def read(data: Any) -> Any:
    """The inputs of all batches, as one array."""
    return np.concatenate([batch.inputs for batch in batches(open_source(data), None, batch_size=1)])


@pytest.mark.parametrize(
    "dataset, length",
    [
        (slices(READY, LABELS).batch(3), 7),
        (slices(READY, LABELS).batch(3).prefetch(2), 7),
        (slices(READY, LABELS).batch(3).map(lambda x, y: (x, y)), 7),
        (slices(READY, LABELS).batch(3, num_parallel_calls=2), 7),
        (slices(READY, LABELS, np.ones(7)).batch(3).cache(), None),
        (slices(READY, keras.ops.convert_to_numpy(keras.ops.one_hot(LABELS, 3))).padded_batch(3), 7),
        (slices({"image": READY, "label": LABELS}).batch(3), 7),
        (slices(READY, LABELS).shuffle(7, seed=3, reshuffle_each_iteration=False).batch(7), 7),
    ],
)
def test_batched_datasets(dataset: tf.data.Dataset, length: int | None) -> None:
    stream = open_source(dataset)
    assert isinstance(stream, Stream) and stream.length == length and stream.kind == "array"
    first, second = read(dataset), read(dataset)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first.ravel()), np.sort(READY.ravel()))
    assert sorted(label for _, label in records(dataset)) == sorted(LABELS.tolist())
    assert [name for name, _ in records(dataset)] == list("0123456")


def test_values_order_and_a_start_at_a_boundary() -> None:
    dataset = slices(READY, LABELS).batch(3, drop_remainder=True)
    np.testing.assert_array_equal(read(dataset), READY[:6])
    stream = open_source(dataset)
    (last,) = batches(stream, None, batch_size=1, start=3)
    assert (last.start, last.stop, stream.length) == (3, 6, 6)
    np.testing.assert_array_equal(last.inputs, READY[3:6])
    with pytest.raises(DataError, match="batches end at 0 and 3"):
        list(batches(stream, None, batch_size=1, start=2))


def test_several_inputs() -> None:
    named = slices({"a": READY, "b": LABELS}, LABELS).batch(4)
    (first, _) = open_source(named).batches()
    assert set(first.inputs) == {"a", "b"} and isinstance(first.inputs["a"], np.ndarray)
    in_order = slices((READY, LABELS), LABELS).batch(4)
    (first, _) = open_source(in_order).batches()
    assert isinstance(first.inputs, tuple) and first.inputs[1].tolist() == LABELS[:4].tolist()
    assert records(named) == records(in_order) == [(str(i), int(y)) for i, y in enumerate(LABELS)]


def test_ids_in_the_batches() -> None:
    names = [f"sample {i} ü" for i in range(7)]
    dataset = slices(
        {"image": PIXELS, "label": tf.constant([f"class {y}" for y in LABELS]), "id": names}
    ).batch(3)
    assert records(dataset) == [(name, f"class {y}") for name, y in zip(names, LABELS, strict=True)]
    assert [name for name, _ in records(slices({"x": READY, "id": tf.range(7)}).batch(7))] == list("0123456")
    with pytest.raises(DataError, match="ids must be unique, but '0'"):
        records(slices({"x": READY, "id": tf.range(7) // 2}).batch(7))


def test_uint8_images_are_prepared_and_floats_taken_as_ready() -> None:
    for made in (slices(PIXELS, LABELS).batch(3), lambda: iter([PIXELS[:3], PIXELS[3:]])):
        stream = open_source(made)
        assert stream.kind == "image"
        np.testing.assert_array_equal(read(made), PIXELS)
        sizes = [b.inputs.shape for b in batches(stream, SMALL, batch_size=1)]
        assert {size[1:] for size in sizes} == {(4, 4, 3)}
    grey = slices(PIXELS[..., :1]).batch(7)
    np.testing.assert_array_equal(read(grey), np.repeat(PIXELS[..., :1], 3, -1))


@pytest.mark.parametrize(
    "dataset",
    [
        slices(READY, LABELS),
        slices(READY),
        slices(READY).map(lambda x: x + 1).prefetch(1),
        slices(READY, LABELS).batch(3).unbatch(),
        tf.data.Dataset.from_generator(
            lambda: iter(READY), output_signature=tf.TensorSpec((None, None, 3), tf.float32)
        ),
        tf.data.Dataset.range(4),
    ],
)
def test_single_samples_are_to_be_batched(dataset: tf.data.Dataset) -> None:
    with pytest.raises(DataError, match=r"single samples of shape .*Type: dataset\.batch\(32\)"):
        open_source(dataset)


def unordered() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = False
    return options


@pytest.mark.parametrize(
    "dataset, message",
    [
        (slices(READY).shuffle(7).batch(3), "the dataset shuffles"),
        (slices(READY).shuffle(7, seed=1).batch(3).prefetch(1), "the dataset shuffles"),
        (slices(READY).shuffle(7, reshuffle_each_iteration=False).batch(3), "the dataset shuffles"),
        (tf.data.Dataset.zip(slices(READY), slices(LABELS).shuffle(7)).batch(3), "the dataset shuffles"),
        (slices(READY).shuffle(7).cache().batch(3).map(lambda x: x), "the dataset shuffles"),
        (tf.data.Dataset.sample_from_datasets([slices(READY)] * 2).batch(3), "the dataset shuffles"),
        (slices(READY).batch(3).repeat(), "repeats for ever"),
        (slices(READY).batch(3).with_options(unordered()).prefetch(1), "the option deterministic=False"),
        (
            slices(READY).map(lambda x: x, num_parallel_calls=2, deterministic=False).batch(3),
            "_ParallelMapDataset of the dataset has deterministic=False",
        ),
        (slices(READY).ragged_batch(3).map(tf.RaggedTensor.from_tensor), "batches of RaggedTensors"),
        (slices(READY[:, 0, 0]).batch(3).map(tf.sparse.from_dense), "batches of SparseTensors"),
        (slices({"a": READY}).batch(3), r"keys 'a'; needed.*\(inputs, labels\) or \(inputs,\)"),
    ],
)
def test_what_is_not_the_same_every_time_or_has_no_fixed_form_is_refused(
    dataset: tf.data.Dataset, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(dataset)


def test_repeating_a_number_of_times_is_fine() -> None:
    assert len(records(slices(READY).batch(3).repeat(2))) == 14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, pixels in enumerate(PIXELS):
        (tmp_path / f"class {LABELS[number]}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"class {LABELS[number]}" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("label_mode", ["int", "categorical"])
def test_a_directory_keeps_its_files_and_class_names(folder: Path, label_mode: str) -> None:
    dataset = keras.utils.image_dataset_from_directory(
        folder, shuffle=False, image_size=(8, 8), batch_size=3, label_mode=label_mode, verbose=False
    )
    expected = [(f, Path(f).parent.name) for f in dataset.file_paths]
    assert {label for _, label in expected} == {"class 0", "class 1", "class 2"}
    assert records(dataset) == expected
    assert records(dataset.map(lambda x, y: (x / 255, y)).cache().prefetch(1)) == expected
    assert open_source(dataset).length == 7
    assert records(dataset.take(1)) == expected[:3]
    numbers = [int(Path(file).stem) for file, _ in expected]
    np.testing.assert_array_equal(read(dataset), PIXELS[numbers].astype(np.float32))


def test_a_directory_that_shuffles_says_how_not_to(folder: Path) -> None:
    dataset = keras.utils.image_dataset_from_directory(folder, image_size=(8, 8), verbose=False)
    with pytest.raises(DataError, match=r"image_dataset_from_directory and list_files, type: shuffle=False"):
        open_source(dataset)
    single = keras.utils.image_dataset_from_directory(
        folder, image_size=(8, 8), verbose=False, shuffle=False, batch_size=None, labels=None
    )
    with pytest.raises(DataError, match=r"Type: dataset\.batch\(32\)"):
        open_source(single)
    assert records(single.batch(4)) == [(file, None) for file in single.file_paths]


class Halves(keras.utils.PyDataset):
    """Batches of four and three, some with sample weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ended = 0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        part = slice(4 * index, 4 * index + 4)
        return READY[part], LABELS[part], np.ones(len(READY[part]))

    def on_epoch_end(self) -> None:
        self.ended += 1


def test_py_datasets_are_read_by_batch_in_this_process() -> None:
    dataset = Halves(workers=4, use_multiprocessing=True)
    stream = open_source(dataset, ids=list("abcdefg"))
    assert isinstance(stream, Stream) and stream.length == 7 and stream.kind == "array"
    for _ in range(2):
        got = list(stream.batches())
        assert [(b.start, b.stop) for b in got] == [(0, 4), (4, 7)]
        assert [(r.id, r.label) for b in got for r in b.records] == list(zip("abcdefg", LABELS, strict=True))
    np.testing.assert_array_equal(read(dataset), READY)
    assert dataset.ended == 0


def test_endless_py_datasets_are_refused() -> None:
    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index: int) -> Any:
            return READY

    class Unfinished(keras.utils.PyDataset):
        def __getitem__(self, index: int) -> Any:
            return READY

    for made in (Endless(), Unfinished()):
        with pytest.raises(DataError, match=r"would never end\. Give it __len__ or num_batches"):
            open_source(made)


def test_legacy_iterators_keep_their_order_or_are_refused() -> None:
    flow = tf.keras.preprocessing.image.ImageDataGenerator().flow
    with pytest.raises(DataError, match="Type: shuffle=False"):
        open_source(flow(READY, LABELS, batch_size=3))
    ordered = flow(READY, LABELS, batch_size=3, shuffle=False)
    np.testing.assert_allclose(read(ordered), READY)
    assert records(ordered) == [(str(i), int(y)) for i, y in enumerate(LABELS)]


@pytest.mark.parametrize("convert", [tf.constant, keras.ops.convert_to_tensor, np.asarray])
def test_generators_of_tensors(convert: Any) -> None:
    def chunks() -> Any:
        for part in (slice(0, 4), slice(4, 7)):
            yield convert(READY[part]), convert(LABELS[part])

    for data in (chunks, chunks()):
        stream = open_source(data)
        got = list(stream.batches())
        np.testing.assert_array_equal(np.concatenate([_numpy(b.inputs) for b in got]), READY)
        assert [(r.id, r.label) for b in got for r in b.records] == [
            (str(i), int(y)) for i, y in enumerate(LABELS)
        ]
    with pytest.raises(DataError, match="read once only"):
        list(stream.batches())


def _numpy(inputs: Any) -> Any:
    """Torch tensors stay as they are, all else has become NumPy arrays."""
    assert isinstance(inputs, np.ndarray) or hasattr(inputs, "detach")
    return keras.ops.convert_to_numpy(inputs)


@pytest.mark.parametrize("convert", [tf.constant, keras.ops.convert_to_tensor, tf.Variable])
def test_arrays_of_tensors(convert: Any) -> None:
    source = open_source((convert(READY), convert(LABELS)))
    assert source.kind == "array"
    np.testing.assert_array_equal(source.read(2), READY[2])
    assert [r.label for r in source.records] == LABELS.tolist()


def test_uint8_tensors_are_images_and_strings_texts() -> None:
    source = open_source(tf.constant(PIXELS))
    assert source.kind == "image"
    np.testing.assert_array_equal(source.read(2), PIXELS[2])
    texts = open_source((tf.constant(["what a film", "ü"]), tf.constant([1, 0])))
    assert texts.kind == "text" and texts.read(1) == "ü" and texts.records[1].label == 0
