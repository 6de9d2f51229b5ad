"""Labels that look wrong: cleanlab on out-of-fold probabilities of a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spile.errors import MissingDependency, ProbeError
from spile.probing.features import Candidate, Features
from spile.probing.labels import values_of
from spile.probing.metrics import scorer_for
from spile.probing.ridge import find_temperature, probabilities
from spile.probing.scoring import evaluate, small_systems
from spile.probing.search import probe
from spile.probing.task import make_task
from spile.store import Store

if TYPE_CHECKING:
    from rich.table import Table

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelErrors:
    """Samples whose label a probe contradicts, the least believed label first."""

    point: str
    rows: Array
    """(m,) rows of the store."""
    ids: Array
    """(m,) strings."""
    given: Array
    """(m,) the labels there are."""
    suggested: Array
    """(m,) the labels that the probe takes for more likely."""
    confidence: Array
    """(m,) probability of the given label, by a probe that had not seen the sample."""
    looked_at: int
    """How many labelled samples were looked at."""

    def __len__(self) -> int:
        return len(self.rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        columns = ("rows", "ids", "given", "suggested", "confidence")
        return {
            "point": self.point,
            "looked_at": self.looked_at,
            **{name: getattr(self, name).tolist() for name in columns},
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"{len(self)} of {self.looked_at:,} labels look wrong, by {self.point}")
        for heading in ("sample", "label", "rather", "confidence in the label"):
            table.add_column(heading, overflow="fold")
        for line in zip(self.ids, self.given, self.suggested, self.confidence, strict=True):
            table.add_row(*map(Text, [*map(str, line[:3]), f"{line[3]:.3f}"]))
        return table


def label_errors(
    store: Store,
    *,
    point: str | None = None,
    rows: Sequence[int] | Array | None = None,
    groups: Sequence[Any] | Array | None = None,
    cv: int = 5,
    seed: int = 0,
) -> LabelErrors:
    """Find labels that are probably wrong, by confident learning (Northcutt et al. 2021; cleanlab).

    Every sample is judged by a ridge that had not seen it, nor the samples of its group. Labels of all splits
    are judged, since those of test rows may be wrong too; the point is chosen on training rows alone.

    Args:
        store: What `spile.extract` returned, with class labels.
        point: By default the best by `spile.probe`.
        rows: By default all that have a label.
        groups: One a row of the store, in place of its own: `Duplicates.groups` keeps copies of a sample
            from vouching for it.
        cv: Folds.
        seed: Of the folds.

    Raises:
        ProbeError: No class labels, or too few.
        MissingDependency: cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        raise MissingDependency("cleanlab", extra="cleanlab", purpose="label_errors") from None
    if rows is None:
        labels = values_of(store.labels, len(store))
        rows = [row for row, label in enumerate(labels) if label is not None and label == label] or None
    task = make_task(
        store,
        rows=rows,
        estimator="ridge",
        metric="auto",
        cv=cv,
        repeats=1,
        seed=seed,
        groups=groups,
        nested=False,
    )
    if task.kind != "classes" or task.classes is None:
        raise ProbeError(
            "label errors are looked for among classes, and these labels are numbers: a regression"
        )
    if point is None:
        point = probe(store, cv=cv, repeats=1, nested=False, seed=seed, groups=groups).best.point
    classes = task.classes
    task = replace(task, scorer=scorer_for("neg_log_loss", task.kind))
    with small_systems(len(task.rows)):
        chances = evaluate(Features(store, task), Candidate((point,)), task).answers
    if task.streams:
        chances = _calibrated(chances, task.y)
    found = find_label_issues(task.y, chances, return_indices_ranked_by="self_confidence", n_jobs=1)
    at = np.asarray(found, dtype=np.intp)
    return LabelErrors(
        point=point,
        rows=task.rows[at],
        ids=store.ids[task.rows[at]],
        given=classes[task.y[at]],
        suggested=classes[chances[at].argmax(axis=1)],
        confidence=chances[at, task.y[at]],
        looked_at=len(task.rows),
    )


def _calibrated(chances: Array, y: Array) -> Array:
    """Probabilities (n, c) sharpened or softened by one number, which fits from moments do not find."""
    values = np.log(np.maximum(chances, np.finfo(np.float64).tiny))
    member = np.where(y[:, None] == np.arange(chances.shape[1]), 1.0, -1.0)
    temperature = find_temperature(values, member, multilabel=False)
    return np.asarray(probabilities(values, temperature, multilabel=False))
