"""`spile export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spile.cli.options import AsJson, Data
from spile.cli.showing import show, table_of


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A folder that spile transfer or spile train wrote.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("exported"),
    formats: Annotated[
        str, typer.Option("--formats", "-f", help="pt2,onnx,openvino of PyTorch; keras of Keras; or all.")
    ] = "all",
    as_json: AsJson = False,
) -> None:
    """Write a saved model as one file a format, and verify each on the data; labels are not needed."""
    import spile

    wanted = "all" if formats == "all" else formats.split(",")
    made = spile.load(model).export(out, data, formats=wanted)
    rows = [{**asdict(one), "largest_difference": f"{one.largest_difference:.1e}"} for one in made.verified]
    columns = ("format", "path", "megabytes", "latency_ms", "largest_difference", "labels_identical")
    show(table_of(rows, *columns), made.description, as_json)
