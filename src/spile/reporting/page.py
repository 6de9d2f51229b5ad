"""`write_report`: a run folder in, one HTML page out, with everything inlined and nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import jinja2
from markupsafe import Markup

from spile.errors import DataError
from spile.reporting import diagnosed, lines, svg, words
from spile.reporting.record import Row, Run, read_run

CHART_WIDTHS = (340, 620, 920)
"""A chart is drawn for each; CSS shows the widest that fits, so its text never shrinks."""

MAX_MATRIX = 25
"""With more classes than this the page lists the most frequent confusions instead of the matrix."""

_TEMPLATES = Path(__file__).parent / "templates"
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the layer table: its heading, what a row shows there, and the bare number behind it."""

    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | str | None]
    numeric: bool = True


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run folder and return its path (`out`, or ``report.html`` in the folder).

    The page is complete in itself: pictures are embedded, nothing is requested, no script runs. Raises
    `DataError` if the folder holds no readable ``run.json`` of this schema, or the page cannot be written.
    """
    run = read_run(run_dir)
    path = Path(run_dir) / "report.html" if out is None else Path(out)
    html = render(run, Path(run_dir))
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(html, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise DataError(
            f"The report cannot be written to {str(path)!r}: {error.strerror}. Name another place, e.g. "
            f"--out report.html"
        ) from error
    return path


def render(run: Run, run_dir: Path) -> str:
    """The page as text, with the pictures of `run_dir`. Where one is missing, its sample is named."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": partial(words.score, metric=run.metric),
        "spread": partial(words.spread, metric=run.metric),
        "count": words.count,
        "magnitude": words.magnitude,
        "plain": words.plain,
        "duration": words.duration,
        "moment": words.moment,
        "label": words.label,
        "signed": partial(words.signed, metric=run.metric),
    }
    environment.globals |= {"words": words, "picture": cache(partial(embed, run_dir.resolve()))}
    return environment.get_template("report.html.j2").render(
        run=run,
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        curve=layer_curve(run),
        cost=cost_chart(run),
        curves=lines.training_charts(run.training) if run.training else [],
        columns=table_columns(run),
        max_matrix=MAX_MATRIX,
        **diagnosed.charts(run.findings, CHART_WIDTHS),
    )


def embed(root: Path, picture: str | None, alt: str) -> Markup:
    """An ``<img>`` with the picture inlined; empty if it is absent, no picture, or outside of `root`."""
    from PIL import Image, UnidentifiedImageError

    if picture is None:
        return Markup("")
    try:
        path = (root / picture).resolve()
        if not path.is_relative_to(root):
            return Markup("")
        with Image.open(path) as image:
            mime, (width, height) = _MIME.get(image.format or ""), image.size
        if mime is None:
            return Markup("")
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return Markup("")
    kind = ' class="coarse"' if max(width, height) <= 64 else ""
    return Markup('<img src="data:{};base64,{}" alt="{}" width="{}" height="{}"{}>').format(
        mime, data, alt, width, height, Markup(kind)
    )


def layer_curve(run: Run) -> list[Markup]:
    """The score of every point by depth, drawn at each of `CHART_WIDTHS`; nothing to draw gives no charts."""
    if not run.by_depth:
        return []
    dots = [replace(_dot(row, x), frontier=False) for x, row in enumerate(run.by_depth)]
    draw = partial(svg.curve, dots, _rules(run), scores=_scores(run.metric), label=words.curve_words(run))
    return [draw(width=width) for width in CHART_WIDTHS]


def cost_chart(run: Run) -> list[Markup]:
    """Scores against MACs, drawn at each of `CHART_WIDTHS`; fewer than two points with a cost give none."""
    dots = [_dot(row, row.macs) for row in run.table if row.macs and row.score is not None]
    if len(dots) < 2:
        return []
    draw = partial(
        svg.scatter,
        dots,
        _rules(run),
        scores=_scores(run.metric),
        label=words.cost_words(run),
        x_format=words.magnitude,
        x_title="MACs to reach the point, one sample",
    )
    return [draw(width=width) for width in CHART_WIDTHS]


def table_columns(run: Run) -> list[Column]:
    """The columns of the layer table; one that no row fills is left out."""
    score = partial(words.score, metric=run.metric)
    columns = [
        Column(title="Score", text=lambda r: score(r.score), value=lambda r: r.score),
        Column(
            title="Std. error", text=lambda r: words.spread(r.stderr, run.metric), value=lambda r: r.stderr
        ),
        Column(title="Held out", text=lambda r: score(r.test_score), value=lambda r: r.test_score),
        Column(title="Dims", text=lambda r: words.count(r.dims), value=lambda r: r.dims),
        Column(title="MACs", text=lambda r: words.magnitude(r.macs), value=lambda r: r.macs),
        Column(title="Params", text=lambda r: words.magnitude(r.params), value=lambda r: r.params),
        Column(title="Alpha", text=lambda r: words.plain(r.alpha), value=lambda r: r.alpha),
        Column(title="Pool", text=lambda r: r.pool or "", value=lambda r: r.pool, numeric=False),
        Column(title="Type", text=lambda r: r.type or "", value=lambda r: r.type, numeric=False),
        Column(
            title="Pareto",
            text=lambda r: "✓" if r.pareto else "",
            value=lambda r: r.pareto or None,
            numeric=False,
        ),
        Column(title="Note", text=lambda r: r.note or "", value=lambda r: r.note, numeric=False),
    ]
    return [c for c in columns if c.title == "Score" or any(c.value(row) is not None for row in run.table)]


def _dot(row: Row, x: float) -> svg.Dot:
    assert row.score is not None
    return svg.Dot(
        name=row.point,
        x=x,
        y=row.score,
        error=row.stderr,
        second=row.test_score,
        chosen=row.chosen,
        frontier=row.pareto,
    )


def _rules(run: Run) -> Sequence[svg.Rule]:
    rows = [(row, kind) for kind in ("last", "raw") if (row := run.baseline(kind)) is not None]
    return [
        svg.Rule(name="last layer" if kind == "last" else row.point, y=row.score, kind=kind)
        for row, kind in rows
        if row.score is not None
    ]


def _scores(metric: str) -> svg.Scores:
    if words.is_share(metric):
        return svg.Scores(text=partial(words.score, metric=metric), tick=words.percent, bounds=(0.0, 1.0))
    return svg.Scores(text=partial(words.score, metric=metric), tick=words.plain)
