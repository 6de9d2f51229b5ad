"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def show(table: Any, value: Any, as_json: bool) -> None:
    """Print a table, or `value` as JSON."""
    if as_json:
        from spile.probing.record import plain

        print_line(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    Console().print(table)


def show_run(run: Any, as_json: bool) -> None:
    """Print what `spile.transfer` found, and where it lies."""
    about = {
        "test_score": run.test_score,
        "held_out": dict(run.means),
        "curve": [asdict(point) for point in run.curve],
        "model": str(run.path / "model"),
        "report": str(run.report),
    }
    show(run.result, {**run.result.to_json(), **about}, as_json)
    if not as_json:
        print_line(str(run))


def points_table(store: Any) -> Table:
    """The points of a store."""
    rows = [
        {
            "point": name,
            "shape": "×".join("…" if n is None else str(n) for n in spec.shape),
            "dtype": spec.dtype,
        }
        for name, spec in store.points.items()
    ]
    table = table_of(rows, "point", "shape", "dtype")
    table.caption = f"{len(store):,} rows, {store.skipped.num_rows} skipped"
    return table


def table_of(rows: list[dict[str, Any]], *columns: str) -> Table:
    """Dicts as rows; columns without any value are left out."""
    from rich.table import Table
    from rich.text import Text

    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    table = Table(*(shown or columns), box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in shown))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_line(line: str) -> None:
    """Print one line to standard output."""
    sys.stdout.write(line + "\n")
