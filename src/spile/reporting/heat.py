"""A grid of numbers as inline SVG: a cell a number, darker for more, its rows and columns named."""

from __future__ import annotations

from math import ceil

from markupsafe import Markup

from spile.reporting import svg, words
from spile.reporting.findings import Grid

_LARGEST = 46
"""Pixels of a cell's side."""
_WITH_TEXT = 28
"""From this side on a cell shows its number; below, hovering tells."""
_WITH_NAMES = 900
"""Up to this many cells tell their names; more are drawn level by level, which keeps the page small."""
_LEVELS = 24


def draw(grid: Grid, *, width: int) -> Markup:
    """One grid of values between 0 and 1; what lies outside is drawn as the nearer end."""
    longest = 12 if width < 480 else 20
    rows, columns = ([svg.shorten(name, longest) for name in names] for names in (grid.rows, grid.columns))
    left, below = 14 + 6.6 * max(map(len, rows)), 22 + 4.8 * max(map(len, columns))
    side = min(_LARGEST, (width - left - 4) / len(columns))
    height = round(4 + side * len(rows) + below)
    parts = []
    if len(rows) * len(columns) > _WITH_NAMES:
        parts += _levels(grid, left, side)
    else:
        for i, (name, line) in enumerate(zip(grid.rows, grid.values, strict=True)):
            for j, (other, value) in enumerate(zip(grid.columns, line, strict=True)):
                parts += _cell(left + j * side, 4 + i * side, side, value, f"{name}, {other}")
    every = max(1, ceil(15 / side))
    bottom = 4 + side * len(rows)
    for i in range(0, len(rows), every):
        y = round(4 + (i + 0.5) * side + 4, 1)
        parts.append(svg.element("text", rows[i], x=round(left - 8, 1), y=y, class_="tick end"))
    for j in range(0, len(columns), every):
        x = round(left + (j + 0.5) * side + 4, 1)
        turn = f"rotate(-42 {x} {round(bottom + 14, 1)})"
        parts.append(
            svg.element("text", columns[j], x=x, y=round(bottom + 14, 1), transform=turn, class_="tick end")
        )
    return svg.image(width, height, words.grid_words(grid), parts)


def _share(value: float | None) -> float:
    return 0.0 if value is None else min(1.0, max(0.0, value))


def _levels(grid: Grid, left: float, side: float) -> list[Markup]:
    """One path for all cells of about the same value."""
    places: dict[int, list[str]] = {}
    for i, line in enumerate(grid.values):
        for j, value in enumerate(line):
            corner = f"M{left + j * side:.1f} {4 + i * side:.1f}h{side:.2f}v{side:.2f}h-{side:.2f}z"
            places.setdefault(round(_share(value) * _LEVELS), []).append(corner)
    return [
        svg.element("path", d="".join(corners), class_="cell", style=f"--share:{level / _LEVELS:.3f}")
        for level, corners in sorted(places.items())
    ]


def _cell(x: float, y: float, side: float, value: float | None, names: str) -> list[Markup]:
    title = svg.element("title", f"{names}: {words.plain(value)}")
    box = svg.element(
        "rect",
        title,
        x=round(x + 0.5, 1),
        y=round(y + 0.5, 1),
        width=round(side - 1, 1),
        height=round(side - 1, 1),
        rx=2,
        class_="cell",
        style=f"--share:{_share(value):.3f}",
    )
    if side < _WITH_TEXT or value is None:
        return [box]
    text = f"{value:.2f}".replace("0.", ".").replace("-", "−")
    at = {"x": round(x + side / 2, 1), "y": round(y + side / 2 + 4, 1)}
    return [box, svg.element("text", text, **at, class_="middle in-cell")]
