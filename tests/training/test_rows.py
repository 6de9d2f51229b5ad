from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spile.data import BadSample, Samples, open_source
from spile.errors import DataError, TrainingError
from spile.models import as_loaded
from spile.training.rows import Reader, choose_rows, epoch_order, open_rows

LABELS = ["b", "a", "c"] * 20


def source(labels: list[Any] = LABELS, **columns: Any) -> Any:
    x = np.arange(len(labels), dtype=np.float32)[:, None]
    return open_source(x, labels=labels, **columns)


def choose(data: Any, **options: Any) -> Any:
    return choose_rows(data, **{"shots": None, "validate": False, "seed": 0, "unlabelled": False} | options)


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("shots", [None, 5])
def test_no_row_does_two_things(validate: bool, shots: int | None) -> None:
    rows = choose(source(), validate=validate, shots=shots, unlabelled=True)
    every = np.concatenate([rows.labelled, rows.unlabelled, rows.validation, rows.test])
    assert sorted(every) == list(range(60))
    assert len(rows.test) == 12
    assert bool(len(rows.validation)) is validate


def test_classes_are_numbered_in_order() -> None:
    rows = choose(source())
    assert rows.classes == ("a", "b", "c")
    assert rows.codes[:3].tolist() == [1, 0, 2]


def test_shots_keep_so_many_labels_and_the_test_rows() -> None:
    full, few = choose(source()), choose(source(), shots=5, unlabelled=True)
    assert np.bincount(few.codes[few.labelled]).tolist() == [5, 5, 5]
    assert few.test.tolist() == full.test.tolist()
    assert len(few.unlabelled) == 48 - 15
    assert not len(choose(source(), shots=5).unlabelled)


def test_rows_without_a_label_are_learnt_from_but_never_measure() -> None:
    labels: list[Any] = [*LABELS, None, None]
    rows = choose(source(labels), unlabelled=True)
    assert rows.unlabelled.tolist() == [60, 61]
    assert not set(rows.test) & {60, 61}


def test_rows_without_a_label_are_found_by_the_split_in_any_case() -> None:
    labels = [None if i % 5 == 4 else i % 2 for i in range(60)]
    rows = choose(source(labels, splits=["Train"] * 40 + ["Test"] * 20), unlabelled=True)
    assert rows.unlabelled.tolist() == list(range(4, 40, 5))


def test_own_splits_are_kept() -> None:
    rows = choose(source(splits=["train"] * 40 + ["test"] * 20))
    assert (rows.labelled.max(), rows.test.min()) == (39, 40)


def test_a_class_of_test_rows_alone_has_a_number_of_no_class() -> None:
    labels: list[Any] = [*["a", "b"] * 10, "d", "c", "a", None]
    rows = choose(source(labels, splits=["train"] * 20 + ["test"] * 4))
    assert (rows.classes, rows.unseen) == (("a", "b"), ("c", "d"))
    assert rows.codes[20:].tolist() == [2, 2, 0, -1]
    assert rows.test.tolist() == [20, 21, 22]
    assert choose(source()).unseen == ()


def test_groups_stay_together() -> None:
    rows = choose(source(groups=[f"g{i // 6}" for i in range(60)]), validate=True)
    parts = [{i // 6 for i in part} for part in (rows.labelled, rows.validation, rows.test)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


def test_an_epoch_is_a_permutation_made_of_seed_and_epoch() -> None:
    order = epoch_order(20, 0, batch_size=4, seed=3, epoch=1)
    assert sorted(order.ravel()) == list(range(20))
    assert (order == epoch_order(20, 0, batch_size=4, seed=3, epoch=1)).all()
    assert (order != epoch_order(20, 0, batch_size=4, seed=3, epoch=2)).any()
    assert (order != epoch_order(20, 0, batch_size=4, seed=4, epoch=1)).any()


def test_a_last_odd_batch_is_left_out_unless_it_is_all() -> None:
    assert epoch_order(10, 0, batch_size=4, seed=0, epoch=0).shape == (2, 4)
    assert epoch_order(3, 0, batch_size=4, seed=0, epoch=0).shape == (1, 3)


def test_half_of_a_batch_has_labels() -> None:
    order = epoch_order(6, 100, batch_size=8, seed=0, epoch=0)
    assert order.shape == (25, 8)
    assert (order[:, :4] < 6).all()
    assert sorted(order[:, 4:].ravel()) == list(range(6, 106))
    assert np.bincount(order[:, :4].ravel()).tolist() == pytest.approx([100 / 6] * 6, abs=1)


def test_batches_hold_the_samples_the_labels_and_the_row_numbers() -> None:
    data = source()
    rows = choose(data, shots=5, unlabelled=True)
    reader = Reader(data, rows, as_loaded(None), 10, 0)
    batches = list(reader.train(0))
    assert len(batches) == reader.batches == 33 // 5
    for batch in batches:
        positions = batch.inputs[:, 0].astype(int)
        assert (rows.train[batch.rows] == positions).all()
        assert (batch.labels[:5] == rows.codes[positions[:5]]).all()
        assert (batch.labels[5:] == -1).all()
    measured = list(reader.measuring(rows.test)())
    assert np.concatenate([b.inputs[:, 0] for b in measured]).tolist() == rows.test.tolist()
    assert np.concatenate([b.labels for b in measured]).tolist() == rows.codes[rows.test].tolist()


def with_bad(bad: set[int], labels: list[Any] = LABELS, **columns: Any) -> Samples:
    """The same samples, of which some cannot be read."""
    good = source(labels, **columns)

    def read(position: int) -> Any:
        if position in bad:
            raise BadSample("file not found")
        return good.read(position)

    return Samples(good.name, good.kind, good.records, read)


def test_what_cannot_be_read_is_noted_once_however_often_it_is_read() -> None:
    rows = choose(source())
    bad = {int(rows.labelled[3]), int(rows.test[0])}
    reader = Reader(with_bad(bad), rows, as_loaded(None), 8, 0, max_bad=0.03)
    for epoch in range(4):
        assert not bad & {int(i) for batch in reader.train(epoch) for i in rows.train[batch.rows]}
        for batch in reader.measuring(rows.test)():
            assert batch.labels.tolist() == rows.codes[rows.test[batch.rows]].tolist()
    assert {at: (one.position, one.reason) for at, one in reader.skipped.items()} == {
        at: (at, "file not found") for at in bad
    }


def test_too_many_that_cannot_be_read_stop_the_run() -> None:
    splits = ["train"] * 30 + ["test"] * 20 + ["val"] * 10
    rows = choose(source(splits=splits))
    assert list(Reader(with_bad(set(range(50, 60))), rows, as_loaded(None), 8, 0).train(0))
    reader = Reader(with_bad({0, 40}), rows, as_loaded(None), 30, 0)
    assert len(next(reader.train(0)).labels) == 29  # one always may
    with pytest.raises(DataError, match=r"2 of 50 samples cannot be used .*file not found.*max_bad=0\.01"):
        list(reader.measuring(rows.test)())
    assert list(Reader(with_bad({0, 40}), rows, as_loaded(None), 30, 0, max_bad=0.04).measuring(rows.test)())


def test_streams_and_fractions_are_refused() -> None:
    with pytest.raises(DataError, match="pass its dataset"):
        open_rows(iter([(np.zeros((2, 3), np.float32), [0, 1])] * 2))
    with pytest.raises(TrainingError, match="learns classes"):
        choose(source([0.5, 1.5] * 10))
