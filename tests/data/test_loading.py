import threading
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from spile.data import BadSample, Record, Samples, Skipped, batches, open_source
from spile.errors import DataError
from spile.preprocessing import ImagePreprocessing, TextPreprocessing

SMALL = ImagePreprocessing(resize=8, crop=(8, 8))


def samples(read, count, kind="array"):
    return Samples("made up", kind, [Record(f"s{i}", label=i % 3) for i in range(count)], read)


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("spile-read")]


@pytest.mark.parametrize(
    "count, batch_size, workers", [(23, 5, 3), (20, 5, 1), (3, 64, 4), (40, 1, 2), (100, 33, 2)]
)
def test_order_and_boundaries_hold_whatever_the_threads_do(count, batch_size, workers):
    def read(position):
        time.sleep(0.002 * ((position * 7) % 4))  # finish out of order
        return np.full((2, 3), position, np.float32)

    got = list(batches(samples(read, count), None, batch_size=batch_size, workers=workers))
    bounds = [(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    assert [(batch.start, batch.stop) for batch in got] == bounds
    for batch in got:
        assert batch.positions == tuple(range(batch.start, batch.stop))
        assert [record.id for record in batch.records] == [f"s{p}" for p in batch.positions]
        np.testing.assert_array_equal(batch.inputs[:, 0, 0], batch.positions)
        assert batch.inputs.shape[1:] == (2, 3) and batch.inputs.flags.writeable and batch.kind == "array"


def test_starting_later_gives_the_same_batches():
    source = samples(lambda position: np.full(4, position), 23)
    whole = list(batches(source, None, batch_size=5))
    later = list(batches(source, None, batch_size=5, start=10))
    assert [b.positions for b in later] == [b.positions for b in whole[2:]]
    assert list(batches(source, None, batch_size=5, start=25)) == []


def test_every_other_batch():
    source = samples(lambda position: np.full(4, position), 23)
    whole = list(batches(source, None, batch_size=5))
    parts = [list(batches(source, None, batch_size=5, start=5 * turn, every=2)) for turn in (0, 1)]
    assert [b.positions for b in parts[0]] == [b.positions for b in whole[::2]]
    assert [b.positions for b in parts[1]] == [b.positions for b in whole[1::2]]


def test_bad_samples_are_reported_where_they_stood():
    def read(position):
        if position in (1, 4, 5, 6, 7):
            raise BadSample(f"reason {position}")
        return np.zeros(2)

    first, second, third = batches(samples(read, 9), None, batch_size=4)
    assert first.positions == (0, 2, 3) and first.inputs.shape == (3, 2)
    assert first.skipped == (Skipped(1, "s1", "reason 1"),)
    assert second.inputs is None and second.positions == () and second.records == ()
    assert [skipped.position for skipped in second.skipped] == [4, 5, 6, 7]
    assert third.positions == (8,) and third.skipped == ()


def test_images_are_resized_and_bad_ones_skipped(tmp_path):
    for number in range(6):
        Image.new("RGB", (10 + number, 12), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (batch,) = batches(open_source(tmp_path), SMALL, batch_size=8)
    assert batch.inputs.shape == (5, 8, 8, 3) and batch.inputs.dtype == np.uint8
    np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], [0, 1, 3, 4, 5])
    assert batch.skipped == (Skipped(2, "2.png", "empty file"),)
    grey = ImagePreprocessing(resize=8, crop=(8, 8), channels=1)
    assert next(batches(open_source(tmp_path), grey, batch_size=8)).inputs.shape == (5, 8, 8, 1)


@pytest.mark.parametrize("preprocessing", [None, ImagePreprocessing(resize=8)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_images_of_several_sizes_need_preprocessing(preprocessing, batch_size):
    images = [Image.new("RGB", (10, 20)), Image.new("RGB", (10, 20)), Image.new("RGB", (10, 30))]
    with pytest.raises(DataError, match=r"'2' is uint8 .*x3, .*need preprocessing"):
        list(batches(open_source(images), preprocessing, batch_size=batch_size))


def test_arrays_unlike_the_first_are_bad_samples_also_after_resuming():
    odd = {4: np.zeros((3, 2), np.float32), 6: np.zeros((2, 3), np.float64)}
    source = samples(lambda position: odd.get(position, np.zeros((2, 3), np.float32)), 8)
    whole = list(batches(source, None, batch_size=2))
    resumed = list(batches(source, None, batch_size=2, start=4))  # position 4 comes first here
    assert [b.skipped for b in resumed] == [b.skipped for b in whole[2:]]
    assert whole[2].skipped == (Skipped(4, "s4", "float32 3x2 where the first sample is float32 2x3"),)
    assert whole[3].skipped[0].reason.startswith("float64 2x3")


def test_texts_go_through_the_tokenizer_batch_by_batch():
    seen = []

    def tokenizer(texts):
        seen.append(texts)
        return {"input_ids": np.array([[len(text)] for text in texts])}

    source = open_source(["a", "bb", "ccc"])
    first, second = batches(source, TextPreprocessing(tokenizer="x"), batch_size=2, tokenizer=tokenizer)
    assert seen == [["a", "bb"], ["ccc"]]
    assert first.kind == "text" and first.inputs["input_ids"].tolist() == [[1], [2]]
    assert second.records[0].id == "2"


def test_arguments_that_do_not_fit_are_refused_at_once():
    arrays = samples(lambda position: np.zeros(2), 8)
    with pytest.raises(DataError, match="start must be a multiple of batch_size 4, got 6"):
        batches(arrays, None, batch_size=4, start=6)
    for wrong in ({"batch_size": 0}, {"batch_size": 4, "workers": 0}):
        with pytest.raises(DataError, match="batch_size and workers must be 1 or more"):
            batches(arrays, None, **wrong)
    with pytest.raises(DataError, match="tokenizer is needed"):
        batches(open_source(["a"]), None, batch_size=4)
    with pytest.raises(DataError, match="holds images, but the model reads text"):
        batches(open_source("demo:shapes"), TextPreprocessing(tokenizer="x"), batch_size=4)


def test_closing_early_stops_the_threads_after_the_sample_in_hand():
    reads = []

    def read(position):
        reads.append(position)
        time.sleep(0.2 if position >= 16 else 0)  # what has been read ahead would take 3 s more
        return np.zeros(2)

    generator = batches(samples(read, 100_000), None, batch_size=16, workers=4)
    next(generator)
    assert reader_threads()
    started = time.monotonic()
    generator.close()
    assert time.monotonic() - started < 1
    assert not reader_threads()
    assert len(reads) < 40


def test_reading_ahead_is_bounded():
    reads = []
    source = samples(lambda position: reads.append(position) or np.zeros(2), 10_000)
    generator = batches(source, None, batch_size=32, workers=2)
    next(generator)
    time.sleep(0.2)
    assert 32 <= len(reads) <= 96
    generator.close()


def test_memory_does_not_grow_with_the_number_of_samples():
    def peak(count):
        source = samples(lambda position: np.full(10_000, position, np.float32), count)  # 40 kB each
        tracemalloc.start()
        for _ in batches(source, None, batch_size=16, workers=2):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(2000) < 1.5 * peak(200)


def test_a_broken_source_ends_the_run_and_the_threads():
    def read(position):
        if position == 20:
            raise KeyboardInterrupt
        return np.zeros(2)

    with pytest.raises(KeyboardInterrupt):
        list(batches(samples(read, 100), None, batch_size=4, workers=2))
    assert not reader_threads()


def test_labels_of_a_dataset_arrive_with_its_batches():
    source = open_source([(np.zeros(2, np.float32), f"class {i}") for i in range(5)])
    got = list(batches(source, None, batch_size=2))
    assert [record.label for batch in got for record in batch.records] == [f"class {i}" for i in range(5)]


def test_streams_pass_through_and_start_at_a_boundary():
    source = open_source([np.full((size, 2), float(size)) for size in (3, 3, 2)].__iter__())
    got = list(batches(source, SMALL, batch_size=1, start=3))
    assert [(b.start, b.stop) for b in got] == [(3, 6), (6, 8)]
    source = open_source([np.zeros((3, 2))].__iter__())
    with pytest.raises(DataError, match="batches end at 0 and 3, so it cannot start at 2"):
        list(batches(source, None, batch_size=1, start=2))
