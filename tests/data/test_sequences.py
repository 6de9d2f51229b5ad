import threading
import time

import numpy as np
import pytest
from PIL import Image

from spile.data import BadSample, batches, open_source
from spile.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


class Items:
    """The least that a map-style dataset is."""

    def __init__(self, get, length=4):
        self.get, self.length = get, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.get(index)


@pytest.mark.parametrize(
    "array, kind, expected",
    [
        (PIXELS, "image", PIXELS[2]),
        (PIXELS[..., 0], "image", np.repeat(PIXELS[2, :, :, :1], 3, 2)),
        (PIXELS[..., :1], "image", np.repeat(PIXELS[2, :, :, :1], 3, 2)),
        (PIXELS.astype(np.float32), "array", PIXELS[2].astype(np.float32)),
        (np.arange(10).reshape(5, 2), "array", [4, 5]),
    ],
)
def test_arrays_are_images_or_ready_by_their_type(array, kind, expected):
    source = open_source(array)
    assert source.kind == kind and len(source.records) == 5
    np.testing.assert_array_equal(source.read(2), expected)
    assert [record.id for record in source.records] == list("01234")


@pytest.mark.parametrize("shape", [(5, 3, 6, 7), (5, 8), (5, 2, 3, 4, 3)])
def test_uint8_that_is_no_image_is_refused(shape):
    with pytest.raises(DataError, match=r"neither images.*astype\('float32'\)"):
        open_source(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("data", [np.zeros((0, 3)), [], (), np.array(3.0), np.array([], dtype=object)])
def test_nothing_to_read_is_an_error(data):
    with pytest.raises(DataError, match="holds no samples"):
        open_source(data)


def test_torch_tensors_put_channels_first():
    import torch

    source = open_source((torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.arange(5)))
    np.testing.assert_array_equal(source.read(1), PIXELS[1])
    assert source.kind == "image" and source.records[4].label == 4
    ready = open_source(torch.zeros(5, 3, 2, 2, requires_grad=True))
    assert ready.kind == "array" and ready.read(0).shape == (3, 2, 2)


@pytest.mark.parametrize("inputs", ["x", "X", "images", "data"])
@pytest.mark.parametrize("labels", ["y", "labels", None])
def test_npz_archives(tmp_path, inputs, labels):
    arrays = {inputs: PIXELS} | ({labels: np.arange(5)} if labels else {})
    np.savez(tmp_path / "data.npz", **arrays)
    source = open_source(tmp_path / "data.npz")
    np.testing.assert_array_equal(source.read(3), PIXELS[3])
    assert source.records[3].label == (3 if labels else None)


def test_npz_archives_keep_ids(tmp_path):
    np.savez(tmp_path / "data.npz", x=PIXELS, id=np.array(list("vwxyz")), other=np.zeros(2))
    assert [record.id for record in open_source(tmp_path / "data.npz").records] == list("vwxyz")


def test_npz_archives_that_cannot_be_used(tmp_path):
    np.savez(tmp_path / "keys.npz", train=PIXELS, test=PIXELS)
    with pytest.raises(DataError, match="has the arrays 'train', 'test'; needed: one of 'image'"):
        open_source(tmp_path / "keys.npz")
    np.savez(tmp_path / "pickle.npz", x=np.array([{"a": 1}, print], dtype=object))
    with pytest.raises(DataError, match="allow_pickle"):
        open_source(tmp_path / "pickle.npz")
    np.savez(tmp_path / "short.npz", x=PIXELS, y=np.arange(4))
    with pytest.raises(DataError, match="labels has 4 values for 5 samples"):
        open_source(tmp_path / "short.npz")
    whole = (tmp_path / "short.npz").read_bytes()
    for number, content in enumerate((b"", b"PK\x03\x04", whole[:300], b"text")):
        (tmp_path / f"{number}.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot read"):
            open_source(tmp_path / f"{number}.npz")


@pytest.mark.parametrize("wrap", [list, tuple])
def test_lists_of_pillow_images_and_arrays(wrap):
    images = [Image.fromarray(PIXELS[0]), Image.new("L", (3, 9))]
    source = open_source(wrap(images))
    assert source.kind == "image" and source.read(1).shape == (9, 3, 3)
    source = open_source(([PIXELS[0], PIXELS[1, :3]], ["a", "b"]))
    assert source.kind == "image" and source.read(1).shape == (3, 7, 3) and source.records[1].label == "b"
    assert open_source(wrap([np.zeros(2), np.zeros(2), np.zeros(2)])).kind == "array"


def test_lists_of_texts():
    texts = ["what a film.", "photo.png is not here " + "x" * 5000, "a\nb"]
    for given in (texts, tuple(texts), np.array(texts), np.array(texts, dtype=object)):
        source = open_source(given)
        assert source.kind == "text" and [source.read(i) for i in range(3)] == texts
    assert open_source((texts, [1, 0, 1])).records[1].label == 0


@pytest.mark.parametrize(
    "item, kind, label",
    [
        ((Image.fromarray(PIXELS[0]), 3), "image", 3),
        (PIXELS[0], "image", None),
        ({"image": Image.fromarray(PIXELS[0]), "label": "cat", "other": 1}, "image", "cat"),
        ({"pixel_values": np.zeros((3, 2, 2), np.float32), "labels": np.int64(2)}, "array", 2),
        ((np.zeros(3), 0.5), "array", 0.5),
        ((np.zeros(3),), "array", None),
        (("a text", "pos"), "text", "pos"),
        (1.5, "array", None),
    ],
)
def test_items_of_datasets(item, kind, label):
    source = open_source(Items(lambda index: item))
    assert source.kind == kind
    source.read(1)
    assert source.records[1].label == label
    if kind == "image":
        np.testing.assert_array_equal(source.read(1), PIXELS[0])


def test_torch_datasets():
    import torch

    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    dataset = torch.utils.data.TensorDataset(images, torch.arange(5))
    source = open_source(torch.utils.data.Subset(dataset, [4, 1]))
    assert source.kind == "image"
    np.testing.assert_array_equal(source.read(0), PIXELS[4])
    assert [source.records[0].label, source.name] == [4, "torch.utils.data.dataset.Subset"]
    assert open_source(torch.utils.data.TensorDataset(images.float())).kind == "array"


def test_what_a_dataset_raises_is_a_bad_sample_with_its_words():
    def get(index):
        if index == 1:
            raise ValueError("no such\nrow")
        return np.zeros(2), index

    source = open_source(Items(get))
    with pytest.raises(BadSample, match=r"^ValueError: no such row$"):
        source.read(1)
    (batch,) = batches(source, None, batch_size=4)
    assert [(skipped.position, skipped.reason) for skipped in batch.skipped] == [
        (1, "ValueError: no such row")
    ]
    assert [record.label for record in batch.records] == [0, 2, 3]


def test_an_interrupt_in_a_dataset_is_not_a_bad_sample():
    def get(index):
        if index == 2:
            raise KeyboardInterrupt
        return np.zeros(2)

    with pytest.raises(KeyboardInterrupt):
        list(batches(open_source(Items(get)), None, batch_size=2))


def test_items_of_another_kind_than_the_first_are_bad_samples():
    items = [
        np.zeros(2),
        "text",
        Image.new("L", (2, 2)),
        {"a": 1},
        (np.zeros(2), 1, 2),
        (np.zeros(2), [1, 2]),
    ]
    source = open_source(items)
    reasons = [
        "expected array as in the first sample, got text",
        "got image",
        "keys 'a'; needed: one of image",
    ]
    for position, reason in enumerate([*reasons, "tuple of 3", "a label is one number"], start=1):
        with pytest.raises(BadSample, match=reason):
            source.read(position)


def test_a_broken_beginning_does_not_hide_the_kind():
    source = open_source([{"a": 1}, Image.new("L", (2, 2))])
    assert source.kind == "image"
    with pytest.raises(
        DataError, match=r"none of the first 3 samples can be read\. The first one: a sample is a .*Thread"
    ):
        open_source([threading.Thread()] * 3)


def test_lists_of_numbers_are_not_taken_for_pairs():
    with pytest.raises(DataError, match=r"a sample is a builtins\.list"):
        open_source([[1.0, 2.0], [3.0, 4.0]])


def test_a_dataset_is_asked_for_one_item_at_a_time():
    inside = []
    most = []

    def get(index):
        inside.append(index)
        most.append(len(inside))
        time.sleep(0.002)
        inside.remove(index)
        return np.zeros(2)

    list(batches(open_source(Items(get, 40)), None, batch_size=4, workers=4))
    assert max(most) == 1
