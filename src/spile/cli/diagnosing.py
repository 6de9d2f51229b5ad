"""`spile diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spile.cli.options import AsJson, typed
from spile.cli.showing import show


def diagnose(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="What spile extract wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The report's folder.")] = Path("diagnosis"),
    data: Annotated[
        str | None, typer.Option(help="What the store was made from, for the report's pictures.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Another model's store of the same samples, to compare layers.")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="An earlier store of the same model, to look for drift.")
    ] = None,
    points: Annotated[
        list[str] | None, typer.Option("--points", "-p", help="A point; may be repeated. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare layers, and look for wrong labels, near-duplicates, leaks and drift; with a report."""
    import spile

    found = spile.diagnose(
        spile.open(store),
        out,
        data=data,
        beside=None if beside is None else spile.open(beside),
        before=None if before is None else spile.open(before),
        points=points or None,
        seed=seed,
        command=typed(),
    )
    show(found, found.to_json(), as_json)
