"""What computing in less than float32 does to the score: the chosen model on both, same rows and folds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from spile.data import Source, Stream, select
from spile.extraction import extract
from spile.interfaces import Precision, Tap
from spile.preprocessing import Preprocessing
from spile.probing.features import Features
from spile.probing.result import ProbeResult
from spile.probing.scoring import evaluate, mean_and_error
from spile.store import Store

MOST_ROWS = 1000
"""So many training rows, evenly spread, are computed again in float32."""


@dataclass(frozen=True, kw_only=True)
class PrecisionChange:
    """Cross-validated scores of the chosen model on the same training rows and folds."""

    precision: Precision
    rows: int
    score: float
    """Of activations as they are in the store."""
    float32: float
    """Of activations computed in float32."""
    stderr: float
    """Of the difference, paired by fold."""

    def __str__(self) -> str:
        change = f"{self.score - self.float32:+.3f} ± {self.stderr:.3f}"
        return (
            f"{self.precision}: {self.score:.3f}, float32 {self.float32:.3f} on {self.rows:,} training rows "
            f"({change})"
        )


def compare_precisions(
    result: ProbeResult,
    precision: Precision,
    *,
    tap: Callable[[], Tap],
    source: Source | Stream,
    store: Store,
    preprocessing: Preprocessing | None,
) -> PrecisionChange | None:
    """Compute some training rows again in float32, and score the chosen model on both.

    `tap` makes one that has the points of the store. ``None`` for float32, and for data that cannot be read
    again by row.
    """
    if precision == "float32" or isinstance(source, Stream):
        return None
    task = result._task.thinned(MOST_ROWS)
    part = select(source, np.asarray(store.positions)[task.rows].tolist())
    with closing(tap()) as again:
        exact = extract(again, part, preprocessing=preprocessing, progress=False)
    candidate = result._candidates[result.best.point]
    here = evaluate(Features(store, task), candidate, task)
    alike = replace(task, rows=np.arange(len(task.rows)))
    there = evaluate(Features(exact, alike), candidate, alike)
    gains = np.subtract(here.fold_scores, there.fold_scores).tolist()
    return PrecisionChange(
        precision=precision,
        rows=len(task.rows),
        score=float(np.mean(here.fold_scores)),
        float32=float(np.mean(there.fold_scores)),
        stderr=mean_and_error(gains, task.n_folds)[1],
    )
