"""The command line: parses, calls one verb, maps errors to exit codes. No tensors here.

Exit codes: 0 done, 1 the run failed (one line says why and what to do), 2 usage.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spile.errors import SpileError

if TYPE_CHECKING:
    from rich.table import Table

    from spile.models import LoadedModel

_INTERRUPTED = 130

app = typer.Typer(
    name="spile",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tap any layer of a PyTorch model and train with what flows out.",
    epilog="Start with: [bold]spile demo[/]",
)


class Rule(StrEnum):
    """How a layer is chosen."""

    best = "best"
    one_standard_error = "1se"


class Dtype(StrEnum):
    """What a store holds."""

    float16 = "float16"
    float32 = "float32"


class Precision(StrEnum):
    """What is computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Which(StrEnum):
    """Which layers are listed."""

    all = "all"
    blocks = "blocks"
    stages = "stages"


ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="timm:NAME, torchvision:NAME, hf:NAME, keras:NAME, keras_hub:PRESET, FILE.py:FACTORY, "
        "FILE.keras, FILE.pt2, demo:NAME.",
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A folder of class folders, a .csv, .parquet or .npz file, or demo:NAME."
    ),
]
Weights = Annotated[Path | None, typer.Option(help="A local weights file, .safetensors or .pth.")]
InputSize = Annotated[int | None, typer.Option(min=1, help="Side of square inputs, in pixels.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the CPU.")]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layers", "-l", help="An address; may be repeated. Default: stages."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples a batch.")]
RuleName = Annotated[Rule, typer.Option(help="The best layer, or the cheapest within one standard error.")]
MaxBad = Annotated[float, typer.Option(min=0, max=1, help="Share of samples that may be unreadable.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command(epilog="Example: [bold]spile layers timm:resnet50 --only blocks[/]")
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
    _show(chosen, chosen.to_json(), as_json)


@app.command(epilog="Example: [bold]spile extract photos/ -m timm:resnet50 -o feats.lance -l 'layer4.*'[/]")
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
    batch_size: BatchSize = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read and decode.")] = None,
    max_bad: MaxBad = 0.01,
    resume: Annotated[bool, typer.Option(help="Go on with a store that is there.")] = True,
    add: Annotated[bool, typer.Option("--add", help="Add the layers to a finished store.")] = False,
    weights: Weights = None,
    input_size: InputSize = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write activations of many layers of many samples into a store, in one pass; run again to go on."""
    import spile

    loaded = _load(model, weights, input_size, device)
    tap = spile.tap(loaded, addresses or ["stages"], pool=None if pool == "none" else pool)
    if add:
        store = spile.open(out).add(tap, data, dtype=dtype.value, progress=not quiet, workers=workers)
    else:
        store = spile.extract(
            tap,
            data,
            out,
            dtype=dtype.value,
            precision=precision.value,
            batch_size=batch_size or "auto",
            workers=workers,
            max_bad=max_bad,
            resume=resume,
            progress=not quiet,
        )
    about = {
        "store": str(out),
        "rows": len(store),
        "skipped": store.skipped.num_rows,
        "fingerprint": store.fingerprint,
        "points": {
            name: {"shape": list(spec.shape), "dtype": spec.dtype} for name, spec in store.points.items()
        },
    }
    _show(_points_table(store), about, as_json)


@app.command(epilog="Example: [bold]spile probe feats.lance --rule 1se[/]")
def probe(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="What spile extract wrote.")],
    rule: RuleName = Rule.best,
    cv: Annotated[int, typer.Option(min=2, help="Folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score every point of a store by cross-validation with a ridge classifier, and name the one to use."""
    import spile

    result = spile.probe(spile.open(store), rule=rule.value, cv=cv, seed=seed)
    _show(result, result.to_json(), as_json)


@app.command(epilog="Example: [bold]spile transfer photos/ -m timm:resnet50 -o run --shots 10 --seeds 5[/]")
def transfer(
    data: Data,
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("run"),
    addresses: Layers = None,
    rule: RuleName = Rule.best,
    cv: Annotated[int, typer.Option(min=2, help="Folds.")] = 5,
    shots: Annotated[int | None, typer.Option(min=2, help="Use only so many labels of every class.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat the choice of training rows so often.")] = 1,
    batch_size: BatchSize = None,
    max_bad: MaxBad = 0.01,
    weights: Weights = None,
    input_size: InputSize = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the best layer for labelled data, fit a classifier on it, save both as one, write a report."""
    import spile

    run = spile.transfer(
        _load(model, weights, input_size, device),
        data,
        out,
        addresses=addresses or ["stages"],
        rule=rule.value,
        cv=cv,
        shots=shots,
        seeds=seeds,
        batch_size=batch_size or "auto",
        max_bad=max_bad,
        progress=not quiet,
        command=_typed(),
    )
    _show_run(run, as_json)


@app.command(epilog="Example: [bold]spile predict run/model new-photos/[/]")
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="What spile transfer wrote: run or run/model.")
    ],
    data: Data,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label new samples with a saved model; one line a sample: id, label, confidence."""
    import spile

    rows = []
    for batch, labels, probabilities in spile.load(model, device=device).predict_batches(data):
        none = [None] * len(labels)
        confidence = none if probabilities is None else probabilities.max(axis=1).tolist()
        for record, label, share in zip(batch.records, labels.tolist(), confidence, strict=True):
            rows.append({"id": record.id, "label": label, "confidence": share})
        rows += [{"id": bad.id, "label": None, "skipped": bad.reason} for bad in batch.skipped]
    _show(_table(rows, "id", "label", "confidence", "skipped"), rows, as_json)
    if not any("confidence" in row for row in rows):
        raise SpileError(f"{data}: not one sample could be used")


@app.command(epilog="Example: [bold]spile report run[/]")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write; by default RUN/report.html.")
    ] = None,
) -> None:
    """Write a run's report again: one HTML page that needs nothing else."""
    from spile.reporting import write_report

    _print(str(write_report(run, out)))


@app.command(epilog="Example: [bold]spile demo --out my-demo[/]")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("spile-demo"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Which layer of an ImageNet network reads handwriting best, from 5 labels a digit? Offline, a minute."""
    import spile
    from spile.data.demo import photographs

    run = spile.transfer(
        _load("demo:efficientnet_lite0", None, 64, None),
        "demo:mnist5k",
        out,
        shots=5,
        seeds=5,
        progress=not quiet,
        title="Which layer of an ImageNet network reads handwriting?",
        command=_typed(),
        show=photographs(),
    )
    _show_run(run, as_json)


@app.command(epilog="Example: [bold]spile doctor --json[/]")
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what each missing part would give, and what to type for it."""
    from spile.diagnosis import diagnose

    found = diagnose()
    _show(
        _table(found.parts, "part", "version", "for", "install"),
        {"ok": found.ok, "parts": found.parts},
        as_json,
    )
    if not found.ok:
        raise SpileError(found.remedy)


def main() -> None:
    """Run the command line; the entry point of ``spile``."""
    # Threads that spin while they wait for each other crawl on a machine that has other work: five to twenty
    # times slower beside one busy process on two cores. Read when the framework is imported, so set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            app()
            sys.stdout.flush()
        except SpileError as error:
            _fail(str(error))
        except BrokenPipeError:
            # Whoever read the output has enough. What is left unwritten must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}")
        except SystemExit as end:
            if end.code == _INTERRUPTED:
                _say("error", "interrupted; what was committed is kept: type the same command to go on")
            raise


def _fail(message: str) -> None:
    _say("error", message)
    raise SystemExit(1)


def _warn(message: Warning | str, *_: Any) -> None:
    _say("warning", str(message))


def _say(what: str, message: str) -> None:
    sys.stderr.write(f"{what}: {' '.join(message.split())}\n")


def _load(model: str, weights: Path | None, input_size: int | None, device: str | None) -> LoadedModel:
    import spile

    return spile.load_model(model, weights=weights, input_size=input_size, device=device)


def _typed() -> str:
    return shlex.join(["spile", *sys.argv[1:]])


def _show(table: Any, value: Any, as_json: bool) -> None:
    if as_json:
        from spile.probing.record import plain

        _print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    Console().print(table)


def _show_run(run: Any, as_json: bool) -> None:
    about = {
        "test_score": run.test_score,
        "held_out": dict(run.means),
        "model": str(run.path / "model"),
        "report": str(run.report),
    }
    _show(run.result, {**run.result.to_json(), **about}, as_json)
    if not as_json:
        _print(str(run))


def _points_table(store: Any) -> Table:
    rows = [
        {
            "point": name,
            "shape": "×".join("…" if n is None else str(n) for n in spec.shape),
            "dtype": spec.dtype,
        }
        for name, spec in store.points.items()
    ]
    table = _table(rows, "point", "shape", "dtype")
    table.caption = f"{len(store):,} rows, {store.skipped.num_rows} skipped"
    return table


def _table(rows: list[dict[str, Any]], *columns: str) -> Table:
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
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
