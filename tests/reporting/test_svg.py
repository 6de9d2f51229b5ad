from __future__ import annotations

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spile.reporting.svg import (
    Dot,
    Rule,
    Scores,
    curve,
    linear_ticks,
    log_ticks,
    padded_range,
    scatter,
    shorten,
    spread_out,
    thinned,
    without_common_end,
)

SCORES = Scores(text="{:.3f}".format, tick="{:.1f}".format, bounds=(0.0, 1.0))
DOTS = [
    Dot(name="early", x=1e5, y=0.4, error=0.1, second=0.35, frontier=True),
    Dot(name="middle", x=1e6, y=0.8, error=0.3, second=0.75, chosen=True, frontier=True),
    Dot(name="late", x=1e7, y=0.6, error=0.1, second=0.5),
]
RULES = [Rule(name="last layer", y=0.6, kind="last"), Rule(name="raw pixels", y=0.59, kind="raw")]


def draw_curve(dots: list[Dot] = DOTS, rules: list[Rule] = RULES, width: int = 620) -> ElementTree.Element:
    return ElementTree.fromstring(curve(dots, rules, scores=SCORES, width=width, label="a curve"))


def draw_scatter(dots: list[Dot] = DOTS, width: int = 620, **options: Any) -> ElementTree.Element:
    return ElementTree.fromstring(
        scatter(
            dots,
            RULES,
            scores=SCORES,
            width=width,
            label="a scatter",
            x_format="{:.0f}".format,
            x_title="cost",
            **options,
        )
    )


def marks(chart: ElementTree.Element) -> list[tuple[float, float, str]]:
    dots = chart.findall("circle")
    return [(float(d.attrib["cx"]), float(d.attrib["cy"]), d.attrib["class"]) for d in dots]


def texts(chart: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in chart.findall("text")]


@pytest.mark.parametrize("draw", [draw_curve, draw_scatter])
@pytest.mark.parametrize("width", [340, 620, 920])
def test_marks_stand_where_the_data_say(draw: Any, width: int) -> None:
    chart = draw(width=width)
    (x1, y1, _), (x2, y2, chosen), (x3, y3, late) = marks(chart)
    assert x1 < x2 < x3
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2), "depth steps and decades are even"
    assert y2 < y3 < y1
    assert (y1 - y3) == pytest.approx(y3 - y2, abs=0.2), "0.4, 0.6, 0.8 are evenly high"
    assert chosen == "dot chosen"
    assert late == "dot"


@pytest.mark.parametrize("draw", [draw_curve, draw_scatter])
def test_a_baseline_runs_through_the_dot_of_its_score(draw: Any) -> None:
    chart = draw()
    lines = {line.attrib["class"]: line.attrib for line in chart.findall("line")}
    assert lines["rule last"]["y1"] == lines["rule last"]["y2"] == str(marks(chart)[2][1])
    assert {"last layer", "0.600", "raw pixels", "0.590"} <= set(texts(chart))


def test_error_bars_end_at_one_standard_error_and_at_the_bounds() -> None:
    chart = draw_curve()
    bars = [path.attrib["d"] for path in chart.findall("path") if path.attrib["class"] == "error"]
    ends = [[float(part) for part in bar.split("m")[0].replace("V", " ").split()[1:]] for bar in bars]
    unit = (marks(chart)[0][1] - marks(chart)[1][1]) / 0.4
    assert ends[0][0] - ends[0][1] == pytest.approx(0.2 * unit, abs=0.3)
    assert ends[1][0] - ends[1][1] == pytest.approx(0.5 * unit, abs=0.3), "0.8 + 0.3 is cut off at 1"


@pytest.mark.parametrize("draw", [draw_curve, draw_scatter])
def test_a_chart_is_one_image_with_words_and_hints(draw: Any) -> None:
    chart = draw()
    assert chart.attrib["role"] == "img"
    assert chart.attrib["aria-label"].startswith("a ")
    hints = [dot.findtext("title") or "" for dot in chart.findall("circle")]
    assert [hint.split(",")[0] for hint in hints] == ["early: 0.400", "middle: 0.800", "late: 0.600"]
    assert "middle · 0.800" in texts(chart)


def test_names_are_shown_as_text() -> None:
    nasty = '</svg><script>alert("1")</script>'
    dots = [Dot(name=nasty, x=1.0, y=0.5, chosen=True), Dot(name="b'\"&", x=2.0, y=0.6, frontier=True)]
    for chart in (
        curve(dots, [Rule(name=nasty, y=0.5, kind="raw")], scores=SCORES, width=920, label=nasty),
        scatter(dots, [], scores=SCORES, width=920, label=nasty, x_format=str, x_title="cost"),
    ):
        assert "<script" not in chart
        assert ElementTree.fromstring(chart).attrib["aria-label"] == nasty


def test_one_dot_alone_and_equal_dots_can_be_drawn() -> None:
    assert len(marks(draw_curve([Dot(name="only", x=0, y=1.0)], []))) == 1
    assert len(marks(draw_scatter([Dot(name="a", x=5.0, y=0.0), Dot(name="b", x=5.0, y=0.0)]))) == 2


@pytest.mark.parametrize("width", [340, 620, 920])
def test_many_long_names_are_thinned_and_keep_the_chosen(width: int) -> None:
    dots = [
        Dot(name=f"stages.{i // 16}.blocks.{i % 16}.mixer.conv", x=i, y=0.5, chosen=i == 37)
        for i in range(64)
    ]
    chart = draw_curve(dots, width=width)
    names = [text for text in chart.findall("text") if "rotate" in text.attrib.get("transform", "")]
    positions = [float(text.attrib["x"]) for text in names]
    assert min(b - a for a, b in pairwise(positions)) >= 20
    strong = [text.text or "" for text in names if "strong" in text.attrib["class"]]
    assert len(strong) == 1
    assert strong[0].endswith("2.blocks.5")


def test_scatter_names_do_not_overlap() -> None:
    dots = [Dot(name=f"layer.{i}", x=1e6 * 1.1**i, y=0.5 + 0.005 * i, frontier=True) for i in range(30)]
    names = [t for t in draw_scatter(dots).findall("text") if t.attrib["class"] == "tick strong middle"]
    boxes = [(float(t.attrib["x"]), float(t.attrib["y"]), 3.5 * len(t.text or "")) for t in names]
    assert len(boxes) >= 3
    for i, (x, y, half) in enumerate(boxes):
        for x2, y2, half2 in boxes[:i]:
            assert abs(x - x2) >= half + half2 - 1 or abs(y - y2) >= 13


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_linear_ticks_are_round_few_and_inside(low: float, span: float) -> None:
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)


def test_log_ticks_thin_out_with_the_room() -> None:
    assert log_ticks(9e5, 6e6, n=9) == [1e6, 2e6, 5e6]
    assert log_ticks(9e5, 6e7, n=4) == [1e6, 3e6, 1e7, 3e7]
    assert log_ticks(1, 1e6, n=4) == [1, 10, 100, 1e3, 1e4, 1e5, 1e6]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_a_padded_range_holds_its_values_and_is_never_empty(values: list[float]) -> None:
    low, high = padded_range(values)
    assert low < high
    assert low <= min(values) <= max(values) <= high


def test_small_helpers() -> None:
    assert shorten("blocks.4.conv", 20) == "blocks.4.conv"
    assert shorten("stages.2.blocks.12.conv", 8) == "…12.conv"
    assert shorten("stages.2.blocks.12.conv", 6) == "…conv"
    assert without_common_end(["a.0.conv", "a.1.conv"]) == ["a.0", "a.1"]
    assert without_common_end(["conv", "a.conv"]) == ["conv", "a.conv"]
    assert without_common_end(["a.b"]) == ["a.b"]
    assert spread_out([100.0, 101.0], 30) == [85.5, 115.5]
    assert spread_out([200.0, 100.0], 30) == [200.0, 100.0]
    assert spread_out([7.0, 7.0, 7.0, 99.0], 15) == [-8.0, 7.0, 22.0, 99.0]
    assert thinned(10, every=3, keep=[4]) == [0, 4, 9]
