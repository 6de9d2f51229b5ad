from __future__ import annotations

import numpy as np
import pytest

from spile.errors import ProbeError
from spile.probing.folds import assign_folds, group_codes, possible_folds, selection_rows


def test_every_row_is_held_out_once_and_classes_are_spread():
    y = np.repeat([0, 1, 2], [10, 15, 25])
    folds = assign_folds(y, folds=5, repeats=3)
    assert folds.shape == (3, 50)
    for held_out in folds:
        for fold in range(5):
            assert np.bincount(y[held_out == fold]).tolist() == [2, 3, 5]
    assert (folds[0] != folds[1]).any()


def test_folds_are_a_function_of_the_seed():
    y = np.arange(30) % 3
    first = assign_folds(y, folds=5, repeats=2, seed=1)
    assert (first == assign_folds(y, folds=5, repeats=2, seed=1)).all()
    assert (first != assign_folds(y, folds=5, repeats=2, seed=9)).any()


@pytest.mark.parametrize("stratify", [True, False])
def test_rows_of_a_group_are_held_out_together(stratify):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12, 60)
    y = rng.integers(0, 3, 60)
    for held_out in assign_folds(y, folds=4, repeats=5, groups=groups, stratify=stratify):
        assert sorted(set(held_out)) == [0, 1, 2, 3]
        for group in range(12):
            assert len(set(held_out[groups == group])) <= 1


def test_an_empty_fold_is_left_out_of_the_numbering():
    y = np.array(
        [1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 2, 2, 0, 0, 0, 2, 0, 0, 0, 0, 2, 1]
    )
    groups = [4, 0, 4, 4, 3, 3, 1, 1, 4, 0, 0, 0, 1, 0, 0, 1, 4, 0, 3, 2, 2, 3, 3, 0, 2, 3, 0, 3, 3, 2, 4]
    held_out = assign_folds(y, folds=5, groups=np.array(groups))[0]
    assert sorted(set(held_out)) == list(range(held_out.max() + 1))


def test_a_rare_class_does_not_cost_folds_or_warn():
    y = np.array([0] * 20 + [1] * 2)
    assert possible_folds(y, cv=5) == 5
    held_out = assign_folds(y, folds=5)[0]
    assert held_out[20] != held_out[21]


@pytest.mark.parametrize(
    ("y", "groups", "stratify", "folds"),
    [
        (np.arange(30) % 3, None, True, 5),
        (np.arange(6) % 3, None, True, 2),
        (np.arange(30) % 3, np.arange(30) % 4, True, 4),
        (np.arange(30) % 3, np.zeros(30), True, 1),
        (np.linspace(0, 1, 7), None, False, 3),
        (np.linspace(0, 1, 30), np.arange(30) % 7, False, 3),
    ],
)
def test_folds_are_bounded_by_classes_groups_and_rows(y, groups, stratify, folds):
    assert possible_folds(y, cv=5, groups=groups, stratify=stratify) == folds


def test_a_row_without_a_group_is_a_group_of_its_own():
    assert group_codes([None, None]) is None
    assert group_codes(["a", None, "a", None, "b"]).tolist() == [0, 1, 0, 2, 3]


@pytest.mark.parametrize(
    ("splits", "rows"),
    [
        (["train", "test", "train", None, "val"], [0, 2]),
        ([None, "test", None, "val"], [0, 2]),
        ([None, None], [0, 1]),
        (["test", "val"], []),
        (["Training", "TRAIN", "Testing", "Validation", "dev", "valid"], [0, 1]),
    ],
)
def test_only_training_rows_are_chosen_from(splits, rows):
    assert selection_rows(splits).tolist() == rows


def test_a_split_of_an_unknown_name_is_not_left_unused():
    with pytest.raises(ProbeError, match=r"unknown splits 'Trian', 'fold 1'. Allowed: 'train', 'training'"):
        selection_rows(["Trian", "fold 1", None, "train"])
