"""Which rows fit and which measure: disjoint, as the data says, whole groups, every class represented."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spile.errors import ProbeError
from spile.probing.rows import check_labels, labels_of, split_rows


class Store(SimpleNamespace):
    labels: Any
    splits: Any = None
    groups: Any = None

    def __len__(self) -> int:
        return len(self.labels)


def store(labels: Any, **columns: Any) -> Any:
    return Store(labels=np.array(labels, dtype=object if None in labels else None), **columns)


def test_a_fifth_is_set_aside_by_class() -> None:
    data = store(["a"] * 20 + ["b"] * 10)

    split = split_rows(data, shots=None, seed=0)

    assert not set(split.train) & set(split.test)
    assert sorted([*split.train, *split.test]) == list(range(30))
    assert np.unique(labels_of(data, split.test), return_counts=True)[1].tolist() == [4, 2]
    assert split.test.tolist() != split_rows(data, shots=None, seed=1).test.tolist()


def test_a_rare_class_keeps_two_rows_to_fit_on() -> None:
    for seed in range(10):
        split = split_rows(store(["a"] * 20 + ["rare"] * 2), shots=None, seed=seed)
        assert {20, 21} <= set(split.train)
        assert 3 <= len(split.test) <= 5


def test_groups_are_never_parted() -> None:
    groups = np.array([str(i // 3) for i in range(60)], dtype=object)
    data = store(["a", "b"] * 30, groups=groups)

    for shots in (None, 4):
        split = split_rows(data, shots=shots, seed=3)
        assert len(split.test) and not set(groups[split.train]) & set(groups[split.test])


def test_training_rows_of_a_group_with_test_rows_are_left_out() -> None:
    groups = np.array([str(i // 6) for i in range(24)] + ["alone"] * 4, dtype=object)
    splits = np.array((["train"] * 4 + ["test"] * 2) * 3 + ["train"] * 10, dtype=object)
    data = store(["a", "b"] * 14, groups=groups, splits=splits)

    for shots in (None, 3):
        with pytest.warns(UserWarning, match="12 of 22 training rows are left out.*such as '0'"):
            split = split_rows(data, shots=shots, seed=0)
        assert not set(groups[split.train]) & set(groups[split.test])
        assert set(split.train) <= set(range(18, 28)) and len(split.test) == 6
    stated = split_rows(data, shots=None, seed=0, groups=groups)
    assert stated.train.tolist() == list(range(18, 28))


def test_rows_of_the_test_split_measure_and_other_splits_are_not_looked_at() -> None:
    splits = np.array(["train"] * 6 + ["val"] * 4 + ["test"] * 4 + [None] * 2, dtype=object)
    data = store(["a", "b"] * 8, splits=splits)

    whole, few = split_rows(data, shots=None, seed=0), split_rows(data, shots=2, seed=0)

    assert whole.train.tolist() == list(range(6))
    assert whole.test.tolist() == few.test.tolist() == [10, 11, 12, 13]
    assert len(few.train) == 4 and set(few.train) < set(range(6))


def test_names_of_splits_are_read_in_any_case() -> None:
    splits = np.array(["Train"] * 6 + ["validation"] * 4 + ["Test"] * 4, dtype=object)
    data = store(["a", "b"] * 7, splits=splits)

    split = split_rows(data, shots=None, seed=0)

    assert split.train.tolist() == list(range(6)) and split.test.tolist() == [10, 11, 12, 13]
    splits[-1] = "held out"
    with pytest.raises(ProbeError, match="unknown splits 'held out'"):
        split_rows(data, shots=None, seed=0)


def test_without_a_train_split_rows_without_a_split_fit() -> None:
    splits = np.array([None] * 6 + ["val"] * 2, dtype=object)

    split = split_rows(store(["a", "b"] * 4, splits=splits), shots=None, seed=0)

    assert split.train.tolist() == list(range(6)) and split.test.tolist() == [6, 7]


def test_unlabelled_rows_are_left_out_and_do_not_change_the_type() -> None:
    data = store([1.5, None, 2.5, 3.5, float("nan"), 4.5, 5.5, 6.5])

    split = split_rows(data, shots=None, seed=0)

    assert not {1, 4} & {*split.train, *split.test}
    assert labels_of(data, split.train).dtype == np.float64


@pytest.mark.parametrize(
    ("labels", "columns", "shots", "message"),
    [
        ([None] * 4, {}, None, "no labels"),
        ([0.5, -np.inf] * 4, {}, None, "labels must be finite, and 4 are not, such as -inf"),
        (["a"] * 9 + ["b"], {}, None, "class 'b' has one row only"),
        (["a", "b"] * 4, {}, 1, "shots=1 is too few"),
        ([1, 2] * 4, {}, 5, "class 1 has 4 training rows, fewer than shots=5: write shots=4"),
        (["a", "b"] * 4, {"splits": ["test"] * 8}, None, "the splits are 'test'"),
        (["a", "b"] * 4, {"groups": ["g"] * 8}, None, "too few groups"),
        (
            ["a", "b"] * 4,
            {"groups": list("uvwxuvwx"), "splits": ["train"] * 4 + ["test"] * 4},
            None,
            "every training row is of a group that has test rows too, such as 'u'",
        ),
        (["a", "b"] * 2, {}, None, "too few labelled rows"),
        (["a"] * 5 + ["b"] * 5, {"groups": ["u"] * 5 + ["z"] * 5}, None, "leaves a class"),
    ],
)
def test_too_little(labels: Any, columns: Any, shots: int | None, message: str) -> None:
    arrays = {name: np.array(values, dtype=object) for name, values in columns.items()}
    with pytest.raises(ProbeError, match=message):
        split_rows(store(labels, **arrays), shots=shots, seed=0)


def test_one_label_is_seen_before_any_work() -> None:
    with pytest.raises(ProbeError, match="all samples have the label 3"):
        check_labels([3, 3, 3])
    for fine in ([], [3, 4], [3, None], [2.0, 2.0]):
        check_labels(fine)
