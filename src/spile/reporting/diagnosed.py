"""The charts of a diagnosis: grids of similarity, effective rank and drift by depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from markupsafe import Markup

from spile.reporting import heat, svg, words
from spile.reporting.findings import Drift, Findings, Layer

Drawn = list[Markup]
_PLAIN = svg.Scores(text=words.plain, tick=words.plain)


def charts(findings: Findings | None, widths: tuple[int, ...]) -> dict[str, object]:
    """What the template draws: ``grids``, ``ranks`` and ``drifts``, at each of the widths."""
    if findings is None:
        return {"grids": [], "ranks": [], "drifts": []}
    return {
        "grids": [(grid, _at(widths, partial(heat.draw, grid))) for grid in findings.grids],
        "ranks": _at(widths, partial(_ranks, findings.layers)) if _placed(findings.layers) else [],
        "drifts": _at(widths, partial(_drift, findings.drift)) if findings.drift else [],
    }


def _at(widths: tuple[int, ...], draw: Callable[..., Markup]) -> Drawn:
    return [draw(width=width) for width in widths]


def _placed(layers: tuple[Layer, ...]) -> list[Layer]:
    """Those with a place in the network and a rank, shallow to deep."""
    known = [(layer.order, layer) for layer in layers if layer.order is not None and layer.effective_rank]
    return [layer for _, layer in sorted(known, key=lambda pair: pair[0])]


def _ranks(layers: tuple[Layer, ...], *, width: int) -> Markup:
    placed = _placed(layers)
    dots = [svg.Dot(name=layer.point, x=i, y=layer.effective_rank or 0.0) for i, layer in enumerate(placed)]
    return svg.curve(dots, [], scores=_PLAIN, width=width, label=words.rank_words(placed))


def _drift(drift: Drift, *, width: int) -> Markup:
    rows = sorted(drift.table, key=lambda row: -1 if row.order is None else row.order)
    dots = [
        svg.Dot(name=row.point, x=i, y=row.coefficient, second=row.expected) for i, row in enumerate(rows)
    ]
    return svg.curve(dots, [], scores=_PLAIN, width=width, label=words.drift_words(drift))
