"""Numbers and findings as text: what the headline, the page and its charts' text alternatives say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from math import isfinite

from spile.reporting.findings import Drift, Findings, Grid, Layer
from spile.reporting.record import Chart, Confusion, Neighbors, Precision, Row, Run, Training

NONE = "–"
"""Stands wherever there is no number."""

_THIN = "\u202f"


def is_share(metric: str) -> bool:
    """Whether a metric is a share between 0 and 1, to be shown in percent."""
    return metric.endswith("accuracy")


def score(value: float | None, metric: str) -> str:
    """``0.8114`` → ``81.1 %`` for an accuracy, ``0.811`` for any other metric."""
    if value is None or not isfinite(value):
        return NONE
    return f"{100 * value:.1f}{_THIN}%" if is_share(metric) else _minus(f"{value:.3f}")


def percent(share: float) -> str:
    """A round share for an axis: ``0.6`` → ``60 %``."""
    return f"{100 * share:.3g}{_THIN}%"


def spread(value: float | None, metric: str) -> str:
    """A standard error, in the unit of `score` and without repeating it."""
    if value is None or not isfinite(value):
        return ""
    return f"±{_THIN}{100 * value:.1f}" if is_share(metric) else f"±{_THIN}{value:.3f}"


def count(value: int | None) -> str:
    """``12345`` → ``12,345``."""
    return NONE if value is None else f"{value:,}"


def magnitude(value: float | None) -> str:
    """``92300000`` → ``92.3 M``: three digits and a power of a thousand."""
    if value is None or not isfinite(value):
        return NONE
    for power, suffix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return (
                f"{value / 10**power:.3g}{_THIN}{suffix}"
                if abs(value) < 10 ** (power + 3)
                else f"{value:.3g}"
            )
    return f"{value:.3g}"


def plain(value: float | None, digits: int = 3) -> str:
    """A bare number to three digits: ``1e-07``, ``0.5``, ``10,000``."""
    if value is None or not isfinite(value):
        return NONE
    rounded = float(f"{value:.{digits}g}")
    exponent = rounded != 0 and not 1e-3 <= abs(rounded) < 1e6
    return _minus(f"{rounded:.3g}" if exponent else f"{rounded:,}".removesuffix(".0"))


def duration(seconds: float) -> str:
    """``0.034`` → ``34 ms``, ``12.41`` → ``12.4 s``, ``83`` → ``1 min 23 s``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f}{_THIN}ms"
    if seconds < 60:
        return f"{seconds:.1f}{_THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}{_THIN}h {minutes % 60}{_THIN}min"
        if minutes >= 60
        else f"{minutes}{_THIN}min {rest}{_THIN}s"
    )


def moment(stamp: str) -> str:
    """An ISO time as ``17 November 2026, 14:03``; anything else as it is."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{when.day} {when:%B %Y, %H:%M}"


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the numbers among `values`; ``None`` if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def label(value: object) -> str:
    """A class label as text."""
    return NONE if value is None else str(value)


def _minus(number: str) -> str:
    return f"−{number[1:]}" if number.startswith("-") else number


def baseline_name(row: Row) -> str:
    """How a baseline is called in a sentence."""
    return "the last layer" if row.baseline == "last" else row.point


def verdict(run: Run) -> str:
    """One sentence: what was picked, how good it is, and how far from the last layer and the raw input.

    Held-out scores speak where the run has them, cross-validated ones otherwise; the two are never mixed.
    """
    if run.comparison is not None:
        return run.comparison.verdict
    if run.findings is not None:
        return _diagnosed(run.findings)
    if run.training is not None:
        return _trained(run.training, run)
    if run.pick is None:
        return f"{len(run.table)} points compared, none picked."
    held_out = _speaks_held_out(run)
    value = _spoken_score(run, run.pick, held_out)
    total = run.chosen.test_total if run.chosen else None
    if held_out and total and is_share(run.metric):
        claim = f"gets {score(value, run.metric)} of {count(total)} held-out samples right"
    else:
        where = "on held-out samples" if held_out else "in cross-validation"
        claim = f"scores {score(value, run.metric)} {where}"
    name = f"{run.pick.point}, the last layer," if run.pick.baseline == "last" else run.pick.point
    others = [
        row for row in (run.baseline("last"), run.baseline("raw")) if row is not None and row is not run.pick
    ]
    gaps = [_gap(value, _spoken_score(run, row, held_out), baseline_name(row), run.metric) for row in others]
    stated = " and ".join(gap for gap in gaps if gap)
    return f"{name} {claim}{': ' if stated else ''}{stated}."


def _trained(training: Training, run: Run) -> str:
    rows = run.data.test_rows if run.data else None
    epochs = len(training.epochs) if training.best is None else training.best + 1
    after = f"after {count(epochs)} epoch{'s' if epochs > 1 else ''}"
    heads = f", trained with {_listed('head', training.heads)}" if training.heads else ""
    if training.score is None or not rows:
        return f"Trained, nothing held out to measure on, {after}{heads}."
    return f"{score(training.score, run.metric)} of {count(rows)} held-out samples right {after}{heads}."


def _listed(noun: str, names: Sequence[str]) -> str:
    shown = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{noun}{'s' if len(names) > 1 else ''} on {shown}" if len(names) <= 4 else f"{len(names)} {noun}s"


def chart_words(chart: Chart) -> str:
    """The text alternative of a chart over epochs: where every line starts and ends."""
    parts = []
    for line in chart.lines:
        known = [value for value in line.values if value is not None]
        if known:
            ends = [score(v, "accuracy") if chart.share else plain(v) for v in (known[0], known[-1])]
            parts.append(f"{line.name} {ends[0]} to {ends[1]}")
    return f"Line chart of {chart.title.lower()} over epochs: {', '.join(parts)}."


def signed(value: float, metric: str) -> str:
    """A difference with its sign, in percentage points for a share."""
    text = f"{100 * abs(value):.1f}" if is_share(metric) else f"{abs(value):.3f}"
    return f"{'−' if value < 0 else '+'}{text}"


def spoken_scores(run: Run) -> list[tuple[Row, float | None]]:
    """The rows that the headline compares, chosen first, with the scores that it states."""
    rows = [run.pick, run.baseline("last"), run.baseline("raw")]
    distinct = [row for i, row in enumerate(rows) if row is not None and row not in rows[:i]]
    return [(row, _spoken_score(run, row, _speaks_held_out(run))) for row in distinct]


def _speaks_held_out(run: Run) -> bool:
    return run.pick is not None and _spoken_score(run, run.pick, held_out=True) is not None


def _spoken_score(run: Run, row: Row, held_out: bool) -> float | None:
    if not held_out:
        return row.score
    if row is run.pick and run.chosen is not None and run.chosen.test_score is not None:
        return run.chosen.test_score
    return row.test_score


def _gap(value: float | None, other: float | None, name: str, metric: str) -> str:
    if value is None or other is None:
        return ""
    scale, unit, digits = (100, " points", 1) if is_share(metric) else (1, "", 3)
    difference = round(scale * (value - other), digits)
    if difference == 0:
        return f"level with {name} ({score(other, metric)})"
    side = "above" if difference > 0 else "below"
    return f"{abs(difference):.{digits}f}{unit} {side} {name} ({score(other, metric)})"


def _scored(row: Row, metric: str) -> str:
    return f"{row.point} {score(row.score, metric)} {spread(row.stderr, metric)}".strip()


def _reference_words(run: Run) -> str:
    rows = [
        row
        for row in (run.baseline("last"), run.baseline("raw"))
        if row is not None and row.score is not None
    ]
    parts = [f"{baseline_name(row)} {score(row.score, run.metric)}" for row in rows]
    return f" Baselines: {', '.join(parts)}." if parts else ""


def curve_words(run: Run) -> str:
    """The text alternative of the layer curve: every score, the pick and the baselines."""
    parts = ", ".join(_scored(row, run.metric) for row in run.by_depth)
    pick = f" Chosen: {_scored(run.pick, run.metric)}." if run.pick else ""
    return (
        f"Line chart of cross-validated {run.metric} by depth, shallow to deep: {parts}."
        f"{pick}{_reference_words(run)}"
    )


def cost_words(run: Run) -> str:
    """The text alternative of the accuracy/cost chart: the frontier, the pick and the baselines."""
    frontier = sorted((row for row in run.table if row.pareto and row.macs), key=lambda row: row.macs or 0)
    parts = ", ".join(f"{_scored(row, run.metric)} at {magnitude(row.macs)} MACs" for row in frontier)
    best = f" Best at their cost: {parts}." if parts else ""
    pick = f" Chosen: {_scored(run.pick, run.metric)} at {magnitude(run.pick.macs)} MACs." if run.pick else ""
    title = f"Scatter chart of cross-validated {run.metric} against cost in MACs."
    return f"{title}{best}{pick}{_reference_words(run)}"


def precision_words(change: Precision, metric: str) -> str:
    """What computing in less than float32 did to the score."""
    error = "" if change.stderr is None else f" {spread(change.stderr, metric)}"
    return (
        f"Computed in {change.precision}: {score(change.score, metric)} {metric} by cross-validation on "
        f"{count(change.rows)} training rows, {score(change.float32, metric)} in float32 "
        f"({signed(change.score - change.float32, metric)}{error})."
    )


def confusion_words(confusion: Confusion) -> str:
    """How many are right, and the pair that is mixed up most."""
    total = sum(map(sum, confusion.matrix))
    right = sum(row[i] for i, row in enumerate(confusion.matrix))
    words = f"{count(right)} of {count(total)} {confusion.split} samples are right."
    pairs = confused_pairs(confusion, limit=1)
    if pairs:
        true, predicted, times, _ = pairs[0]
        words += f" Most often mixed up: {true} taken for {predicted} ({count(times)} times)."
    return words


def confused_pairs(confusion: Confusion, *, limit: int) -> list[tuple[str, str, int, float]]:
    """The most frequent errors: true label, predicted label, count, share of the true label's samples."""
    pairs = [
        (label(confusion.labels[i]), label(confusion.labels[j]), n, n / sum(row))
        for i, row in enumerate(confusion.matrix)
        for j, n in enumerate(row)
        if i != j and n > 0
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:limit]


def neighbor_words(queries: tuple[Neighbors, ...]) -> str:
    """How many neighbours share their query's label."""
    pairs = [(near.label, each.query.label) for each in queries for near in each.neighbors]
    same = sum(label(a) == label(b) for a, b in pairs)
    return f"{count(same)} of {count(len(pairs))} neighbors have their query's label."


def grid_words(grid: Grid) -> str:
    """The text alternative of a grid: its size, and the most and least alike of different names."""
    known = [
        (value, row, column)
        for row, line in zip(grid.rows, grid.values, strict=True)
        for column, value in zip(grid.columns, line, strict=True)
        if value is not None and row != column
    ]
    title = f"{grid.title}, {len(grid.rows)} by {len(grid.columns)}."
    if not known:
        return title
    (high, a, b), (low, c, d) = max(known), min(known)
    return f"{title} Most alike: {a} and {b}, {plain(high)}. Least: {c} and {d}, {plain(low)}."


def rank_words(layers: Sequence[Layer]) -> str:
    """The text alternative of the chart of effective ranks."""
    parts = [f"{layer.point} {plain(layer.effective_rank)} of {count(layer.dims)}" for layer in layers]
    return f"Line chart of effective rank by depth: {', '.join(parts)}."


def drift_words(drift: Drift) -> str:
    """The text alternative of the chart of drift by depth."""
    parts = [f"{row.point} {plain(row.coefficient)} (p {plain(row.p_value)})" for row in drift.table]
    return f"Line chart of the energy coefficient by depth: {', '.join(parts)}."


def drift_verdict(drift: Drift) -> str:
    """Whether the samples changed, at the usual level of 5 %."""
    shown = f"p = {plain(drift.p_value)} over {count(len(drift.table))} points"
    if drift.p_value < 0.05:
        return f"The samples have drifted ({shown}), most at {drift.strongest}."
    return f"No drift is shown ({shown})."


def _diagnosed(findings: Findings) -> str:
    """The headline of a diagnosis: what is wrong with the samples."""
    parts = []
    wrong, copies, drift = findings.wrong_labels, findings.duplicates, findings.drift
    if wrong is not None:
        parts.append(f"{count(wrong.total)} of {count(wrong.looked_at)} labels look wrong")
    if copies is not None:
        across = f", {count(copies.leaked)} of them across splits" if copies.leaked else ""
        parts.append(f"{count(copies.samples)} samples have a near-duplicate{across}")
    if drift is not None:
        parts.append("the samples have drifted" if drift.p_value < 0.05 else "no drift is shown")
    stated = "; ".join(parts) or "layers compared"
    return f"{count(findings.samples)} samples: {stated}."
