"""tf-idf beside the layers of a text model: the same folds, and nothing of the held-out texts."""

from __future__ import annotations

import numpy as np
import pytest

from spile.errors import ProbeError
from spile.probing import probe, textual


@pytest.fixture
def reviews(make_store):
    rng = np.random.default_rng(0)
    words = np.array(["a", "plot", "film", "with", "actors", "and", "scenes"])
    y = np.arange(60) % 2
    texts = [" ".join([*rng.choice(words, 6), ("dull", "bright")[label]]) for label in y]
    return make_store({"noise": rng.normal(size=(60, 4))}, np.array(["bad", "good"])[y]), texts


def test_word_counts_are_shown_and_never_chosen(reviews):
    store, texts = reviews
    result = probe(store, texts=texts, repeats=1, nested=False)
    row = next(row for row in result.table if row.baseline == "tfidf")
    assert row.score > 0.9
    assert result.best.point == "noise"
    assert "tf-idf" in str(result)
    with pytest.raises(ProbeError, match="texts has 2 entries, but the store has 60 rows"):
        probe(store, texts=texts[:2])


def test_the_vocabulary_is_that_of_the_training_texts(reviews, monkeypatch):
    store, texts = reviews
    fits = []
    original = textual.fit_tfidf
    monkeypatch.setattr(textual, "fit_tfidf", lambda *a: fits.append(original(*a)) or fits[-1])
    plan = probe(store, texts=texts, repeats=1, nested=False)._task
    before, fits[:] = list(fits), []
    wild = [f"zebra{i}" if plan.folds[0][i] == 0 else text for i, text in enumerate(texts)]
    probe(store, texts=wild, repeats=1, nested=False)
    assert before[0][0].vocabulary_ == fits[0][0].vocabulary_
    assert (before[0][0].idf_ == fits[0][0].idf_).all()
    assert before[1][0].vocabulary_ != fits[1][0].vocabulary_
