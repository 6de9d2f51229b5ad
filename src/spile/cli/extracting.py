"""`spile extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spile.cli.options import (
    AsJson,
    BatchSize,
    Data,
    Device,
    Dtype,
    Engine,
    InputSize,
    Layers,
    MaxBad,
    ModelName,
    Precision,
    Quiet,
    Weights,
    load,
)
from spile.cli.showing import points_table, show


def extract(
    data: Data,
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The store to write, e.g. feats.lance.")],
    addresses: Layers = None,
    pool: Annotated[
        str, typer.Option(help="auto, avg, max, gem, grid:N, flatten, cls, mean, cls+mean, last, none.")
    ] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="What is stored.")] = Dtype.float16,
    precision: Annotated[Precision, typer.Option(help="What is computed in.")] = Precision.float32,
    engine: Annotated[
        Engine, typer.Option(help="How the model is run; auto compares and times, where that pays.")
    ] = Engine.auto,
    batch_size: BatchSize = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read and decode.")] = None,
    max_bad: MaxBad = 0.01,
    resume: Annotated[bool, typer.Option(help="Go on with a store that is there.")] = True,
    add: Annotated[bool, typer.Option("--add", help="Add the layers to a finished store.")] = False,
    weights: Weights = None,
    input_size: InputSize = None,
    device: Device = None,
    devices: Annotated[
        str | None,
        typer.Option(help="Several of this machine, a process on each: cuda:0,cuda:1 (PyTorch models)."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write activations of many layers of many samples into a store, in one pass; run again to go on."""
    import spile

    several = devices.split(",") if devices else None
    if add and several:
        raise typer.BadParameter("--add runs on one device: write --device", param_hint="--devices")
    loaded = load(model, weights, input_size, several[0] if several and not device else device)
    tap = spile.tap(loaded, addresses or ["stages"], pool=None if pool == "none" else pool)
    if add:
        store = spile.open(out).add(tap, data, dtype=dtype.value, progress=not quiet, workers=workers)
    else:
        store = spile.extract(
            tap,
            data,
            out,
            dtype=dtype.value,
            engine=engine.value,
            precision=precision.value,
            batch_size=batch_size or "auto",
            workers=workers,
            devices=several,
            max_bad=max_bad,
            resume=resume,
            progress=not quiet,
        )
    about = {
        "store": str(out),
        "rows": len(store),
        "skipped": store.skipped.num_rows,
        "fingerprint": store.fingerprint,
        "engine": store.manifest.fingerprinted["engine"],
        "points": {
            name: {"shape": list(spec.shape), "dtype": spec.dtype} for name, spec in store.points.items()
        },
    }
    show(points_table(store), about, as_json)
