from __future__ import annotations

from typing import Any

import pytest

from spile.reporting import words
from spile.reporting.record import Chosen, Confusion, Row, Run


def make(*rows: Row, metric: str = "accuracy", **parts: Any) -> Run:
    return Run(title="t", metric=metric, table=rows, **parts)


LAST = Row(point="head", score=0.54, test_score=0.5113, baseline="last")
RAW = Row(point="raw pixels", score=0.6, test_score=0.6173, baseline="raw")
MIDDLE = Row(point="blocks.4", score=0.82, test_score=0.8113, chosen=True)


def plain_spaces(text: str) -> str:
    return text.replace("\u202f", " ")


def verdict(run: Run) -> str:
    return plain_spaces(words.verdict(run))


def test_the_verdict_holds_the_pick_against_the_last_layer_and_the_raw_input() -> None:
    chosen = Chosen(point="blocks.4", test_score=0.8113, test_total=4950)
    assert verdict(make(RAW, MIDDLE, LAST, chosen=chosen)) == (
        "blocks.4 gets 81.1 % of 4,950 held-out samples right: "
        "30.0 points above the last layer (51.1 %) and 19.4 points above raw pixels (61.7 %)."
    )


def test_without_held_out_scores_the_cross_validated_ones_speak() -> None:
    rows = [Row(point="a", score=0.7, chosen=True), Row(point="z", score=0.75, baseline="last")]
    assert (
        verdict(make(*rows))
        == "a scores 70.0 % in cross-validation: 5.0 points below the last layer (75.0 %)."
    )


def test_held_out_and_cross_validated_scores_are_never_compared() -> None:
    last_without_test = Row(point="head", score=0.54, baseline="last")
    assert verdict(make(MIDDLE, last_without_test)) == "blocks.4 scores 81.1 % on held-out samples."


def test_the_last_layer_may_win() -> None:
    last = Row(point="head", score=0.9, baseline="last", chosen=True)
    assert verdict(make(last, Row(point="raw pixels", score=0.9, baseline="raw"))) == (
        "head, the last layer, scores 90.0 % in cross-validation: level with raw pixels (90.0 %)."
    )


def test_a_metric_that_is_no_share_is_not_shown_in_percent() -> None:
    rows = [Row(point="a", score=0.5, chosen=True), Row(point="z", score=-0.1, baseline="last")]
    assert verdict(make(*rows, metric="r2")) == (
        "a scores 0.500 in cross-validation: 0.600 above the last layer (−0.100)."
    )


def test_nothing_picked() -> None:
    assert verdict(make(RAW, LAST)) == "2 points compared, none picked."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.score(None, "accuracy"), "–"),
        (words.score(float("nan"), "accuracy"), "–"),
        (words.score(0.5, "balanced_accuracy"), "50.0 %"),
        (words.spread(0.0384, "accuracy"), "± 3.8"),
        (words.spread(None, "accuracy"), ""),
        (words.count(12345), "12,345"),
        (words.magnitude(None), "–"),
        (words.magnitude(92_300_000), "92.3 M"),
        (words.magnitude(999), "999"),
        (words.magnitude(4.1e9), "4.1 G"),
        (words.plain(1e4), "10,000"),
        (words.plain(0.0), "0"),
        (words.plain(-0.25), "−0.25"),
        (words.plain(1.2e-7), "1.2e-07"),
        (words.plain(float("inf")), "–"),
        (words.duration(0.034), "34 ms"),
        (words.duration(12.41), "12.4 s"),
        (words.duration(83), "1 min 23 s"),
        (words.duration(3725), "1 h 2 min"),
        (words.moment("2026-11-17T14:03:22+00:00"), "17 November 2026, 14:03"),
        (words.moment("last week"), "last week"),
        (words.label(0), "0"),
        (words.label(None), "–"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert plain_spaces(text) == expected


def test_mean_is_of_the_known() -> None:
    assert words.mean([0.2, None, 0.4]) == pytest.approx(0.3)
    assert words.mean([None]) is None


def test_the_worst_confusion_is_named() -> None:
    confusion = Confusion(labels=("cat", "dog", "emu"), matrix=((8, 2, 0), (5, 5, 0), (0, 0, 0)))
    assert words.confused_pairs(confusion, limit=5) == [("dog", "cat", 5, 0.5), ("cat", "dog", 2, 0.2)]
    assert words.confusion_words(confusion) == (
        "13 of 20 test samples are right. Most often mixed up: dog taken for cat (5 times)."
    )


def test_the_charts_can_be_read_out() -> None:
    rows = [
        Row(point="a", order=0, score=0.4, stderr=0.05, macs=10_000, pareto=True),
        Row(point="b", order=1, score=0.8, macs=2_000_000, pareto=True, chosen=True),
        LAST,
    ]
    curve = plain_spaces(words.curve_words(make(*rows)))
    assert "a 40.0 % ± 5.0, b 80.0 %" in curve
    assert "Chosen: b 80.0 %." in curve
    assert "Baselines: the last layer 54.0 %." in curve
    assert "b 80.0 % at 2 M MACs" in plain_spaces(words.cost_words(make(*rows)))
