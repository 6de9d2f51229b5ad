"""What a search over points found: the table, the choice, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spile.errors import MissingDependency
from spile.probing.features import Candidate, Features, width
from spile.probing.heads import check_name
from spile.probing.ridge import RidgeFit
from spile.probing.scoring import fit_all
from spile.probing.task import Estimator, FeatureStore, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
    from rich.table import Table

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One point of the table, or several combined. A row without a score says in `note` why."""

    point: str
    points: tuple[str, ...] = ()
    """The points that are combined; empty for a single one."""
    address: str | None = None
    pool: str | None = None
    score: float | None = None
    """Mean over the folds of all repeats."""
    stderr: float | None = None
    """Standard error of `score`, corrected for overlapping training sets."""
    fold_scores: tuple[float, ...] = ()
    alpha: float | None = None
    """Median penalty over the folds; ridge only."""
    at_edge: bool = False
    """In at least half of the folds alpha was the smallest or largest tried."""
    dims: int | None = None
    """Features a row."""
    macs: int | None = None
    """Multiply-accumulates of one sample to reach the point."""
    params: int | None = None
    """Parameters up to the point."""
    order: int | None = None
    """Position in the forward pass."""
    baseline: str | None = None
    """``"raw"``, the input itself, and ``"tfidf"``, word counts, never chosen; ``"last"``, the last layer."""
    excluded: bool = False
    """Over a limit: scored, but not chosen."""
    note: str = ""


@dataclass(frozen=True)
class Nested:
    """The score of choosing itself: chosen inside the training rows of each fold, scored outside."""

    score: float
    stderr: float
    picks: tuple[str, ...]
    """The point chosen in each fold: all alike means a stable choice."""


@dataclass(frozen=True)
class Control:
    """The best score of the same search with the labels shuffled: what is reached without any skill."""

    score: float
    stderr: float
    point: str


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions of the best point for every row, each by a model that had not seen the row."""

    rows: Array
    """(n,) positions in the store."""
    true: Array
    predicted: Array
    probability: Array | None
    """(n,) the highest class probability, not calibrated; ``None`` where the estimator gives none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeResult:
    """Every point scored on the same folds; prints as a table.

    The score of `best` is optimistic, as it is the best of many; `nested` is not. `nested` is ``None`` where
    it was not asked for (by default above 500 rows, where the optimism is small beside the cost), and where
    the training rows of a fold are too few to be split again.
    """

    table: tuple[ProbeRow, ...]
    """The raw input first, then in the order of the forward pass."""
    best: ProbeRow
    metric: str
    rule: str
    combine: str
    classes: tuple[Any, ...] | None
    """The labels, sorted; ``None`` for regression."""
    folds: int
    repeats: int
    out_of_fold: OutOfFold
    nested: Nested | None
    control: Control | None
    _store: FeatureStore = field(repr=False)
    _task: Task = field(repr=False)
    _candidates: Mapping[str, Candidate] = field(repr=False)
    """What was scored, by the name of its row."""

    @property
    def n_rows(self) -> int:
        """The number of rows that were used."""
        return len(self.out_of_fold.rows)

    @property
    def several(self) -> bool:
        """Rows have any number of labels each."""
        return self._task.kind == "multilabel"

    @property
    def pareto(self) -> tuple[ProbeRow, ...]:
        """The rows that no other beats in both score and MACs, cheapest first. The raw input costs none."""
        return pareto(self.table)

    @property
    def points(self) -> tuple[str, ...]:
        """The points of `best`, whose features `fit` takes: prepared by `spile.probing.features.joined`."""
        return self.best.points or (self.best.point,)

    @property
    def unit_rows(self) -> bool:
        """Whether `best` is fitted on rows of length 1."""
        return self._task.unit_rows or len(self.points) > 1

    def fit(
        self,
        point: str | Sequence[str] | None = None,
        *,
        estimator: Estimator = None,
        calibrate: bool = False,
    ) -> Any:
        """Fit a point, or several combined, on all rows used: a `RidgeFit` or a scikit-learn pipeline.

        Args:
            point: A row of the table, fitted as it was scored, or several points side by side; by default the
                best. A fit of combined points takes the features of the row's ``points``.
            estimator: By default the one that was searched with; a name of `spile.probing.heads.NAMES` or a
                scikit-learn estimator. Features are read from the store again, nothing is extracted.
            calibrate: Make `predict_proba` honest: ridge gets a temperature from its exact leave-one-out
                values, others Platt's sigmoid from held-out parts of the rows.
        """
        estimator = self._task.estimator if estimator is None else estimator
        check_name(estimator, self._task.kind)
        candidate, points = self._candidate_of(self.best.point if point is None else point)
        if estimator != "ridge":  # which alone has a penalty for each layer
            candidate = Candidate(points)
        features = Features(self._store, self._task)
        fitted = fit_all(features, candidate, self._task, estimator=estimator, calibrate=calibrate)
        return _restricted(fitted, candidate.points, points, self._store) if candidate.banded else fitted

    def _candidate_of(self, point: str | Sequence[str]) -> tuple[Candidate, tuple[str, ...]]:
        """What is fitted, and the points that its fit has weights for."""
        if isinstance(point, str):
            combined = {row.point: row.points for row in self.table if row.points}
            if point in combined:
                return self._candidates[point], combined[point]
            point = (point,)
        return Candidate(tuple(point)), tuple(point)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict: the table, the choice, the nested estimate and the out-of-fold predictions."""
        held = self.out_of_fold
        return {
            "metric": self.metric,
            "rule": self.rule,
            "classes": None if self.classes is None else list(self.classes),
            "n_rows": self.n_rows,
            "folds": self.folds,
            "repeats": self.repeats,
            "table": [asdict(row) for row in self.table],
            "best": self.best.point,
            "pareto": [row.point for row in self.pareto],
            "nested": None if self.nested is None else asdict(self.nested),
            "control": None if self.control is None else asdict(self.control),
            "combine": self.combine,
            "unit_rows": self._task.unit_rows,
            "out_of_fold": {
                "rows": held.rows.tolist(),
                "true": held.true.tolist(),
                "predicted": held.predicted.tolist(),
                "probability": None if held.probability is None else held.probability.tolist(),
            },
        }

    def to_pandas(self) -> DataFrame:
        """The table as a data frame, one row a point."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingDependency("pandas", extra="data", purpose="ProbeResult.to_pandas()") from None
        return pd.DataFrame([asdict(row) for row in self.table])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw score against depth with standard errors, the raw input as a line; return the axes."""
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise MissingDependency("matplotlib", extra="data", purpose="ProbeResult.plot()") from None
        axes: Axes = plt.subplots()[1] if ax is None else ax
        names, scores, errors = [], [], []
        for row in self.table:
            if row.score is None:
                continue
            if row.baseline in ("raw", "tfidf") or row.points:
                axes.axhline(row.score, linestyle="--", color="grey", label=row.point)
                continue
            names.append(row.point)
            scores.append(row.score)
            errors.append(row.stderr or 0.0)
        axes.errorbar(range(len(names)), scores, yerr=errors, marker="o", capsize=3)
        if self.best.point in names:
            best = names.index(self.best.point)
            axes.plot(best, scores[best], "*", markersize=16, label=f"best: {self.best.point}")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_ylabel(_spaced(self.metric))
        axes.legend()
        return axes

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        repeated = f", {self.repeats} times" if self.repeats > 1 else ""
        table = Table(
            title=f"{self.folds}-fold cross-validation{repeated}, {self.n_rows:,} rows",
            caption=self._caption(),
        )
        table.add_column("point", overflow="fold")
        for heading in (_spaced(self.metric), "alpha", "features", "MACs"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for row in self.table:
            style = "bold" if row is self.best else "dim" if row.score is None else ""
            cells = (
                row.point,
                _score(row),
                _alpha(row),
                _count(row.dims),
                _count(row.macs),
                self._remark(row),
            )
            table.add_row(*map(Text, cells), style=style)
        return table

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        page = StringIO()
        Console(file=page, width=110, color_system=None).print(self)
        return page.getvalue().rstrip()

    def _remark(self, row: ProbeRow) -> str:
        baselines = {"raw": "raw input", "tfidf": "word counts", "last": "last layer"}
        parts = ["best" if row is self.best else "", baselines.get(row.baseline or "", ""), row.note]
        return ", ".join(filter(None, parts))

    def _caption(self) -> str:
        lines = ["score ± standard error"]
        if any(row.at_edge for row in self.table):
            lines.append("* the best alpha lies at the edge of the grid")
        if self.nested is not None:
            lines.append(f"choosing included (nested): {self.nested.score:.3f} ± {self.nested.stderr:.3f}")
        if self.control is not None:
            lines.append(f"with shuffled labels: {self.control.score:.3f} ± {self.control.stderr:.3f}")
        return "\n".join(lines)


def choose(rows: Sequence[ProbeRow], rule: str) -> ProbeRow:
    """The row to use: the best score, or (``"1se"``) the cheapest within one standard error of it.

    Equal scores go to the cheaper, then the earlier point. The raw input, word counts, rows without a score
    and those over a limit are passed over.
    """
    free = (row for row in rows if row.baseline not in ("raw", "tfidf") and not row.excluded)
    rows = [row for row in free if row.score is not None]
    best = min(rows, key=lambda row: (-round(row.score or 0.0, 9), _cost(row)))
    if rule == "best":
        return best
    near = [row for row in rows if (row.score or 0.0) >= (best.score or 0.0) - (best.stderr or 0.0)]
    return min(near, key=_cost)


def pareto(rows: Sequence[ProbeRow]) -> tuple[ProbeRow, ...]:
    """The rows of known score and cost that no other equals or beats in both, cheapest first."""
    known = [(0 if r.baseline == "raw" else r.macs, r.score, r) for r in rows]
    frontier: list[ProbeRow] = []
    highest = -np.inf
    for _, score, row in sorted(
        ((macs, score, row) for macs, score, row in known if macs is not None and score is not None),
        key=lambda item: (item[0], -item[1]),
    ):
        if score > highest:
            frontier.append(row)
            highest = score
    return tuple(frontier)


def _cost(row: ProbeRow) -> tuple[float, float]:
    return (
        np.inf if row.macs is None else float(row.macs),
        np.inf if row.order is None else float(row.order),
    )


def _restricted(fit: RidgeFit, points: Sequence[str], kept: Sequence[str], store: FeatureStore) -> RidgeFit:
    """The fit for the features of the points in `kept` alone; those of the others have no weight."""
    columns = np.concatenate([np.full(width(store.points[point]), point in kept) for point in points])
    return replace(fit, mean=fit.mean[columns], scale=fit.scale[columns], coef=fit.coef[columns])


def _spaced(name: str) -> str:
    return {"r2": "R²"}.get(name, name.replace("_", " "))


def _score(row: ProbeRow) -> str:
    return "–" if row.score is None else f"{row.score:.3f} ± {row.stderr or 0:.3f}"


def _alpha(row: ProbeRow) -> str:
    return "" if row.alpha is None else f"{row.alpha:.3g}{'*' if row.at_edge else ''}"


def _count(value: int | None) -> str:
    if value is None:
        return ""
    for size, unit in ((10**9, "G"), (10**6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,}"
