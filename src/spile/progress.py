"""The progress bar of a long run: rate, time left, bytes written, samples skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told of every batch."""

    def __call__(self, *, samples: int, written: int, skipped: int) -> None:
        """Report `samples` more samples read, and the totals of bytes `written` and samples `skipped`."""
        ...


@contextmanager
def progress_bar(title: str, *, total: int | None, done: int, shown: bool) -> Iterator[Progress]:
    """Show a bar on standard error while the block runs, where that is a terminal or a notebook."""
    if not shown:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[extra]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter)) as bars:
        task = bars.add_task(title, total=total, completed=done, rate="", extra="")

        def report(*, samples: int, written: int, skipped: int) -> None:
            bars.advance(task, samples)
            speed = bars.tasks[task].finished_speed or bars.tasks[task].speed
            extra = f"{written / 1e6:,.1f} MB" + (f", {skipped} skipped" if skipped else "")
            bars.update(task, rate=f"{speed:,.0f}/s" if speed else "", extra=extra)

        yield report


def _silent(*, samples: int, written: int, skipped: int) -> None:
    pass
