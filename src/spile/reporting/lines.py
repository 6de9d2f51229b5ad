"""Curves over the epochs of training as inline SVG: several lines in one frame, named at their right ends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, log10

from markupsafe import Markup

from spile.reporting import svg, words
from spile.reporting.record import Chart, Line, Training

STYLES = 8
"""Lines that are told apart; more of them repeat the styles."""


def training_charts(training: Training) -> list[tuple[Chart, list[Markup]]]:
    """Every chart, drawn at each width of the page."""
    return [
        (chart, [draw(chart, training.epochs, best=training.best, width=width) for width in (340, 620, 920)])
        for chart in training.charts
        if any(value is not None for line in chart.lines for value in line.values)
    ]


def draw(chart: Chart, epochs: Sequence[float], *, best: int | None, width: int) -> Markup:
    """One chart. A logarithmic one leaves out what is not above 0."""
    narrow = width < 480
    lines = [(line, _known(line, epochs, logarithmic=chart.logarithmic)) for line in chart.lines]
    lines = [(line, points) for line, points in lines if points]
    values = [value for _, points in lines for _, value in points]
    bounds = (0.0, 1.0) if chart.share else None
    frame = svg.Frame(
        left=52,
        right=width - (96 if narrow else 190),
        top=14,
        bottom=200 if narrow else 250,
        x_range=(min(epochs), max(epochs) if len(epochs) > 1 else min(epochs) + 1),
        y_range=svg.padded_range(values, bounds=bounds),
    )
    text = partial(_text, chart=chart, digits=3 if chart.logarithmic else _digits(*frame.y_range))
    hairline = []
    if best is not None and best < len(epochs) - 1:
        x = frame.x(epochs[best])
        hairline = [svg.element("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, class_="hairline")]
    parts = [
        *svg.y_axis(frame, text),
        *_epochs(frame, epochs),
        *hairline,
        *(_path(frame, points, style) for style, (_, points) in enumerate(lines)),
        *_names(frame, lines, text, 12 if narrow else 26),
    ]
    return svg.image(width, round(frame.bottom) + 44, words.chart_words(chart), parts)


def _known(line: Line, epochs: Sequence[float], *, logarithmic: bool) -> list[tuple[float, float]]:
    pairs = [(epoch, value) for epoch, value in zip(epochs, line.values, strict=False) if value is not None]
    return [(epoch, log10(value)) for epoch, value in pairs if value > 0] if logarithmic else pairs


def _digits(low: float, high: float) -> int:
    """How many it takes to tell the ticks of an axis apart: 22.9, 22.95 and 23 need four."""
    largest = max(abs(low), abs(high))
    return max(3, ceil(log10(largest / (high - low))) + 2) if largest else 3


def _text(value: float, *, chart: Chart, digits: int) -> str:
    if chart.share:
        return words.percent(round(value, 3))
    return words.plain(10**value if chart.logarithmic else value, digits)


def _epochs(frame: svg.Frame, epochs: Sequence[float]) -> list[Markup]:
    room = max(2, int((frame.right - frame.left) / 44))
    ticks = svg.linear_ticks(*frame.x_range, n=min(room, 10))
    whole = [tick for tick in ticks if tick == int(tick) and tick in epochs]
    marks = [
        svg.element("text", f"{tick:g}", x=frame.x(tick), y=frame.bottom + 18, class_="tick middle")
        for tick in whole
    ]
    return [*marks, svg.element("text", "epoch", x=frame.right, y=frame.bottom + 36, class_="axis end")]


def _path(frame: svg.Frame, points: Sequence[tuple[float, float]], style: int) -> Markup:
    corners = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
    kind = f"series s{style % STYLES}"
    if len(points) == 1:
        x, y = points[0]
        return svg.element("circle", cx=frame.x(x), cy=frame.y(y), r=3, class_=f"{kind} single")
    return svg.element("polyline", points=corners, class_=kind)


def _names(
    frame: svg.Frame, lines: Sequence[tuple[Line, list[tuple[float, float]]]], text: svg.Format, longest: int
) -> list[Markup]:
    heights = svg.spread_out([frame.y(points[-1][1]) for _, points in lines], 15)
    parts = []
    for style, ((line, points), height) in enumerate(zip(lines, heights, strict=True)):
        words_of_line = f"{svg.shorten(line.name, longest)} {text(points[-1][1])}"
        parts.append(
            svg.element(
                "text",
                words_of_line,
                x=frame.right + 8,
                y=round(height + 4, 1),
                class_=f"tick name s{style % STYLES}",
            )
        )
    return parts
