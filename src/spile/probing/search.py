"""Which layer to use: a cheap model on every point of a store, scored by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from spile.errors import ProbeError, nearest
from spile.probing.result import Nested, OutOfFold, ProbeResult, ProbeRow, choose
from spile.probing.scoring import (
    STREAM_FEATURES,
    Evaluation,
    evaluate,
    is_ragged,
    mean_and_error,
    small_systems,
    width,
)
from spile.probing.task import Estimator, FeatureStore, Metric, Point, Task, make_task

Array = npt.NDArray[Any]
Rule = Literal["best", "1se"]

_MISSING_BASELINES = (
    ("raw", "raw input", "not in this store; spile.transfer(model, data) adds it"),
    ("last", "last layer", "not in this store; tap it too: spile.tap(model, [..., -1])"),
)


def probe(
    store: FeatureStore,
    *,
    estimator: Estimator = "ridge",
    cv: int = 5,
    repeats: int | Literal["auto"] = "auto",
    combine: Literal["single"] = "single",
    rule: Rule = "best",
    rows: Sequence[int] | Array | None = None,
    seed: int = 0,
    metric: Metric | Literal["auto"] = "auto",
) -> ProbeResult:
    """Score every point of a store by cross-validation and choose one.

    Scaler, penalty and model are fitted on the training rows of each fold alone, and all points share the
    folds: stratified by class, rows of one group held out together. Labels that are all floats are regressed
    on; anything else is classified.

    Args:
        store: What `spile.extract` returned. Rows without a label (``None`` or NaN) are left out.
        estimator: ``"ridge"`` (standardised, alpha by exact leave-one-out; above 10,000 rows by K-fold from
            streamed moments) or a scikit-learn estimator, cloned for every fold behind a ``StandardScaler``.
        cv: Folds. Fewer, with a warning, where the largest class has fewer rows or there are fewer groups.
        repeats: How often the folds are drawn anew. ``"auto"``: ten times up to 100 rows, once from 1,000.
        combine: ``"single"``, one point at a time.
        rule: ``"best"``, or ``"1se"``: the fewest MACs within one standard error of the best.
        rows: Positions (or a mask) of the rows to use. By default those of the split ``"train"``; in a store
            without one, those without a split. Rows of other splits are never looked at.
        seed: Of the folds.
        metric: ``"accuracy"`` (what ``"auto"`` means for classes), ``"balanced_accuracy"``, or ``"r2"`` (for
            numbers).

    Raises:
        ProbeError: No labels, one class, a class with one row, an unknown option, or nothing to score.
    """
    _check_options(estimator=estimator, cv=cv, repeats=repeats, combine=combine, rule=rule, metric=metric)
    task = make_task(store, rows=rows, estimator=estimator, metric=metric, cv=cv, repeats=repeats, seed=seed)
    evaluations: dict[str, Evaluation] = {}
    table: list[ProbeRow] = []
    with small_systems(len(task.rows)):
        for name, point in store.points.items():
            row = _describe(name, point, task)
            if not row.note:
                evaluations[name] = evaluate(store[name], task, point=name)
                row = _scored(row, evaluations[name], task)
            table.append(row)
    if not any(row.score is not None and row.baseline != "raw" for row in table):
        reasons = "; ".join(f"{row.point}: {row.note}" for row in table if row.note) or "it holds none"
        raise ProbeError(
            f"the store has no layer that can be scored ({reasons}). Type: spile.extract(tap, data)"
        )
    best = choose(table, rule)
    return ProbeResult(
        table=_with_baselines(table),
        best=best,
        metric=task.metric,
        rule=rule,
        classes=None if task.classes is None else tuple(task.classes.tolist()),
        folds=task.n_folds,
        repeats=len(task.folds),
        out_of_fold=_out_of_fold(evaluations[best.point], task),
        nested=_nested(table, evaluations, task, rule),
        _store=store,
        _task=task,
    )


def _check_options(
    *, estimator: Estimator, cv: Any, repeats: Any, combine: Any, rule: Any, metric: Any
) -> None:
    named = isinstance(estimator, str)
    if (named and estimator != "ridge") or not (named or _is_instance_with_fit(estimator)):
        raise ProbeError(
            f"unknown estimator {estimator!r}. Type: estimator='ridge', or a scikit-learn estimator such as "
            "estimator=sklearn.svm.SVC()"
        )
    for option, value, allowed in (
        ("combine", combine, ("single",)),
        ("rule", rule, get_args(Rule)),
        ("metric", metric, ("auto", *get_args(Metric))),
    ):
        if value not in allowed:
            choices = ", ".join(map(repr, allowed))
            guess = nearest(str(value), allowed, n=1)[0]
            raise ProbeError(f"unknown {option} {value!r}. Allowed: {choices}. Type: {option}={guess!r}")
    if not isinstance(cv, int) or cv < 2:
        raise ProbeError(f"cv must be an integer of 2 or more, not {cv!r}. Type: cv=5")
    if repeats != "auto" and (not isinstance(repeats, int) or repeats < 1):
        raise ProbeError(
            f"repeats must be a positive integer or 'auto', not {repeats!r}. Type: repeats='auto'"
        )


def _is_instance_with_fit(estimator: Any) -> bool:
    return not isinstance(estimator, type) and all(
        hasattr(estimator, name) for name in ("fit", "predict", "get_params")
    )


def _describe(name: str, point: Point, task: Task) -> ProbeRow:
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


def _scored(row: ProbeRow, evaluation: Evaluation, task: Task) -> ProbeRow:
    score, stderr = mean_and_error(evaluation.fold_scores, task.n_folds)
    return replace(
        row,
        score=score,
        stderr=stderr,
        fold_scores=evaluation.fold_scores,
        alpha=evaluation.alpha,
        at_edge=evaluation.at_edge,
    )


def _with_baselines(table: list[ProbeRow]) -> tuple[ProbeRow, ...]:
    """The raw input first, then by depth; a baseline that is missing is a row that says how to get it."""
    present = {row.baseline for row in table}
    missing = [
        ProbeRow(point=name, baseline=kind, note=note)
        for kind, name, note in _MISSING_BASELINES
        if kind not in present
    ]
    depth = {"raw": -1.0, "last": np.inf}
    return tuple(
        sorted(
            table + missing,
            key=lambda row: depth.get(row.baseline or "", 0 if row.order is None else row.order),
        )
    )


def _nested(
    table: list[ProbeRow], evaluations: dict[str, Evaluation], task: Task, rule: str
) -> Nested | None:
    if not task.inner:
        return None
    scores, picks = [], []
    for fold in range(task.n_folds):
        seen = [
            replace(
                row, score=evaluations[row.point].inner[fold][0], stderr=evaluations[row.point].inner[fold][1]
            )
            for row in table
            if row.point in evaluations
        ]
        picks.append(choose(seen, rule).point)
        scores.append(evaluations[picks[-1]].fold_scores[fold])
    return Nested(*mean_and_error(scores, task.n_folds), tuple(picks))


def _out_of_fold(evaluation: Evaluation, task: Task) -> OutOfFold:
    true, predicted = task.y, evaluation.predicted
    if task.classes is not None:
        true, predicted = task.classes[true], task.classes[predicted]
    return OutOfFold(task.rows, true, predicted, evaluation.probability)
