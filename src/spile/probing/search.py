"""Which layer to use: a cheap model on every point of a store, scored by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError, nearest
from spile.probing.combining import Combine, Scored, search
from spile.probing.features import Candidate, Features, is_ragged, width
from spile.probing.heads import check_name
from spile.probing.leaks import warn_of_folds
from spile.probing.metrics import Metric
from spile.probing.result import Control, Nested, OutOfFold, ProbeResult, ProbeRow, choose
from spile.probing.scoring import fit_all, mean_and_error, score_outside, small_systems
from spile.probing.streaming import STREAM_FEATURES
from spile.probing.task import Estimator, FeatureStore, Point, Task, make_task
from spile.probing.textual import POINT, tfidf_row

Array = npt.NDArray[Any]
Rule = Literal["best", "1se"]

_MISSING_BASELINES = (
    ("raw", "raw input", "not in this store; spile.transfer(model, data) adds it"),
    ("tfidf", POINT, "word counts; spile.probe(store, texts=[...]) or spile.transfer(model, data) adds it"),
    ("last", "last layer", "not in this store; tap it too: spile.tap(model, [..., -1])"),
)


@dataclass(frozen=True)
class Limits:
    """What a model may cost: multiply-accumulates a sample, parameters, bytes of float32 weights."""

    macs: int | None = None
    params: int | None = None
    bytes: int | None = None

    def exceeded(self, row: ProbeRow, outputs: int) -> str:
        """What of the row is over a limit, in words; empty where nothing is."""
        weights = None if row.params is None else row.params + (row.dims or 0) * outputs
        costs = (
            ("max_macs", row.macs, self.macs),
            ("max_params", weights, self.params),
            ("max_bytes", None if weights is None else 4 * weights, self.bytes),
        )
        over = [
            f"{name}={limit:,}" for name, cost, limit in costs if limit is not None and (cost or 0) > limit
        ]
        return f"over {', '.join(over)}" if over else ""


def probe(
    store: FeatureStore,
    *,
    estimator: Estimator = "ridge",
    cv: int = 5,
    repeats: int | Literal["auto"] = "auto",
    combine: Combine = "single",
    rule: Rule = "best",
    rows: Sequence[int] | Array | None = None,
    labels: Sequence[Any] | Array | None = None,
    groups: Sequence[Any] | Array | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    metric: Metric = "auto",
    max_macs: int | None = None,
    max_params: int | None = None,
    max_bytes: int | None = None,
    nested: bool | Literal["auto"] = "auto",
    control: bool = False,
    unit_rows: bool = False,
) -> ProbeResult:
    """Score every point of a store by cross-validation and choose one, or a combination.

    Scaler, penalty and model are fitted on the training rows of each fold alone, and all points share the
    folds: stratified by class, rows of one group held out together. Labels that are all floats are regressed
    on; sets of names, or rows of 0 and 1, are several labels a row; anything else is classified.

    Args:
        store: What `spile.extract` returned. Rows without a label (``None`` or NaN) are left out.
        estimator: ``"ridge"`` (standardised, alpha by exact leave-one-out; above 10,000 rows by K-fold from
            streamed moments), another name of `spile.probing.heads.NAMES`, or a scikit-learn estimator,
            cloned for every fold behind a ``StandardScaler``.
        cv: Folds. Fewer, with a warning, where the largest class has fewer rows or there are fewer groups.
        repeats: How often the folds are drawn anew. ``"auto"``: ten times up to 100 rows, once from 1,000.
        combine: ``"single"``, one point at a time; ``"greedy"``, also the best one with further points added
            while each gains more than its standard error; ``"banded"``, also all points with a penalty each
            (ridge only; above 10,000 rows see `spile.probing.streaming`). The rows of combined points are
            scaled to length 1.
        rule: ``"best"``, or ``"1se"``: the fewest MACs within one standard error of the best.
        rows: Positions (or a mask) of the rows to use. By default those of the split ``"train"``; in a store
            without one, those without a split. Rows of other splits are never looked at.
        labels: One a row of the store, in place of the store's own.
        groups: Likewise; rows of one are held out together. ``store.near_duplicates().groups`` keeps copies
            of a sample on one side; near-duplicates across folds are warned of.
        texts: One a row of the store: a tf-idf classifier on the same folds is shown beside the layers.
        seed: Of the folds.
        metric: ``"accuracy"`` (what ``"auto"`` means for classes), ``"balanced_accuracy"``, ``"roc_auc"``,
            ``"neg_log_loss"``; ``"average_precision"`` (``"auto"`` for several labels a row); ``"r2"`` (for
            numbers); or a function of true and predicted labels. Higher is better.
        max_macs: Points that cost more multiply-accumulates a sample are scored but not chosen.
        max_params: Likewise of parameters, those of the fitted model included.
        max_bytes: Likewise of the size of the weights as float32.
        nested: Whether to estimate what choosing itself scores: the whole search again in the training rows
            of each fold. ``"auto"``: up to 500 rows.
        control: Search again with the labels shuffled; what then scores above chance is no skill.
        unit_rows: Divide each row of single points by its length too, before they are standardised.

    Raises:
        ProbeError: No labels, one class, a class with one row, an unknown option, or nothing to score.
    """
    _check_options(estimator=estimator, cv=cv, repeats=repeats, combine=combine, rule=rule)
    task = make_task(
        store,
        rows=rows,
        estimator=estimator,
        metric=metric,
        cv=cv,
        repeats=repeats,
        seed=seed,
        labels=labels,
        groups=groups,
        nested=nested,
        unit_rows=unit_rows,
    )
    check_name(estimator, task.kind)
    limits = Limits(max_macs, max_params, max_bytes)
    plan = _Plan(store, task, combine, rule, limits)
    with small_systems(len(task.rows)):
        plan.look_for_leaks()
        found, table = plan.run(task)
        best = choose(table, rule)
        if texts is not None:
            table.append(tfidf_row(texts, task, rows=len(store)))
        return ProbeResult(
            table=_with_baselines(table, of_texts=_of_texts(store)),
            best=best,
            metric=task.scorer.name,
            rule=rule,
            combine=combine,
            classes=None if task.classes is None else tuple(task.classes.tolist()),
            folds=task.n_folds,
            repeats=len(task.folds),
            out_of_fold=_out_of_fold(found[best.point], task),
            nested=plan.nested() if task.inner else None,
            control=plan.control(seed) if control else None,
            _store=store,
            _task=task,
            _candidates={name: scored.candidate for name, scored in found.items()},
        )


class _Plan:
    """One search, to be run on all rows, inside the training rows of each fold, and on shuffled labels."""

    def __init__(self, store: FeatureStore, task: Task, combine: Combine, rule: Rule, limits: Limits) -> None:
        self._store, self._task, self._combine, self._rule = store, task, combine, rule
        self._features = Features(store, task)
        outputs = 1 if task.classes is None else len(task.classes)
        self._rows = {name: _described(name, point, task) for name, point in store.points.items()}
        self._excluded = {name: limits.exceeded(row, outputs) for name, row in self._rows.items()}
        self._limits, self._outputs = limits, outputs
        free = [n for n, row in self._rows.items() if not row.note and row.baseline != "raw"]
        if not free:
            reasons = "; ".join(f"{row.point}: {row.note}" for row in self._rows.values() if row.note)
            raise ProbeError(
                f"the store has no layer that can be scored ({reasons or 'it holds none'}). "
                "Type: spile.extract(tap, data)"
            )
        self._allowed = [name for name in free if not self._excluded[name]]
        if not self._allowed:
            cheapest = min(free, key=lambda name: self._rows[name].macs or 0)
            raise ProbeError(f"no layer is within the limits: {cheapest} is {self._excluded[cheapest]}")

    def look_for_leaks(self) -> None:
        """Warn of near-duplicates across folds."""
        warn_of_folds(self._store, self._features, self._task)

    def run(self, task: Task) -> tuple[dict[str, Scored], list[ProbeRow]]:
        """Everything scored, by name, and the table."""
        widths = {name: row.dims or 0 for name, row in self._rows.items()}
        rest = [n for n, row in self._rows.items() if not row.note and n not in self._allowed]
        scored = search(self._features, self._allowed, task, combine=self._combine, widths=widths)
        scored += search(self._features, rest, task, combine="single", widths=widths)
        found: dict[str, Scored] = {}
        table = [row for row in self._rows.values() if row.note]
        for one in scored:
            row = self._row(one, task)
            if row.point in found or (one.candidate.banded and row.excluded):
                continue  # all weight on one layer: that is the single point, scored already
            found[row.point] = one
            table.append(row)
        return found, table

    def _row(self, one: Scored, task: Task) -> ProbeRow:
        points = one.candidate.points
        if one.candidate.banded:
            points = used_points(self._features, one.candidate, task, self._rows)
        row = self._rows[points[0]]
        if len(points) > 1:
            name = f"banded, {len(points)} layers" if one.candidate.banded else " + ".join(points)
            row = _combined(name, [self._rows[point] for point in points])
        over = self._excluded.get(row.point) or self._limits.exceeded(row, self._outputs)
        score, stderr = mean_and_error(one.evaluation.fold_scores, task.n_folds)
        return replace(
            row,
            note=", ".join(filter(None, (row.note, over))),
            excluded=bool(over),
            score=score,
            stderr=stderr,
            fold_scores=one.evaluation.fold_scores,
            alpha=one.evaluation.alpha,
            at_edge=one.evaluation.at_edge,
        )

    def nested(self) -> Nested:
        """The search inside the training rows of each fold, what it picks scored outside."""
        scores, picks = [], []
        for fold in range(self._task.n_folds):
            inside = self._task.inside(fold)
            found, table = self.run(inside)
            picks.append(choose(table, self._rule).point)
            scores.append(score_outside(self._features, found[picks[-1]].candidate, self._task, fold))
        return Nested(*mean_and_error(scores, self._task.n_folds), tuple(picks))

    def control(self, seed: int) -> Control:
        """The search with shuffled labels."""
        shuffled = np.random.default_rng(seed).permutation(len(self._task.y))
        _, table = self.run(replace(self._task, y=self._task.y[shuffled], inner=()))
        best = choose(table, self._rule)
        return Control(best.score or 0.0, best.stderr or 0.0, best.point)


def used_points(
    features: Features, candidate: Candidate, task: Task, rows: Mapping[str, ProbeRow]
) -> tuple[str, ...]:
    """The points of a banded candidate that have weight when it is fitted on all rows."""
    fit = fit_all(features, candidate, task, calibrate=False)
    used, start = [], 0
    for point in candidate.points:
        stop = start + (rows[point].dims or 0)
        if np.any(fit.coef[start:stop]):
            used.append(point)
        start = stop
    return tuple(used) or candidate.points[:1]


def _check_options(*, estimator: Estimator, cv: Any, repeats: Any, combine: Any, rule: Any) -> None:
    check_name(estimator)
    for option, value, allowed in (
        ("combine", combine, get_args(Combine)),
        ("rule", rule, get_args(Rule)),
    ):
        if value not in allowed:
            choices = ", ".join(map(repr, allowed))
            guess = nearest(str(value), allowed, n=1)[0]
            raise ProbeError(f"unknown {option} {value!r}. Allowed: {choices}. Type: {option}={guess!r}")
    if combine == "banded" and estimator != "ridge":
        raise ProbeError(
            "combine='banded' is a ridge with a penalty for each layer. Type: estimator='ridge', and refit "
            "with result.fit(estimator='svm')"
        )
    if not isinstance(cv, int) or cv < 2:
        raise ProbeError(f"cv must be an integer of 2 or more, not {cv!r}. Type: cv=5")
    if repeats != "auto" and (not isinstance(repeats, int) or repeats < 1):
        raise ProbeError(
            f"repeats must be a positive integer or 'auto', not {repeats!r}. Type: repeats='auto'"
        )


def _described(name: str, point: Point, task: Task) -> ProbeRow:
    info = point.info
    note = ""
    if is_ragged(point):
        note = "rows differ in length; extract it with a pool"
    elif task.streams and width(point) > STREAM_FEATURES:
        note = f"more than {STREAM_FEATURES:,} features for this many rows; extract it with pool='avg'"
    return ProbeRow(
        point=name,
        dims=None if is_ragged(point) else width(point),
        note=note,
        address=info.get("address"),
        pool=info.get("pool"),
        macs=info.get("macs"),
        params=info.get("params"),
        order=info.get("order"),
        baseline=info.get("baseline"),
    )


def _combined(name: str, rows: Sequence[ProbeRow]) -> ProbeRow:
    """Points that are combined cost what the deepest of them does."""
    macs = [row.macs for row in rows if row.macs is not None]
    params = [row.params for row in rows if row.params is not None]
    return ProbeRow(
        point=name,
        points=tuple(row.point for row in rows),
        dims=sum(row.dims or 0 for row in rows),
        macs=max(macs) if len(macs) == len(rows) else None,
        params=max(params) if len(params) == len(rows) else None,
    )


def _of_texts(store: FeatureStore) -> bool:
    manifest = getattr(store, "manifest", None)
    return manifest is not None and manifest.recorded.get("kind") == "text"


def _with_baselines(table: list[ProbeRow], *, of_texts: bool) -> tuple[ProbeRow, ...]:
    """The raw input first, then by depth, then what is combined; a missing baseline says how to get it."""
    present = {row.baseline for row in table}
    other = "raw" if of_texts or "tfidf" in present else "tfidf"
    missing = [
        ProbeRow(point=name, baseline=kind, note=note)
        for kind, name, note in _MISSING_BASELINES
        if kind not in present and kind != other
    ]

    def depth(row: ProbeRow) -> tuple[int, float]:
        if row.baseline in ("raw", "tfidf"):
            return 0, 0.0
        return (3 if row.points else 2 if row.baseline == "last" else 1), row.order or 0.0

    return tuple(sorted(table + missing, key=depth))


def _out_of_fold(scored: Scored, task: Task) -> OutOfFold:
    evaluation = scored.evaluation
    true, predicted = task.y, evaluation.predicted
    if task.kind == "classes" and task.classes is not None:
        true, predicted = task.classes[true], task.classes[predicted]
    return OutOfFold(task.rows, true, predicted, evaluation.probability)
