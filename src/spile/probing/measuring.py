"""The score on rows that took no part in choosing or fitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.probing.features import joined, stream_rows
from spile.probing.labels import truths
from spile.probing.result import ProbeResult
from spile.probing.rows import Split, labels_of
from spile.probing.task import Estimator, Task
from spile.probing.textual import POINT, as_array, fit_tfidf
from spile.store import Store

Array = npt.NDArray[Any]

_INTERVAL = 0.95


@dataclass(frozen=True)
class HeldOut:
    """Scores of one repetition on the rows that only measure; empty where there are none."""

    scores: Mapping[str, float]
    """By point, of the estimator that was searched with."""
    model: float | None
    """Of what was chosen, with the head that is saved."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Held-out scores with so many labels of every class: means over the seeds, half of a 95 % interval.

    The interval is Student's for the mean over seeds; ``None`` for one seed.
    """

    shots: int
    seeds: int
    chosen: float
    chosen_interval: float | None
    last: float | None = None
    last_interval: float | None = None
    raw: float | None = None
    raw_interval: float | None = None
    tfidf: float | None = None
    tfidf_interval: float | None = None

    def __str__(self) -> str:
        names = (("chosen", "chosen"), ("last layer", "last"), ("raw input", "raw"), ("tf-idf", "tfidf"))
        found = [(name, getattr(self, key), getattr(self, f"{key}_interval")) for name, key in names]
        texts = [
            f"{name} {mean:.3f}" + ("" if half is None else f" ± {half:.3f}")
            for name, mean, half in found
            if mean is not None
        ]
        return f"{self.shots} labels a class: {', '.join(texts)}"


def held_out_scores(
    store: Store,
    results: Sequence[ProbeResult],
    splits: Sequence[Split],
    *,
    head: Estimator = None,
    texts: Sequence[str] | None = None,
) -> list[HeldOut]:
    """The held-out score of each scored row of each repetition; reported, never used to choose.

    One pass over a column serves all repetitions.
    """
    scores: list[dict[str, float]] = [{} for _ in results]
    scored = (row for row in results[0].table if row.score is not None and not row.points)
    singles = [row.point for row in scored if row.baseline != "tfidf"]
    measured = [index for index, split in enumerate(splits) if len(split.test)]
    for point in singles:
        heads = {index: results[index].fit(point) for index in measured}
        for index, score in _measure(store, results, splits, (point,), heads).items():
            scores[index][point] = score
    models: dict[int, float | None] = {}
    for index in measured:
        result = results[index]
        if texts is not None:
            scores[index][POINT] = _tfidf_score(result, texts, store, splits[index])
        for row in (row for row in result.table if row.points):
            fits = {index: result.fit(row.point)}
            for score in _measure(store, results, splits, row.points, fits).values():
                scores[index][row.point] = score
        models[index] = scores[index].get(result.best.point)
        if head is not None:
            own = {index: result.fit(estimator=head)}
            models[index] = _measure(store, results, splits, result.points, own).get(index)
    return [HeldOut(found, models.get(index)) for index, found in enumerate(scores)]


def _tfidf_score(result: ProbeResult, texts: Sequence[str], store: Store, split: Split) -> float:
    task = result._task
    fit = fit_tfidf(as_array([texts[i] for i in task.rows]), task.targets, task)
    answers = task.scorer.answers(fit, as_array([texts[i] for i in split.test]), task.classes)
    true = truths(labels_of(store, split.test), task.kind, task.classes)
    return task.scorer.score(true, answers, task.classes)


def _measure(
    store: Store,
    results: Sequence[ProbeResult],
    splits: Sequence[Split],
    points: Sequence[str],
    heads: Mapping[int, Any],
) -> dict[int, float]:
    """Scores by repetition of `heads`, which take the features of `points`."""
    if not heads:
        return {}
    wanted = np.unique(np.concatenate([splits[index].test for index in heads]))
    answers: dict[int, list[Array]] = {index: [] for index in heads}
    tasks: dict[int, Task] = {index: results[index]._task for index in heads}
    for pieces in zip(*(stream_rows(store[point], wanted, point=point) for point in points), strict=True):
        X = joined([part for _, part in pieces], unit_rows=results[0]._task.unit_rows)
        for index, head in heads.items():
            mine = np.isin(wanted[pieces[0][0]], splits[index].test)
            if mine.any():
                answers[index].append(tasks[index].scorer.answers(head, X[mine], tasks[index].classes))
    found = {}
    for index, parts in answers.items():
        task = tasks[index]
        true = truths(labels_of(store, splits[index].test), task.kind, task.classes)
        if task.kind == "numbers" and len(true) < 2:
            continue  # R² of one row is not defined
        found[index] = task.scorer.score(true, np.concatenate(parts), task.classes)
    return found


def mean_scores(results: Sequence[ProbeResult], held_out: Sequence[HeldOut]) -> dict[str, float]:
    """Over the seeds, of ``"chosen"``, ``"last"``, ``"raw"``, ``"tfidf"``; what none measured is left out."""
    found = _by_kind(results, held_out)
    return {kind: float(np.mean(values)) for kind, values in found.items() if values}


def curve_of(
    draws: Sequence[tuple[int | None, int]], results: Sequence[ProbeResult], held_out: Sequence[HeldOut]
) -> tuple[CurvePoint, ...]:
    """One entry a number of labels, rising; none where only one number was asked for."""
    numbers = sorted({shots for shots, _ in draws if shots is not None})
    curve = []
    for shots in numbers if len(numbers) > 1 else ():
        at = [index for index, draw in enumerate(draws) if draw[0] == shots]
        found = _by_kind([results[i] for i in at], [held_out[i] for i in at])
        summary: dict[str, Any] = {}
        for kind, values in found.items():
            if values:
                summary |= {kind: float(np.mean(values)), f"{kind}_interval": _half_interval(values)}
        if "chosen" in summary:
            curve.append(CurvePoint(shots=shots, seeds=len(at), **summary))
    return tuple(curve)


def _by_kind(results: Sequence[ProbeResult], held_out: Sequence[HeldOut]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"chosen": [], "last": [], "raw": [], "tfidf": []}
    for result, measured in zip(results, held_out, strict=True):
        if measured.model is not None:
            found["chosen"].append(measured.model)
        for row in result.table:
            if row.baseline in found and row.point in measured.scores:
                found[row.baseline].append(measured.scores[row.point])
    return found


def _half_interval(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    from scipy.stats import t

    quantile = t.ppf(0.5 + _INTERVAL / 2, len(values) - 1)
    return float(quantile * np.std(values, ddof=1) / sqrt(len(values)))
