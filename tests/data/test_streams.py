from functools import partial

import numpy as np
import pytest

from spile.data import Source, Stream, batches, open_source
from spile.errors import DataError
from spile.preprocessing import ImagePreprocessing

SMALL = ImagePreprocessing(resize=4, crop=(4, 4))
ONE = {"num_replicas": 1, "rank": 0}


def test_a_dataloader_keeps_its_tensors_and_batches():
    import torch

    images, labels = torch.rand(7, 3, 4, 4), torch.arange(7)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=3)
    stream = open_source(loader)
    assert isinstance(stream, Stream) and stream.length == 7 and stream.kind == "array"
    for _ in range(2):  # a loader starts over
        got = list(stream.batches())
        assert [(b.start, b.stop) for b in got] == [(0, 3), (3, 6), (6, 7)]
        assert all(isinstance(batch.inputs, torch.Tensor) for batch in got)
        assert torch.equal(torch.cat([batch.inputs for batch in got]), images)
        assert [(r.id, r.label) for b in got for r in b.records] == [(str(i), i) for i in range(7)]
    assert open_source(torch.utils.data.DataLoader(images, batch_size=3, drop_last=True)).length == 6


def test_a_shuffling_loader_is_refused():
    import torch

    with pytest.raises(DataError, match="shuffle=False"):
        open_source(torch.utils.data.DataLoader(torch.rand(4, 2), shuffle=True))


def test_samplers_that_shuffle_are_refused_wherever_they_are():
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
    from torch.utils.data.distributed import DistributedSampler

    samples = torch.rand(16, 2)
    for name, make in (
        ("RandomSampler", RandomSampler),
        ("DistributedSampler", partial(DistributedSampler, **ONE)),
    ):
        for loader in (
            DataLoader(samples, batch_sampler=BatchSampler(make(samples), 8, False)),
            DataLoader(samples, batch_size=8, sampler=make(samples)),
        ):
            with pytest.raises(DataError, match=rf"shuffles \({name}\)"):
                open_source(loader)
    ordered = (SequentialSampler(samples), DistributedSampler(samples, **ONE, shuffle=False))
    for sampler in ordered:
        loader = DataLoader(samples, batch_sampler=BatchSampler(sampler, 8, False))
        assert torch.equal(torch.cat([b.inputs for b in open_source(loader).batches()]), samples)


def test_iterable_datasets_need_a_loader():
    import torch

    class Counting(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.arange(5.0))

    with pytest.raises(DataError, match="Type: DataLoader"):
        open_source(Counting())
    stream = open_source(torch.utils.data.DataLoader(Counting(), batch_size=2))
    assert stream.length is None and [b.stop for b in stream.batches()] == [2, 4, 5]


@pytest.mark.parametrize("key", ["image", "pixel_values", "x"])
def test_dict_batches(key):
    (batch,) = open_source(iter([{key: np.zeros((2, 3)), "label": ["a", "b"], "path": ["p", "q"]}])).batches()
    assert batch.inputs.shape == (2, 3) and [r.label for r in batch.records] == ["a", "b"]


def test_tokenized_batches_stay_dicts():
    tokens = {"input_ids": np.ones((2, 5)), "attention_mask": np.ones((2, 5))}
    for given in ({**tokens, "labels": np.array([0, 1])}, (tokens, np.array([0, 1]))):
        (batch,) = open_source(iter([given])).batches()
        assert set(batch.inputs) == set(tokens) and [r.label for r in batch.records] == [0, 1]


def test_stated_labels_and_ids_go_along_a_stream():
    def chunks():
        yield from (np.zeros((2, 3)), np.zeros((1, 3)))

    stream = open_source(chunks(), labels=[5, 6, 7], ids=["a", "b", "c"])
    assert [(r.id, r.label) for b in stream.batches() for r in b.records] == [("a", 5), ("b", 6), ("c", 7)]
    with pytest.raises(DataError, match="more samples than the labels"):
        list(open_source(chunks(), labels=[5, 6]).batches())
    with pytest.raises(DataError, match="labels has 4 values for 3 samples"):
        list(open_source(chunks(), labels=[5, 6, 7, 8]).batches())


def test_what_can_be_read_once_says_so_the_second_time():
    stream = open_source(iter([np.zeros((2, 3))]))
    assert len(list(stream.batches())) == 1
    with pytest.raises(DataError, match="read once only"):
        list(stream.batches())


@pytest.mark.parametrize(
    "batch, message",
    [
        ("text", "a batch is a str"),
        (np.float32(3), "a batch is a float32"),
        ((np.zeros(2),) * 4, "a batch is a tuple of ndarray, ndarray, ndarray, ndarray"),
        ((), "a batch is a tuple of nothing"),
        ({"a": 1}, "keys 'a'; needed: 'input_ids' or one of"),
        ((np.zeros((2, 3)), [1]), "a batch of 2 samples came with 1 labels"),
    ],
)
def test_batches_of_another_form_are_refused(batch, message):
    with pytest.raises(DataError, match=message):
        list(open_source(iter([batch])).batches())


def test_three_tensors_of_a_torch_loader_are_not_taken_for_weights():
    import torch

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*[torch.zeros(4)] * 3), batch_size=2)
    with pytest.raises(DataError, match="a batch is a list of Tensor, Tensor, Tensor"):
        list(open_source(loader).batches())


def test_uint8_tensors_of_a_torch_loader_stay_as_they_are():
    import torch

    loader = torch.utils.data.DataLoader(torch.zeros(4, 6, 6, 3, dtype=torch.uint8), batch_size=2)
    stream = open_source(loader)
    assert stream.kind == "array"
    assert next(batches(stream, SMALL, batch_size=2)).inputs.shape == (2, 6, 6, 3)


def test_ids_that_come_with_the_batches_name_the_samples():
    made = [{"image": np.zeros((2, 3)), "id": np.array([b"a", b"b"])}, {"image": np.zeros((1, 3)), "id": [7]}]
    stream = open_source(iter(made))
    assert [r.id for b in stream.batches() for r in b.records] == ["a", "b", "7"]
    made[1]["id"] = ["a"]
    with pytest.raises(DataError, match="ids must be unique, but 'a'"):
        list(open_source(iter(made)).batches())
    made[1]["id"] = ["c", "d"]
    with pytest.raises(DataError, match="a batch of 1 samples came with 2 ids"):
        list(open_source(iter(made)).batches())
    with pytest.raises(DataError, match="ids must be unique, but 'x'"):
        open_source(iter(made), ids=["x", "y", "x"])


def test_the_first_batch_that_tells_the_kind_is_not_lost():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    for made in (iter([pixels[:4], pixels[4:]]), Again([pixels[:4], pixels[4:]])):
        stream = open_source(made)
        assert stream.kind == "image"
        got = list(batches(stream, SMALL, batch_size=1, start=4))
        assert [(b.start, b.stop, b.inputs.shape) for b in got] == [(4, 6, (2, 4, 4, 3))]
    assert [b.stop for b in batches(stream, None, batch_size=1)] == [4, 6]  # starts over
    ready = open_source(iter([pixels.astype(np.float32)]))
    assert ready.kind == "array" and next(ready.batches()).inputs.dtype == np.float32


def test_a_batch_without_images_has_no_inputs():
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    got = list(batches(open_source(iter([pixels, pixels[:0]])), SMALL, batch_size=1))
    assert [(b.start, b.stop, b.inputs is None) for b in got] == [(0, 2, False), (2, 2, True)]


def test_batches_that_turn_from_images_into_something_else_are_refused():
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="began with batches of uint8 images"):
        list(batches(open_source(iter([pixels, pixels / 255])), SMALL, batch_size=1))


def test_a_loader_that_cannot_start_over_is_opened_once():
    class Once:
        """Iterates over what it holds, which is gone afterwards."""

        def __init__(self):
            self.left = [np.zeros((2, 3)), np.zeros((1, 3))]

        def __iter__(self):
            while self.left:
                yield self.left.pop(0)

    assert [b.stop for b in open_source(Once()).batches()] == [2, 3]


class Again:
    """Batches that can be iterated over again and again."""

    def __init__(self, made):
        self.made = made

    def __iter__(self):
        return iter(self.made)


def test_a_function_is_called_for_every_reading():
    calls = []

    def chunks(count=2):
        calls.append(count)
        for size in range(1, count + 1):
            yield np.zeros((size, 3)), [str(size)] * size

    for function, stops in ((chunks, [1, 3]), (partial(chunks, 3), [1, 3, 6]), (lambda: chunks(1), [1])):
        calls.clear()
        stream = open_source(function)
        for _ in range(2):
            assert [b.stop for b in stream.batches()] == stops
        assert len(calls) == 2  # the first call tells the kind, and is read on
    assert stream.length is None


def test_functions_that_make_no_batches_say_so():
    with pytest.raises(DataError, match=r"takes arguments .*'size'.*Type: lambda: .*<lambda>\(\.\.\.\)"):
        open_source(lambda size: [size])
    with pytest.raises(DataError, match=r"gave a int; needed: an iterable of batches"):
        open_source(lambda: 3)


def py_dataset(made, **attributes):
    """What `keras.utils.PyDataset` is: batches by index, known by its class's name and module."""
    base = type("PyDataset", (), {"__module__": "keras.src.trainers.data_adapters.py_dataset_adapter"})
    body = {"__getitem__": lambda self, index: made[index], "num_batches": len(made), **attributes}
    return type("Mine", (base,), body)()


def test_a_py_dataset_is_read_by_batch():
    made = [(np.zeros((4, 3)), np.arange(4)), (np.ones((4, 3)), np.arange(4)), (np.ones((1, 3)), [9])]
    stream = open_source(py_dataset(made), ids=list("abcdefghi"))
    assert isinstance(stream, Stream) and stream.length == 9 and stream.kind == "array"
    for _ in range(2):
        got = list(stream.batches())
        assert [(b.start, b.stop) for b in got] == [(0, 4), (4, 8), (8, 9)]
        assert [(r.id, r.label) for r in got[-1].records] == [("i", 9)]
    (batch,) = batches(stream, None, batch_size=1, start=8)
    np.testing.assert_array_equal(batch.inputs, np.ones((1, 3)))
    assert open_source(py_dataset(made[:1])).length == 4
    images = open_source(py_dataset([np.zeros((2, 8, 8, 3), np.uint8)]))
    assert images.kind == "image" and next(batches(images, SMALL, batch_size=1)).inputs.shape == (2, 4, 4, 3)


def test_its_forerunners_are_known_by_their_epochs():
    class Batches:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return np.full((3, 2), index), np.zeros(3), np.ones(3)

        def on_epoch_end(self):
            raise AssertionError("nothing is trained")

    stream = open_source(Batches())
    assert isinstance(stream, Stream) and stream.length == 6
    assert [b.stop for b in stream.batches()] == [3, 6]


def test_a_torch_dataset_that_knows_of_epochs_is_read_by_sample():
    import torch

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return np.full(2, index), index

        def on_epoch_end(self):
            pass

    source = open_source(Items())
    assert isinstance(source, Source) and source.read(3).tolist() == [3, 3]


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"num_batches": None}, "would never end"),
        (
            {"num_batches": property(lambda self: (_ for _ in ()).throw(NotImplementedError))},
            "would never end",
        ),
        ({"shuffle": True}, "Type: shuffle=False"),
    ],
)
def test_a_py_dataset_without_end_or_order_is_refused(attributes, message):
    with pytest.raises(DataError, match=message):
        open_source(py_dataset([np.zeros((2, 3))], **attributes))
