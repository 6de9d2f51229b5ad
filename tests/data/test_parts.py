import numpy as np
import pytest

from spile.data.parts import Parts, as_ids, as_inputs, as_targets, batch_length, is_images, split_batch
from spile.errors import DataError

X, Y, W = np.zeros((2, 3)), np.arange(2), np.ones(2)


@pytest.mark.parametrize(
    "batch, inputs, targets",
    [
        (X, X, None),
        ((X,), X, None),
        ((X, Y), X, Y),
        ([X, Y], X, Y),
        ((X, Y, W), X, Y),
        (((X, W), Y), (X, W), Y),
        (({"a": X, "b": W}, Y, W), {"a": X, "b": W}, Y),
        (({"a": X},), {"a": X}, None),
        ({"image": X, "label": Y, "path": W}, X, Y),
        ({"token_ids": X, "padding_mask": X, "label": Y, "id": W}, {"token_ids": X, "padding_mask": X}, Y),
    ],
)
def test_batches_are_taken_apart_as_keras_does(batch, inputs, targets):
    parts = split_batch(batch)
    assert repr(parts.inputs) == repr(inputs) and parts.targets is targets


def test_ids_come_from_dicts_only():
    assert split_batch({"x": X, "id": Y}) == Parts(X, None, Y)
    assert split_batch(({"id": Y}, W)).ids is None  # an input of that name


def test_a_dict_of_unknown_keys_says_how_to_give_several_inputs():
    with pytest.raises(DataError, match=r"keys 'a', 'b'; needed.*as \(inputs, labels\) or \(inputs,\)"):
        split_batch({"a": X, "b": X})


class Tensor:
    """A tensor of another framework."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def numpy(self):
        return self.values


def test_tensors_become_arrays_without_a_copy_and_torch_tensors_stay():
    import torch

    tensor, kept = Tensor(X), torch.zeros(2, 3)
    inputs = as_inputs({"a": tensor, "b": [X, kept], "c": (X,)})
    assert inputs["a"] is tensor.values and inputs["b"][0] is X and inputs["b"][1] is kept
    assert isinstance(inputs["c"], tuple)


@pytest.mark.parametrize("inputs", [3, "text", np.float32(3), [], {"a": [1, 2]}, (X, None)])
def test_inputs_that_are_no_arrays_of_samples_are_refused(inputs):
    with pytest.raises(DataError, match="a batch is a"):
        as_inputs(inputs)


def test_inputs_of_several_lengths_are_refused():
    assert batch_length({"a": X, "b": (W, Y)}) == 2
    with pytest.raises(DataError, match="have 2 and 3 samples"):
        batch_length((X, np.zeros(3)))


@pytest.mark.parametrize(
    "targets, labels",
    [
        (np.array([3, 1]), [3, 1]),
        (Tensor([[0.0], [1.0]]), [0.0, 1.0]),
        (["a", "b"], ["a", "b"]),
        (np.array([b"a", b"b"], dtype=object), ["a", "b"]),
        (np.array([b"a", b"b"]), ["a", "b"]),
        (np.array([[0, 0, 1], [1, 0, 0]]), [2, 0]),
        (Tensor(np.eye(2, dtype=np.float32)), [0, 1]),
        (np.eye(2, dtype=bool), [0, 1]),
    ],
)
def test_targets_become_one_label_a_sample(targets, labels):
    assert as_targets(targets) == labels
    assert [type(label) for label in as_targets(targets)] == [type(label) for label in labels]


@pytest.mark.parametrize(
    "targets, message",
    [
        (np.array([[1, 1, 0], [1, 0, 0]]), r"have shape \(2, 3\) and are not one-hot"),
        (np.array([[0.9, 0.1], [1, 0]]), r"have shape \(2, 2\) and are not one-hot"),
        (np.array([[0, 0], [1, 0]]), "not one-hot"),
        (np.zeros((2, 4, 4)), r"shape \(2, 4, 4\)"),
        ({"a": Y, "b": Y}, r"the targets are several \('a', 'b'\)"),
        ((Y, Y), r"the targets are several \(2\)"),
        (3, "the targets are a int"),
        ("ab", "the targets are a str"),
        (np.int64(3), "the targets are a int64"),
    ],
)
def test_targets_of_another_form_are_refused(targets, message):
    with pytest.raises(DataError, match=message + r".*one number or string a sample.*Yield x alone"):
        as_targets(targets)


def test_ids_become_strings():
    assert as_ids(np.array([[1], [2]])) == ["1", "2"]
    assert as_ids(Tensor(np.array([b"a", "\u00e9".encode()], dtype=object))) == ["a", "\u00e9"]
    assert as_ids(["a", 3]) == ["a", "3"]


@pytest.mark.parametrize(
    "array, images",
    [
        (np.zeros((2, 4, 4, 3), np.uint8), True),
        (np.zeros((2, 4, 4, 1), np.uint8), True),
        (np.zeros((2, 4, 4, 3)), False),
        (np.zeros((2, 3, 4, 5), np.uint8), False),
        (np.zeros((2, 4, 3), np.uint8), False),
        ((np.zeros((2, 4, 4, 3), np.uint8),), False),
    ],
)
def test_images_are_uint8_with_channels_last(array, images):
    assert is_images(array) is images
