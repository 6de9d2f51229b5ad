"""Near-duplicates on both sides of a split are warned of, and can be kept on one side."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from spile.probing.leaks import warn_of_split
from spile.probing.rows import Split, split_rows
from spile.probing.search import probe
from spile.probing.task import make_task
from spile.store.duplicates import Held, linked, near_pairs


@pytest.fixture
def copied(make_store):
    """60 rows of noise with random labels, each there twice: what a memory can know, and skill cannot."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 80)), rng.permutation(60) % 3
    twice = np.concatenate([x, x + 1e-3 * rng.standard_normal(x.shape)])
    return make_store({"layer": twice}, np.concatenate([y, y]).tolist())


def groups_of(store):
    return linked(len(store), near_pairs(Held(store.values["layer"])).rows)


def test_near_duplicates_across_folds_are_warned_of_and_groups_take_them_away(copied):
    options = {"repeats": 1, "nested": False}
    with pytest.warns(
        UserWarning, match=r"of 120 rows have a near-duplicate in another fold.*such as 'sample-.*groups="
    ):
        leaky = probe(copied, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        honest = probe(copied, groups=groups_of(copied), **options)
    assert leaky.best.score > 0.7
    assert honest.best.score < 0.5
    folds = honest._task.folds[0]
    assert (folds[:60] == folds[60:]).all()


def test_ordinary_rows_are_not_warned_of(make_store, blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, y = blobs(200, 20)
        probe(make_store({"layer": x}, y.tolist()), repeats=1, nested=False)


def test_a_few_of_many_are_not_worth_a_warning(make_store, blobs):
    x, y = blobs(400, 20)
    x[0] = x[200]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(make_store({"layer": x}, y.tolist()), repeats=1, nested=False)


def test_groups_must_be_one_a_row(copied):
    with pytest.raises(ValueError, match="groups has 3 entries, but the store has 120 rows"):
        probe(copied, groups=[1, 2, 3])


def test_groups_of_one_row_each_are_no_groups(copied):
    tasks = [
        make_task(copied, rows=None, estimator="ridge", metric="auto", cv=5, repeats=1, seed=0, groups=groups)
        for groups in (None, range(120))
    ]
    assert (tasks[0].folds == tasks[1].folds).all()


def test_training_rows_with_a_copy_among_the_test_rows_are_left_out(make_store):
    rng = np.random.default_rng(0)
    splits = ["train"] * 8 + ["test"] * 4
    store = make_store({"layer": rng.standard_normal((12, 20))}, [0, 1] * 6, splits=splits)
    groups = np.arange(12)
    groups[8] = 0
    assert split_rows(store, shots=None, seed=0).train.tolist() == list(range(8))
    assert split_rows(store, shots=None, seed=0, groups=groups).train.tolist() == list(range(1, 8))
    drawn = split_rows(store, shots=2, seed=0, groups=groups)
    assert 0 not in drawn.train and drawn.test.tolist() == [8, 9, 10, 11]


def test_rows_set_aside_hold_whole_groups(copied):
    split = split_rows(copied, shots=None, seed=0, groups=groups_of(copied))
    assert not set(split.train % 60) & set(split.test % 60)
    plain = split_rows(copied, shots=None, seed=0)
    assert set(plain.train % 60) & set(plain.test % 60)


class Taken:
    """A store whose column can be taken from."""

    def __init__(self, store):
        self.points, self.ids, self._values = store.points, np.array(store.ids), store.values

    def __getitem__(self, point):
        return Held(self._values[point])


def test_test_rows_with_a_copy_among_the_training_rows_are_warned_of(copied):
    leaky = Split(np.arange(60, 120), np.arange(60))
    with pytest.warns(UserWarning, match="120 of 120 rows have a near-duplicate in the other split"):
        warn_of_split(Taken(copied), leaky)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_split(Taken(copied), Split(np.r_[0:30, 60:90], np.r_[30:60, 90:120]))
        warn_of_split(Taken(copied), Split(np.arange(120), np.arange(0)))
