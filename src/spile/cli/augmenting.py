"""`spile augment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spile.cli.options import AsJson, Data, Device, InputSize, ModelName, Weights, load
from spile.cli.showing import print_line, show, table_of
from spile.errors import AugmentationError


def augment(
    data: Data,
    model: ModelName,
    at: Annotated[str, typer.Option("--at", "-a", help="The layer whose activations guide, e.g. layer3.")],
    policy: Annotated[
        str,
        typer.Option(
            help="bylevel, inside, outside, keep, crop, drop, cutout, mapcutmix, attentivecutmix, "
            "saliencymix, snapmix."
        ),
    ] = "bylevel",
    preview: Annotated[
        bool, typer.Option("--preview", help="Draw image, map, bands and result side by side.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path(
        "augment-preview.png"
    ),
    samples: Annotated[int, typer.Option(min=1, help="How many samples are drawn.")] = 6,
    reduce: Annotated[str, typer.Option(help="l2, mean, max, pca, gradcam or rollout.")] = "l2",
    resolution: Annotated[float, typer.Option(help="Share of the images' sides that the guide sees.")] = 1.0,
    maps: Annotated[str, typer.Option(help="guided, or a placebo: permuted, random, centre.")] = "guided",
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    weights: Weights = None,
    input_size: InputSize = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show what augmentation guided by a layer does to a few samples; spile train --augment trains with
    it."""
    from spile.previewing import preview as draw

    if not preview:
        raise AugmentationError(
            "write --preview to draw what would be done; spile train --augment trains with it"
        )
    found = draw(
        data,
        load(model, weights, input_size, device),
        at,
        policy=policy,
        out=out,
        samples=samples,
        reduce=reduce,
        resolution=resolution,
        maps=maps,
        seed=seed,
    )
    rows = list(found.rows)
    about = {"picture": str(found.path), "policy": policy, "at": at, "cells": found.cells, "samples": rows}
    show(table_of(rows, "id", "low", "mid", "high"), about, as_json)
    if not as_json:
        print_line(f"map of {found.cells[0]} x {found.cells[1]} cells; picture: {found.path}")
