"""`spile layers`, `spile doctor`, `spile report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spile.cli.options import AsJson, InputSize, Weights, Which
from spile.cli.showing import print_line, show, table_of
from spile.errors import SpileError


def layers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As --model of the other commands.")],
    only: Annotated[Which, typer.Option(help="All, or those that end blocks or stages.")] = Which.all,
    weights: Weights = None,
    input_size: InputSize = None,
    pretrained: Annotated[
        bool, typer.Option(help="Load the weights, which the table does not need.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List a model's layers: address, type, output shape, parameters, cost to reach, calls, stride."""
    import spile
    from spile.taps import LayerTable

    loaded = spile.load_model(model, weights=weights, input_size=input_size, pretrained=pretrained)
    table = spile.layers(loaded)
    chosen = LayerTable(
        [r for r in table if only is Which.all or (r.stage if only is Which.stages else r.block)]
    )
    show(chosen, chosen.to_json(), as_json)


def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what each missing part would give, and what to type for it."""
    from spile.diagnosis import diagnose

    found = diagnose()
    show(
        table_of(found.parts, "part", "version", "for", "install"),
        {"ok": found.ok, "parts": found.parts},
        as_json,
    )
    if not found.ok:
        raise SpileError(found.remedy)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write; by default RUN/report.html.")
    ] = None,
) -> None:
    """Write a run's report again: one HTML page that needs nothing else."""
    from spile.reporting import write_report

    print_line(str(write_report(run, out)))
