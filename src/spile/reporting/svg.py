"""Charts as inline SVG: data in, markup out. Colors come from the page's CSS, so a chart follows its theme.

Every value that reaches the markup is escaped on the way in. A chart is one image to assistive software,
described by its `label`; its marks carry `<title>` elements that browsers show on hovering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from statistics import fmean

from markupsafe import Markup

Format = Callable[[float], str]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point of a chart: where it is, how sure, and whether it stands out."""

    name: str
    x: float
    y: float
    error: float | None = None
    second: float | None = None
    chosen: bool = False
    frontier: bool = False


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A horizontal reference line; `kind` becomes a CSS class."""

    name: str
    y: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How the vertical axis reads: the text of a value, the shorter one of a tick, and its limits."""

    text: Format
    tick: Format
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plotting rectangle in pixels and the linear map of data into it."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Pixel column of a value."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Pixel row of a value; larger values are higher up."""
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One SVG element. Underscores in attribute names stand for hyphens; ``class_`` is ``class``."""
    pairs = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    written = Markup("").join(Markup(' {}="{}"').format(name, value) for name, value in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, Markup("").join(children))


def linear_ticks(low: float, high: float, n: int = 7) -> list[float]:
    """About `n` round numbers (steps of 1, 2 or 5) within the range."""
    raw = (high - low) / n
    power = 10 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [round(i * step, 12) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, n: int) -> list[float]:
    """Round numbers within the range, at most `n` where that can be: 1, 2, 5 or 1, 3 or 1 of every decade."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    choices = [
        [m * 10.0**k for k in decades for m in steps if low <= m * 10.0**k <= high]
        for steps in ((1, 2, 5), (1, 3), (1,))
    ]
    return next((ticks for ticks in choices if len(ticks) <= n), choices[-1])


def padded_range(
    values: Iterable[float], *, bounds: tuple[float, float] | None = None
) -> tuple[float, float]:
    """The range of the values with a tenth of air at both ends, within `bounds`; never empty."""
    known = list(values)
    low, high = min(known), max(known)
    air = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - air, high + air
    if bounds:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return low, high


def shorten(text: str, limit: int) -> str:
    """Keep the end of a long name, which is what tells layers apart."""
    return text if len(text) <= limit else "…" + text[1 - limit :].lstrip(".")


def without_common_end(names: Sequence[str]) -> list[str]:
    """Drop the path parts that all names end with, which do not tell them apart; never the whole name."""
    parts = [name.split(".") for name in names]
    common = 0
    while (
        len(parts) > 1
        and all(len(p) > common + 1 for p in parts)
        and len({p[-1 - common] for p in parts}) == 1
    ):
        common += 1
    return [".".join(p[: len(p) - common]) for p in parts]


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Move positions apart so that no two are nearer than `gap`, each about as near as may be to its own."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # of neighbours that stand as near as may be
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    starts = [fmean(block) for block in blocks for _ in block]
    placed = list(wanted)
    for rank, (i, start) in enumerate(zip(order, starts, strict=True)):
        placed[i] = start + rank * gap
    return placed


def curve(dots: Sequence[Dot], rules: Sequence[Rule], *, scores: Scores, width: int, label: str) -> Markup:
    """Scores by depth: a line through `dots` in order, error bars, `second` values as hollow diamonds."""
    narrow = width < 480
    plot_width = width - 46 - _margin(rules, narrow)
    slot = plot_width / len(dots)
    size = min(1.0, max(0.45, slot / 14))
    names = _tick_names([dot.name for dot in dots], 12 if narrow else 20)
    longest = max(map(len, names))
    tilted = longest * 6.4 + 8 > slot
    below = 18 + (longest * 4.6 if tilted else 10)
    height = round((230 if narrow else 290) + below)
    frame = Frame(
        left=46,
        right=46 + plot_width,
        top=30,
        bottom=height - below,
        x_range=(-0.5, len(dots) - 0.5),
        y_range=_score_range(dots, rules, scores.bounds),
    )
    chosen = [i for i, dot in enumerate(dots) if dot.chosen]
    shown = thinned(len(dots), every=ceil(22 / slot) if tilted else 1, keep=chosen)
    x_labels = [_x_name(frame.x(i), frame.bottom, names[i], tilted, dots[i].chosen) for i in shown]
    second = [(frame.x(i), frame.y(dot.second)) for i, dot in enumerate(dots) if dot.second is not None]
    marks = [
        *(_hairline(frame, frame.x(i)) for i in chosen),
        _path([(frame.x(i), frame.y(dot.y)) for i, dot in enumerate(dots)], "line"),
        _path(second, "second-line"),
        *(_error_bar(frame, frame.x(i), dot, size) for i, dot in enumerate(dots)),
        *(_diamond(x, y, size) for x, y in second),
        *(_dot(frame, frame.x(i), dot, scores.text(dot.y), size) for i, dot in enumerate(dots)),
        *(_callout(frame, frame.x(i), dots[i], scores) for i in chosen),
    ]
    parts = [*y_axis(frame, scores.tick), *x_labels, *_rules(frame, rules, scores.text), *marks]
    return image(width, height, label, parts)


def scatter(
    dots: Sequence[Dot],
    rules: Sequence[Rule],
    *,
    scores: Scores,
    width: int,
    label: str,
    x_format: Format,
    x_title: str,
) -> Markup:
    """Scores against a positive cost, logarithmic; the `frontier` dots are joined by steps and named."""
    narrow = width < 480
    height = 300 if narrow else 340
    low, high = padded_range(log10(dot.x) for dot in dots)
    frame = Frame(
        left=46,
        right=width - _margin(rules, narrow),
        top=30,
        bottom=height - 46,
        x_range=(low, high),
        y_range=_score_range(dots, rules, scores.bounds),
    )
    size = 1.0 if len(dots) <= 30 else 0.7
    ticks = [
        element("text", x_format(t), x=frame.x(log10(t)), y=frame.bottom + 18, class_="tick middle")
        for t in log_ticks(10**low, 10**high, n=int((frame.right - frame.left) / 44))
    ]
    title = element("text", x_title, x=frame.right, y=frame.bottom + 38, class_="axis end")
    placed = [(frame.x(log10(dot.x)), frame.y(dot.y), dot) for dot in dots]
    best = sorted((x, y) for x, y, dot in placed if dot.frontier)
    stairs = [corner for (x, y), (x2, _) in pairwise(best) for corner in ((x, y), (x2, y))]
    chosen = [(x, dot) for x, _, dot in placed if dot.chosen]
    marks = [
        *(_hairline(frame, x) for x, _ in chosen),
        _path([*stairs, *best[-1:]], "line frontier"),
        *(_dot(frame, x, dot, f"{scores.text(dot.y)}, {x_format(dot.x)}", size) for x, _, dot in placed),
        *_names(frame, placed, 14 if narrow else 24),
        *(_callout(frame, x, dot, scores) for x, dot in chosen),
    ]
    parts = [*y_axis(frame, scores.tick), *ticks, title, *_rules(frame, rules, scores.text), *marks]
    return image(width, height, label, parts)


def thinned(n: int, *, every: int, keep: Sequence[int]) -> list[int]:
    """Every `every`-th of `n` positions, and those to `keep`, whose near neighbors make way."""
    regular = (i for i in range(0, n, every) if all(abs(i - k) >= every for k in keep))
    return sorted({*regular, *keep})


def _tick_names(names: Sequence[str], longest: int) -> list[str]:
    if max(map(len, names)) > longest:
        names = without_common_end(names)
    return [shorten(name, longest) for name in names]


def image(width: int, height: int, label: str, parts: Iterable[str]) -> Markup:
    """A chart of this size, made of `parts`; `label` describes it."""
    view = f"0 0 {width} {height}"
    return element("svg", *parts, viewBox=view, role="img", aria_label=label, class_=f"chart w{width}")


def _margin(rules: Sequence[Rule], narrow: bool) -> int:
    return 12 if not rules else 74 if narrow else 104


def _score_range(
    dots: Sequence[Dot], rules: Sequence[Rule], bounds: tuple[float, float] | None
) -> tuple[float, float]:
    ends = [value for dot in dots for value in (dot.y - (dot.error or 0), dot.y + (dot.error or 0))]
    seconds = [dot.second for dot in dots if dot.second is not None]
    return padded_range([*ends, *seconds, *(rule.y for rule in rules)], bounds=bounds)


def y_axis(frame: Frame, text: Format) -> list[Markup]:
    """Grid lines and their values."""
    parts = []
    for tick in linear_ticks(*frame.y_range):
        y = frame.y(tick)
        parts.append(element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", text(tick), x=frame.left - 8, y=y + 4, class_="tick end"))
    return parts


def _x_name(x: float, bottom: float, name: str, tilted: bool, chosen: bool) -> Markup:
    strong = " strong" if chosen else ""
    if not tilted:
        return element("text", name, x=x, y=bottom + 20, class_=f"tick middle{strong}")
    turn = f"rotate(-42 {x} {bottom + 14})"
    return element("text", name, x=x + 3, y=bottom + 16, transform=turn, class_=f"tick end{strong}")


def _rules(frame: Frame, rules: Sequence[Rule], text: Format) -> list[Markup]:
    heights = spread_out([frame.y(rule.y) for rule in rules], 32)
    x = frame.right + 8
    parts = []
    for rule, middle in zip(rules, heights, strict=True):
        y = frame.y(rule.y)
        parts += [
            element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_=f"rule {rule.kind}"),
            element("text", shorten(rule.name, 13), x=x, y=middle - 2, class_="tick"),
            element("text", text(rule.y), x=x, y=middle + 12, class_="tick strong"),
        ]
    return parts


def _path(corners: Sequence[tuple[float, float]], kind: str) -> Markup:
    if len(corners) < 2:
        return Markup("")
    return element("polyline", points=" ".join(f"{x},{y}" for x, y in corners), class_=kind)


def _error_bar(frame: Frame, x: float, dot: Dot, size: float) -> Markup:
    if not dot.error:
        return Markup("")
    low, high = (min(max(dot.y + side * dot.error, frame.y_range[0]), frame.y_range[1]) for side in (-1, 1))
    y1, y2 = frame.y(low), frame.y(high)
    cap = f"m-4 0h8M{x} {y1}m-4 0h8" if size == 1 else ""
    return element("path", d=f"M{x} {y1}V{y2}{cap}", class_="error")


def _dot(frame: Frame, x: float, dot: Dot, text: str, size: float) -> Markup:
    kind = "chosen" if dot.chosen else "frontier" if dot.frontier else ""
    title = element("title", f"{dot.name}: {text}")
    radius = 7 if dot.chosen else round(4.5 * size, 1)
    return element("circle", title, cx=x, cy=frame.y(dot.y), r=radius, class_=f"dot {kind}".strip())


def _diamond(x: float, y: float, size: float) -> Markup:
    r = round(5 * size, 1)
    return element("path", d=f"M{x} {y}m0 {-r}l{r} {r}l{-r} {r}l{-r} {-r}z", class_="second")


def _hairline(frame: Frame, x: float) -> Markup:
    return element("line", x1=x, x2=x, y1=frame.top - 8, y2=frame.bottom, class_="hairline")


def _callout(frame: Frame, x: float, dot: Dot, scores: Scores) -> Markup:
    """Name the chosen dot above the plot, at the top of its hairline."""
    text = f"{shorten(dot.name, 26)} · {scores.text(dot.y)}"
    half = 3.6 * len(text)
    middle = round(max(min(x, frame.right - half), frame.left + half), 1)
    return element("text", text, x=middle, y=frame.top - 14, class_="callout middle")


def _names(frame: Frame, placed: Sequence[tuple[float, float, Dot]], longest: int) -> list[Markup]:
    """Name the frontier dots, each at the first of its places that is free; where none is, hovering tells."""
    names = _tick_names([dot.name for _, _, dot in placed], longest)
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in placed]
    parts = []
    for name, (x, y, dot) in zip(names, placed, strict=True):
        if not dot.frontier or dot.chosen:
            continue
        for box in _places(x, y, 7 * len(name)):
            within = box[0] >= frame.left and box[2] <= frame.right and box[1] >= frame.top
            if within and box[3] <= frame.bottom and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                middle, base = round((box[0] + box[2]) / 2, 1), round(box[3] - 3, 1)
                parts.append(element("text", name, x=middle, y=base, class_="tick strong middle"))
                break
    return parts


def _places(x: float, y: float, wide: float) -> list[Box]:
    """Where a name may stand around a dot, the best place first: above, to a side, below."""
    above = [(left, y - 14) for left in (x - wide / 2, x - 4, x - wide + 4)]
    places = [*above, (x - wide - 10, y - 6), (x + 12, y + 5), (x - wide / 2, y + 24)]
    return [(left, base - 11, left + wide, base + 3) for left, base in places]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
