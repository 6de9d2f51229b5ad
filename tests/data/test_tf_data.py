"""Datasets that are built as TensorFlow's are; the real ones are in tests/keras/test_data.py."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from spile.data import Stream, batches, open_source
from spile.errors import DataError

FLOAT = np.dtype("float32")


@dataclass
class Spec:
    """What an element is: shape and type, without values."""

    shape: tuple[int | None, ...]
    dtype: Any = FLOAT


@dataclass
class Options:
    deterministic: bool | None = None


class DatasetV2:
    """The least of a dataset: its elements, what they are, and the datasets that it is made of."""

    __module__ = "tensorflow.python.data.ops.dataset_ops"

    def __init__(self, elements=(), spec=None, made_of=(), count=None, **attributes):
        self.elements = list(elements)
        self.element_spec = spec
        self.count = len(self.elements) if count is None else count
        self.made_of = list(made_of)
        vars(self).update(attributes)

    def __iter__(self):
        raise AssertionError("tensors are not wanted")

    def __len__(self):
        raise TypeError("unknown")

    def as_numpy_iterator(self):
        return iter(self.elements)

    def cardinality(self):
        return np.int64(self.count)

    def options(self):
        return Options(getattr(self, "deterministic", None))

    def _inputs(self):
        return self.made_of


def step(name, *args, **attributes):
    return type(name, (DatasetV2,), {"__module__": "tensorflow.python.data.ops"})(*args, **attributes)


IMAGES = [np.full((2, 4, 4, 3), i, np.float32) for i in range(2)] + [np.full((1, 4, 4, 3), 2, np.float32)]
LABELS = [np.array([0, 1]), np.array([1, 0]), np.array([1])]
PAIR = (Spec((None, 4, 4, 3)), Spec((None,)))


def single(count=5, spec=None, **attributes):
    return step("_TensorSliceDataset", spec=spec or (Spec((4, 4, 3)), Spec(())), count=count, **attributes)


def batched(source=None, name="_BatchDataset", drop=False, spec=PAIR, elements=None, **attributes):
    elements = list(zip(IMAGES, LABELS, strict=True)) if elements is None else elements
    made_of = [single() if source is None else source]
    return step(name, elements, spec, made_of, _batch_size=2, _drop_remainder=drop, **attributes)


def after(dataset, name="_PrefetchDataset", **attributes):
    return step(name, dataset.elements, dataset.element_spec, [dataset], **attributes)


def test_a_batched_dataset_is_a_stream_of_arrays():
    stream = open_source(after(batched()))
    assert isinstance(stream, Stream) and stream.length == 5 and stream.kind == "array"
    for _ in range(2):
        got = list(batches(stream, None, batch_size=1))
        assert [(b.start, b.stop) for b in got] == [(0, 2), (2, 4), (4, 5)]
        assert got[1].inputs is IMAGES[1]
        assert [(r.id, r.label) for b in got for r in b.records] == list(
            zip("01234", [0, 1, 1, 0, 1], strict=True)
        )
    (last,) = batches(stream, None, batch_size=1, start=4)
    assert last.inputs is IMAGES[2]


def test_uint8_images_are_told_from_what_it_says_of_itself():
    spec = {"image": Spec((None, 4, 4, 3), np.dtype("uint8")), "id": Spec((None,), np.dtype(object))}
    elements = [{"image": np.zeros((2, 4, 4, 3), np.uint8), "id": np.array([b"a", b"b"], dtype=object)}]
    stream = open_source(batched(spec=spec, elements=elements))
    assert stream.kind == "image"
    assert [r.id for b in stream.batches() for r in b.records] == ["a", "b"]


@pytest.mark.parametrize(
    "dataset, length",
    [
        (batched(drop=True), 4),
        (after(batched(), "_MapDataset"), 5),
        (after(batched(), "_ConcatenateDataset"), None),
        (batched(single(count=-2)), None),
        (step("_FlatMapDataset", [], PAIR), None),
    ],
)
def test_length_is_what_is_known(dataset, length):
    assert open_source(dataset).length == length


@pytest.mark.parametrize(
    "dataset, shape",
    [
        (single(), r"\(4, 4, 3\)"),
        (single(spec=Spec((8,))), r"\(8\)"),
        (after(single(spec=(Spec((None, None, 3)), Spec((7,)))), "_MapDataset"), r"\(\?, \?, 3\)"),
        (step("_FlatMapDataset", spec=Spec((None, None, 3))), r"\(\?, \?, 3\)"),
        (step("_FlatMapDataset", spec=(Spec((9, 9)), Spec(()))), r"\(9, 9\)"),
        (step("_UnbatchDataset", spec=Spec((4, 8)), made_of=[batched()]), r"\(4, 8\)"),
        (step("_RangeDataset", spec=Spec(())), r"\(\)"),
    ],
)
def test_single_samples_are_refused(dataset, shape):
    with pytest.raises(
        DataError, match=rf"single samples of shape {shape}, not batches\. Type: dataset\.batch"
    ):
        open_source(dataset)


@pytest.mark.parametrize(
    "dataset",
    [
        after(batched(spec=Spec((None, None, 3))), "_MapDataset"),
        step("_FlatMapDataset", spec=Spec((None, 8))),
        step("_FlatMapDataset", spec=Spec((None, 5, 8))),
        step("_MapDataset", spec=PAIR, made_of=[step("_RangeDataset", spec=Spec(()))]),
        step("_MapDataset", spec=Spec((32, 8)), made_of=[single(spec=Spec(()))]),
        step(
            "_RebatchDataset", spec=Spec((None, 5, 3)), made_of=[step("_UnbatchDataset", made_of=[batched()])]
        ),
    ],
)
def test_batches_made_in_other_ways_are_taken(dataset):
    assert isinstance(open_source(dataset), Stream)


@pytest.mark.parametrize("seeds, again", [((0, 0), False), ((9, 1), True)])
@pytest.mark.parametrize("name", ["_ShuffleDataset", "_RandomDataset"])
def test_a_dataset_that_shuffles_anywhere_is_refused(name, seeds, again):
    flag = {"_ShuffleDataset": "_reshuffle_each_iteration", "_RandomDataset": "_rerandomize_each_iteration"}[
        name
    ]
    shuffling = step(
        name, spec=single().element_spec, made_of=[single()], _seed=seeds[0], _seed2=seeds[1], **{flag: again}
    )
    both = step("_ZipDataset", spec=single().element_spec, made_of=[single(), shuffling])
    with pytest.raises(DataError, match=r"Leave \.shuffle\(\.\.\.\) out; .*type: shuffle=False"):
        open_source(after(batched(both)))


def test_a_shuffle_that_is_the_same_every_time_is_taken():
    seeded = step(
        "_ShuffleDataset", spec=single().element_spec, _seed=9, _seed2=0, _reshuffle_each_iteration=False
    )
    assert isinstance(open_source(batched(seeded)), Stream)


def test_order_left_open_and_endless_repetition_are_refused():
    parallel = step(
        "_ParallelMapDataset", spec=single().element_spec, made_of=[single()], _deterministic="false"
    )
    with pytest.raises(DataError, match="_ParallelMapDataset of the dataset has deterministic=False"):
        open_source(batched(parallel))
    with pytest.raises(DataError, match=r"the option deterministic=False.*shuffle_files=False"):
        open_source(batched(deterministic=False))
    with pytest.raises(DataError, match=r"repeats for ever\. Leave \.repeat\(\) out"):
        open_source(batched(count=-1))


@pytest.mark.parametrize("kind", ["RaggedTensorSpec", "SparseTensorSpec"])
def test_ragged_and_sparse_batches_are_refused(kind):
    spec = type(kind, (Spec,), {})((None, None))
    with pytest.raises(
        DataError, match=rf"batches of {kind.removesuffix('Spec')}s; needed: dense.*to_tensor"
    ):
        open_source(batched(spec=(spec, Spec((None,)))))


FILES = [
    f"/data/cats and dogs/{folder}/{i}.png" for i, folder in enumerate(["cat", "dog", "dog", "cat", "dog"])
]


def from_directory(**attributes):
    return after(batched(), file_paths=FILES, class_names=["cat", "dog"], **attributes)


@pytest.mark.parametrize(
    "steps", [[], ["_MapDataset"], ["CacheDataset", "_OptionsDataset", "_PrefetchDataset"]]
)
def test_files_and_folders_become_ids_and_labels(steps):
    dataset = from_directory()
    for name in steps:
        dataset = after(dataset, name)
    stream = open_source(dataset)
    records = [r for b in stream.batches() for r in b.records]
    assert [r.id for r in records] == FILES and stream.length == 5
    assert [r.label for r in records] == ["cat", "dog", "dog", "cat", "dog"]
    stream = open_source(dataset, ids=list("abcde"), labels=[5, 6, 7, 8, 9])
    records = [r for b in stream.batches() for r in b.records]
    assert [(r.id, r.label) for r in records] == list(zip("abcde", range(5, 10), strict=True))


def test_files_go_along_only_while_samples_keep_their_places():
    filtered = after(from_directory(), "_FilterDataset")
    assert [r.id for b in open_source(filtered).batches() for r in b.records] == list("01234")
    short = step("_TakeDataset", from_directory().elements[:1], PAIR, [from_directory()])
    assert [r.id for b in open_source(short).batches() for r in b.records] == FILES[:2]


def test_labels_that_are_no_folders_stay_numbers():
    flat = after(batched(), file_paths=[f"/data/0/{i}.png" for i in range(5)], class_names=["1", "7"])
    assert [r.label for b in open_source(flat).batches() for r in b.records] == [0, 1, 1, 0, 1]
    without = after(batched(), file_paths=FILES, class_names=None)
    assert [r.label for b in open_source(without).batches() for r in b.records] == [0, 1, 1, 0, 1]


def test_ids_in_the_batches_go_before_files():
    spec = {"image": PAIR[0], "id": PAIR[1]}
    named = [{"image": IMAGES[0], "id": np.array([b"a", b"b"])}]
    dataset = step("_MapDataset", named, spec, [from_directory()])
    assert [r.id for b in open_source(dataset).batches() for r in b.records] == ["a", "b"]


def test_more_samples_than_files_is_an_error():
    with pytest.raises(DataError, match="more samples than"):
        list(open_source(after(batched(), file_paths=FILES[:3], class_names=["cat", "dog"])).batches())
