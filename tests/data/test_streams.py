import numpy as np
import pytest

from spile.data import Stream, open_source
from spile.errors import DataError


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
        ((np.zeros(2), np.zeros(2), np.zeros(2)), "a batch is a tuple of ndarray, ndarray, ndarray"),
        ({"a": 1}, "keys 'a'; needed: 'input_ids' or one of"),
        ((np.zeros((2, 3)), [1]), "a batch of 2 samples came with 1 labels"),
    ],
)
def test_batches_of_another_form_are_refused(batch, message):
    with pytest.raises(DataError, match=message):
        list(open_source(iter([batch])).batches())
