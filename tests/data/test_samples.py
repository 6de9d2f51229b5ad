import numpy as np
import pytest

from spile.data import Record, Source, open_source, select
from spile.data.samples import as_label
from spile.errors import DataError

DATA = np.arange(10, dtype=np.float32)[:, None]


def test_select_keeps_order_and_what_is_known():
    whole = open_source(
        (DATA, [f"c{i}" for i in range(10)]), splits=["train"] * 10, groups=list("aabbccddee")
    )
    part = select(whole, np.array([7, 2]))
    assert isinstance(part, Source)
    assert list(part.records) == [Record("7", "c7", "train", "d"), Record("2", "c2", "train", "b")]
    assert [part.read(0)[0], part.read(1)[0]] == [7, 2]
    assert part.name != whole.name
    assert select(part, [1]).records[0].id == "2"


def test_select_refuses_what_it_cannot_give():
    whole = open_source(DATA)
    for position in (10, -1):
        with pytest.raises(DataError, match=rf"position {position} is outside .*0\.\.9"):
            select(whole, [0, position])
    with pytest.raises(DataError, match="'3' stand for several"):
        select(whole, [3, 4, 3])
    with pytest.raises(DataError, match="stream"):
        select(open_source(iter([DATA])), [0])


def test_select_sees_labels_that_a_dataset_tells_late():
    part = select(open_source([(DATA[i], i) for i in range(10)]), [4])
    assert part.records[0].label is None
    part.read(0)
    assert part.records[0] == Record("4", 4)


def test_stated_columns_replace_what_the_data_says():
    source = open_source((DATA, range(10)), labels=np.arange(10) / 2, ids=np.arange(100, 110))
    assert source.records[3] == Record("103", 1.5)
    assert source.records[-1].id == "109" and len(source.records[2:4]) == 2
    again = open_source(source, labels=list("abcdefghij"))
    assert again.records[3] == Record("103", "d")
    assert open_source(source).records is source.records


@pytest.mark.parametrize("column", ["labels", "ids", "splits", "groups"])
def test_columns_must_have_one_value_a_sample(column):
    with pytest.raises(DataError, match=f"{column} has 9 values for 10 samples"):
        open_source(DATA, **{column: list("abcdefghi")})


def test_repeated_ids_are_named():
    with pytest.raises(DataError, match="ids must be unique, but 'a' stand"):
        open_source(DATA, ids=list("abcdefghia"))


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.str_("a"), "a"),
        (True, 1),
        (np.bool_(False), 0),
        (None, None),
        (np.array([2]), 2),
        (np.array(2.5), 2.5),
    ],
)
def test_labels_become_plain_python(value, expected):
    assert as_label(value) == expected and type(as_label(value)) is type(expected)


@pytest.mark.parametrize(
    "value, expected", [({"a", "b"}, {"a", "b"}), (["b", "a", "b"], {"a", "b"}), (set(), set()), ({2}, {2})]
)
def test_several_labels_become_a_set(value, expected):
    assert as_label(value) == frozenset(expected) and isinstance(as_label(value), frozenset)


@pytest.mark.parametrize("value", [np.zeros(2), [1, 2], {"boxes": 1}, b"x", {1, "a"}, {1.5}])
def test_labels_that_are_not_one_value_are_refused(value):
    with pytest.raises(DataError, match="a label is one number or one string a sample"):
        as_label(value)


@pytest.mark.parametrize(
    "value", [2**63, -(2**63) - 1, np.uint64(2**63), np.array([2**63], np.uint64), {1, 2**63}]
)
def test_integers_over_64_bits_are_no_labels(value):
    with pytest.raises(DataError, match=r"the label -?922337203685477580\d is .* over 64 bits.*str\(label\)"):
        as_label(value)
    with pytest.raises(DataError, match="over 64 bits"):
        open_source((DATA, [value] * 10))
    assert [as_label(2**63 - 1), as_label(-(2**63))] == [2**63 - 1, -(2**63)]


def test_tensor_labels_and_columns_of_labels():
    import torch

    assert open_source((DATA, torch.arange(10)[:, None])).records[9].label == 9
    assert type(as_label(torch.tensor(1.5))) is float
    assert [record.label for record in open_source((DATA, np.eye(10))).records] == list(range(10))
    rows = np.eye(10, 3, dtype=np.float32)  # seven of them without any label
    labels = [record.label for record in open_source((DATA, rows)).records]
    assert labels[:4] == [frozenset({0}), frozenset({1}), frozenset({2}), frozenset()]
    assert open_source((DATA, [["a"]] * 5 + [["a", "b"]] * 5)).records[0].label == frozenset({"a"})
    with pytest.raises(DataError, match="a label is one"):
        open_source((DATA, np.eye(10) / 2))
