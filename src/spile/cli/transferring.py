"""`spile probe`, `spile transfer`, `spile predict`, `spile demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spile.cli.options import (
    AsJson,
    BatchSize,
    Combine,
    CombineName,
    Data,
    Device,
    GroupDuplicates,
    Head,
    InputSize,
    Layers,
    MaxBad,
    MaxBytes,
    MaxMacs,
    MaxParams,
    MetricName,
    ModelName,
    Precision,
    Quiet,
    Rule,
    RuleName,
    UnitRows,
    Weights,
    load,
    numbers,
    typed,
)
from spile.cli.showing import show, show_run, table_of
from spile.errors import SpileError


def probe(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="What spile extract wrote.")],
    rule: RuleName = Rule.best,
    combine: CombineName = Combine.single,
    estimator: Annotated[Head, typer.Option(help="What the layers are compared with.")] = Head.ridge,
    metric: MetricName = "auto",
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_bytes: MaxBytes = None,
    control: Annotated[bool, typer.Option("--control", help="Search with shuffled labels too.")] = False,
    texts: Annotated[
        str | None, typer.Option(help="The data again, of a store of texts: adds tf-idf as a baseline.")
    ] = None,
    cv: Annotated[int, typer.Option(min=2, help="Folds.")] = 5,
    unit_rows: UnitRows = False,
    group_duplicates: GroupDuplicates = False,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score every point of a store by cross-validation, and name the one, or the combination, to use."""
    import spile
    from spile.probing.preparing import texts_again

    opened = spile.open(store)
    result = spile.probe(
        opened,
        groups=opened.near_duplicates().groups if group_duplicates else None,
        rule=rule.value,
        combine=combine.value,
        estimator=estimator.value,
        metric=metric,
        max_macs=max_macs,
        max_params=max_params,
        max_bytes=max_bytes,
        control=control,
        texts=None if texts is None else texts_again(texts, opened),
        cv=cv,
        seed=seed,
        unit_rows=unit_rows,
    )
    show(result, result.to_json(), as_json)


def transfer(
    data: Data,
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("run"),
    addresses: Layers = None,
    rule: RuleName = Rule.best,
    combine: CombineName = Combine.single,
    head: Annotated[Head | None, typer.Option(help="Fitted on what was chosen. Default: ridge.")] = None,
    calibrate: Annotated[bool, typer.Option(help="Honest probabilities of a head other than ridge.")] = False,
    metric: MetricName = "auto",
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_bytes: MaxBytes = None,
    cv: Annotated[int, typer.Option(min=2, help="Folds.")] = 5,
    shots: Annotated[
        str | None, typer.Option(help="Use only so many labels of every class; 5,10,50 gives a curve.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat the choice of training rows so often.")] = 1,
    unit_rows: UnitRows = False,
    group_duplicates: GroupDuplicates = False,
    precision: Annotated[
        Precision, typer.Option(help="What is computed in; the report shows what less than float32 changes.")
    ] = Precision.float32,
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
        load(model, weights, input_size, device),
        data,
        out,
        addresses=addresses or ["stages"],
        rule=rule.value,
        combine=combine.value,
        head=None if head is None else head.value,
        calibrate=calibrate,
        metric=metric,
        max_macs=max_macs,
        max_params=max_params,
        max_bytes=max_bytes,
        cv=cv,
        shots=numbers(shots),
        seeds=seeds,
        unit_rows=unit_rows,
        group_duplicates=group_duplicates,
        precision=precision.value,
        batch_size=batch_size or "auto",
        max_bad=max_bad,
        progress=not quiet,
        command=typed(),
    )
    show_run(run, as_json)


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A folder that spile transfer or spile train wrote.")
    ],
    data: Data,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label new samples with a saved model; one line a sample: id, label or labels, confidence."""
    import spile

    rows: list[dict[str, Any]] = []
    loaded = spile.load(model, device=device)
    for batch, labels, probabilities in loaded.predict_batches(data):
        for i, (record, label) in enumerate(zip(batch.records, labels.tolist(), strict=True)):
            shares = None if probabilities is None else probabilities[i].tolist()
            if isinstance(label, list):  # 0 and 1 by class
                named = dict(zip(loaded.classes or (), shares or label, strict=True))
                held = [name for name, holds in zip(named, label, strict=True) if holds]
                rows.append({"id": record.id, "label": held, "probabilities": named if shares else None})
                continue
            rows.append({"id": record.id, "label": label, "confidence": max(shares) if shares else None})
        rows += [{"id": bad.id, "label": None, "skipped": bad.reason} for bad in batch.skipped]
    show(table_of(rows, "id", "label", "confidence", "skipped"), rows, as_json)
    if all("skipped" in row for row in rows):
        raise SpileError(f"{data}: not one sample could be used")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("spile-demo"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Which layer of an ImageNet network reads handwriting best, from 5 labels a digit? Offline, a minute."""
    import spile
    from spile.data.demo import photographs

    run = spile.transfer(
        load("demo:efficientnet_lite0", None, 64, None),
        "demo:mnist5k",
        out,
        shots=5,
        seeds=5,
        progress=not quiet,
        title="Which layer of an ImageNet network reads handwriting?",
        command=typed(),
        show=photographs(),
    )
    show_run(run, as_json)
