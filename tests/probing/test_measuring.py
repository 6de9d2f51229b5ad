"""Held-out scores are those of what the table scored."""

from __future__ import annotations

import numpy as np

from spile.probing import probe
from spile.probing.features import Candidate, Features, joined
from spile.probing.measuring import held_out_scores
from spile.probing.rows import Split
from spile.probing.scoring import fit_all


def test_a_banded_row_that_is_not_the_best_is_measured_with_its_own_penalties(make_store):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 200)
    points = {name: rng.normal(size=(200, width)) for name, width in (("a", 20), ("b", 20), ("noise", 40))}
    for name, strength in (("a", 0.5), ("b", 0.3)):
        points[name] += strength * rng.normal(size=(3, 20))[y]
    store, train, test = make_store(points, y), np.arange(100), np.arange(100, 200)
    result = probe(store, combine="banded", rows=train, nested=False, repeats=1, rule="1se")
    row = next(row for row in result.table if row.points)
    assert row is not result.best

    (held_out,) = held_out_scores(store, [result], [Split(train, test)])

    banded = Candidate(tuple(points), banded=True)
    fit = fit_all(Features(store, result._task), banded, result._task, calibrate=False)
    expected = (fit.predict(joined([values[test] for values in points.values()])) == y[test]).mean()
    plain = result.fit(row.points).predict(joined([points[name][test] for name in row.points]))
    assert held_out.scores[row.point] == expected != (plain == y[test]).mean()
