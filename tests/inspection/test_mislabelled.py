"""Planted label errors are found; a copy of a sample does not vouch for it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from spile.errors import MissingDependency, ProbeError
from spile.inspection import label_errors


@pytest.fixture
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data[:600], data.target[:600]


def flipped(y, share, rng):
    """The labels with some replaced by another, and which."""
    rows = rng.choice(len(y), round(share * len(y)), replace=False)
    wrong = y.copy()
    wrong[rows] = (y[rows] + rng.integers(1, 10, len(rows))) % 10
    return wrong, rows


def test_planted_flips_are_found(make_store, digits, rng):
    x, y = digits
    wrong, rows = flipped(y, 0.05, rng)
    found = label_errors(make_store({"pixels": x}, labels=[f"digit {n}" for n in wrong]))
    hits = np.isin(found.rows, rows)
    assert hits.sum() >= 0.8 * len(rows)
    assert hits[: len(rows) // 2].mean() >= 0.9, "the least believed come first"
    assert (np.diff(found.confidence) >= 0).all()
    right = [int(label.split()[1]) == y[row] for label, row in zip(found.suggested, found.rows, strict=True)]
    assert np.mean(np.array(right)[hits]) > 0.8
    assert found.looked_at == 600 and found.given[0] == f"digit {wrong[found.rows[0]]}"
    assert found.ids[0] == f"s{found.rows[0]}"
    assert json.dumps(found.to_json())


def test_clean_labels_give_few(make_store, digits):
    x, y = digits
    assert len(label_errors(make_store({"pixels": x}, labels=y.tolist()))) < 12


def test_many_rows_are_streamed_to_the_same_end(make_store, digits, rng, monkeypatch):
    monkeypatch.setattr("spile.probing.task.STREAM_ROWS", 100)
    x, y = digits
    wrong, rows = flipped(y, 0.05, rng)
    found = label_errors(make_store({"pixels": x}, labels=wrong.tolist()), point="pixels")
    assert np.isin(rows, found.rows).mean() >= 0.65
    # As sure as it is right: without calibration the worst labels still have a tenth of the probability.
    assert found.confidence[:10].max() < 0.05


def test_a_copy_does_not_vouch_for_a_wrong_label(make_store, rng):
    # Every sample is there twice, with the same label; a tenth of the labels are wrong. Many features, so
    # that a copy in the training rows is remembered.
    y = np.arange(150) % 3
    x = rng.standard_normal((150, 300)) + 1.5 * np.eye(300)[y]
    wrong = y.copy()
    wrong[::10] = (y[::10] + 1) % 3
    store = make_store({"a": np.concatenate([x, x])}, labels=np.concatenate([wrong, wrong]).tolist())
    copies = store.near_duplicates()
    assert len(copies) == 150
    with_copies = label_errors(store, groups=copies.groups)
    alone = label_errors(store, point="a")
    planted = np.flatnonzero(np.concatenate([y, y]) != np.concatenate([wrong, wrong]))
    assert np.isin(planted, with_copies.rows).mean() > np.isin(planted, alone.rows).mean() + 0.3


def test_labels_of_all_splits_are_judged(make_store, digits, rng):
    x, y = digits
    wrong, _ = flipped(y, 0.05, rng)
    splits = ["train" if i % 3 else "test" for i in range(600)]
    found = label_errors(make_store({"pixels": x}, labels=wrong.tolist(), splits=splits))
    assert any(row % 3 == 0 for row in found.rows)
    labels = [None if i < 10 else int(n) for i, n in enumerate(wrong)]
    assert label_errors(make_store({"pixels": x}, labels=labels)).looked_at == 590


def test_what_cannot_be_judged_is_said(make_store, rng, monkeypatch):
    x = rng.standard_normal((40, 16))
    with pytest.raises(ProbeError, match="a regression"):
        label_errors(make_store({"a": x}, labels=rng.standard_normal(40).tolist()))
    with pytest.raises(ProbeError, match="no row of this store has a label"):
        label_errors(make_store({"a": x}))
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(MissingDependency, match=r"pip install 'spile\[cleanlab\]'"):
        label_errors(make_store({"a": x}, labels=[0, 1] * 20))
