"""The progress bar says what a long run wants to know, and only where somebody looks."""

from __future__ import annotations

import io
from typing import Any

import pytest
import rich.console

from spile.progress import progress_bar


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    page, make = io.StringIO(), rich.console.Console

    def console(**_: Any) -> rich.console.Console:
        return make(file=page, force_terminal=True, width=140, color_system=None)

    monkeypatch.setattr(rich.console, "Console", console)
    return page


def test_a_terminal_shows_count_rate_bytes_and_skipped(terminal: io.StringIO) -> None:
    with progress_bar("extract", total=100, done=40, shown=True) as report:
        for _ in range(3):
            report(samples=20, written=2_500_000, skipped=7)
    shown = next(line for line in terminal.getvalue().replace("\r", "\n").splitlines() if "100/100" in line)
    assert "2.5 MB, 7 skipped" in shown and "/s" in shown and "left" in shown


def test_nothing_is_shown_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("extract", total=10, done=0, shown=True) as report:
        report(samples=10, written=0, skipped=0)
    assert capsys.readouterr() == ("", "")


def test_it_can_be_switched_off(terminal: io.StringIO) -> None:
    with progress_bar("extract", total=10, done=0, shown=False) as report:
        report(samples=10, written=0, skipped=0)
    assert terminal.getvalue() == ""
