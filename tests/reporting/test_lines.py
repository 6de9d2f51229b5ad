from __future__ import annotations

import re
from typing import Any

import pytest

from spile.reporting import words
from spile.reporting.lines import draw, training_charts
from spile.reporting.record import Chart, Comparison, Data, Line, Run, Training


def chart(**options: Any) -> Chart:
    lines = (Line(name="training", values=(0.2, 0.5, 0.75)), Line(name="held out", values=(0.1, None, 0.5)))
    return Chart(**{"title": "Accuracy", "lines": lines, "share": True} | options)


@pytest.mark.parametrize("width", [340, 620, 920])
def test_every_line_is_drawn_and_named_with_its_last_value(width: int) -> None:
    made = str(draw(chart(), (1, 2, 3), best=None, width=width))
    corners = [c.split() for c in re.findall(r'points="([^"]+)"', made)]
    assert [len(line) for line in corners] == [3, 2]
    assert "training 75" in made and "held out 50" in made
    xs = [float(pair.split(",")[0]) for pair in corners[0]]
    ys = [float(pair.split(",")[1]) for pair in corners[0]]
    assert xs == sorted(xs) and ys == sorted(ys, reverse=True)


def test_ticks_that_lie_close_are_told_apart() -> None:
    made = str(
        draw(chart(lines=(Line(name="a", values=(23.12, 22.84)),), share=False), (1, 2), best=None, width=620)
    )
    ticks = re.findall(r'class="tick end"[^>]*>([\d.]+)<', made)
    assert len(ticks) > 3 and len(set(ticks)) == len(ticks)


def test_the_words_tell_where_lines_start_and_end() -> None:
    text = words.chart_words(chart())
    assert text.startswith("Line chart of accuracy over epochs: training 20.0")
    assert "held out 10.0" in text and "50.0" in text


def test_a_logarithmic_chart_leaves_out_what_has_no_logarithm() -> None:
    wanted = chart(lines=(Line(name="norm", values=(0.0, 1e-9, 1e-3)),), share=False, logarithmic=True)
    made = str(draw(wanted, (1, 2, 3), best=None, width=620))
    (corners,) = re.findall(r'points="([^"]+)"', made)
    assert len(corners.split()) == 2
    assert "norm 0.001" in made


def test_one_epoch_is_a_dot() -> None:
    made = str(draw(chart(lines=(Line(name="a", values=(0.5,)),)), (1,), best=0, width=620))
    assert "<circle" in made and "polyline" not in made


def test_the_best_epoch_is_marked_where_it_is_not_the_last() -> None:
    assert "hairline" in str(draw(chart(), (1, 2, 3), best=1, width=620))
    assert "hairline" not in str(draw(chart(), (1, 2, 3), best=2, width=620))


def test_markup_in_a_name_is_text() -> None:
    assert "<b>" not in str(
        draw(chart(lines=(Line(name="<b>", values=(0.5, 0.6)),)), (1, 2), best=None, width=620)
    )


def test_empty_charts_are_left_out() -> None:
    empty = chart(lines=(Line(name="a", values=(None, None)),))
    assert training_charts(Training(epochs=(1, 2), charts=(empty,))) == []


def test_the_verdict_of_a_training_run_and_of_a_comparison() -> None:
    training = Training(epochs=(1, 2, 3), charts=(), best=1, score=0.9, heads=("a", "b", "c"))
    run = Run(title="t", metric="accuracy", table=(), data=Data(name="d", test_rows=1000), training=training)
    assert words.verdict(run) == (
        "90.0\u202f% of 1,000 held-out samples right after 2 epochs, trained with heads on a, b and c."
    )
    comparison = Comparison(a="a", b="b", verdict="No.", level=0.95, seeds=(), budgets=())
    assert words.verdict(Run(title="t", metric="accuracy", table=(), comparison=comparison)) == "No."
    assert "nothing held out" in words.verdict(
        Run(title="t", metric="accuracy", table=(), training=Training(epochs=(1,), charts=()))
    )


def test_differences_have_signs() -> None:
    assert words.signed(-0.012, "accuracy") == "−1.2"
    assert words.signed(0.5, "r2") == "+0.500"
