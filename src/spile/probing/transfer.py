"""Transfer: extract, probe, pick, fit, save, verify, report. One call from a pretrained model to a classifier."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile import structure
from spile.backend import Tap, backend_of
from spile.data import Batch, Source, Stream, batches, open_source
from spile.errors import CaptureError, ProbeError, StoreError
from spile.extraction import extract
from spile.models import LoadedModel, as_loaded, example_for
from spile.observation import Observation
from spile.preprocessing import ImagePreprocessing
from spile.probing import deployment
from spile.probing.record import write_record
from spile.probing.result import ProbeResult, ProbeRow
from spile.probing.rows import Split, split_rows
from spile.probing.scoring import score_predictions
from spile.probing.search import Rule, probe
from spile.probing.task import Estimator
from spile.reporting import write_report
from spile.resolution import AddressLike
from spile.store import Store
from spile.taps import tap as make_tap

Array = npt.NDArray[Any]

RAW = "raw pixels"
_RAW_CELLS = "grid:28"
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False, kw_only=True)
class TransferRun:
    """What `transfer` made, and where it lies."""

    path: Path
    store: Store
    result: ProbeResult
    model: deployment.Deployed
    test_score: float | None
    """Of the chosen layer on the rows that took no part in choosing or fitting."""
    report: Path

    def __str__(self) -> str:
        best = self.result.best
        held_out = "" if self.test_score is None else f", {self.test_score:.3f} on held-out rows"
        return f"{best.point}: {best.score:.3f} ± {best.stderr:.3f} by cross-validation{held_out}; report: {self.report}"


def transfer(
    model: Any,
    data: Any,
    out: str | os.PathLike[str] = "run",
    *,
    addresses: Sequence[AddressLike] | AddressLike = "stages",
    estimator: Estimator = "ridge",
    rule: Rule = "best",
    cv: int = 5,
    shots: int | None = None,
    seeds: int = 1,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
    title: str | None = None,
    command: str | None = None,
    show: Sequence[tuple[str, Any]] = (),
) -> TransferRun:
    """Find the layer of a pretrained model that suits a task, fit a model on it, and save both with a report.

    The layers at `addresses`, the model's last features and its raw input are extracted in one pass into
    ``out/features.lance`` (a second run goes on from there). Every layer is scored by cross-validation on the training rows
    alone; the best is refitted on all of them, saved to ``out/model`` together with the network up to that layer, loaded
    back and compared. Rows of the split ``test`` (else ``val``), or a fifth set aside, only measure the result.

    Args:
        model: a model object, a reference such as ``"timm:resnet50"``, or what `spile.load_model` gave.
        data: labelled data, anything `spile.extract` takes.
        out: the run's folder.
        addresses: which layers to compare.
        estimator: ``"ridge"`` or a scikit-learn estimator.
        rule: how the layer is chosen, see `spile.probe`.
        cv: folds.
        shots: use only so many labels of every class for choosing and fitting; the rest of the data measures.
        seeds: repeat the choice of training rows so often; the report lists them, the first makes the model.
        title: of the report.
        command: what was typed, for the report.
        show: further images for the activation maps, as ``(title, pixels)``.

    Raises `ProbeError` where the labels do not suffice, and all that `spile.extract` raises.
    """
    if seeds < 1:
        raise ProbeError(f"seeds={seeds} is no count of repetitions: write seeds=1 or more")
    clock = _Clock()
    folder = _make_folder(out)
    loaded = as_loaded(model)
    source = open_source(data)
    with clock("look at the model"):
        observation = _observe(loaded, source)
        tap = _tap(loaded, observation, addresses)
    with clock("extract", unit="samples") as timed:
        store = extract(tap, source, folder / "features.lance", batch_size=batch_size, progress=progress)
        timed.amount = len(store)
    with clock("choose a layer"):
        splits = [split_rows(store, shots=shots, seed=seed) for seed in range(seeds)]
        results = [
            probe(store, estimator=estimator, rule=rule, cv=cv, rows=split.train, seed=seed)
            for seed, split in enumerate(splits)
        ]
        scored = [_test_scores(store, result, split) for result, split in zip(results, splits, strict=True)]
    result, split = results[0], splits[0]
    head = result.fit()
    with clock("save and verify"):
        deployed, verification = _deploy(folder / "model", loaded, tap, result, head, source, store)
    write_record(
        folder,
        loaded=loaded,
        tap=tap,
        whole=observation.root,
        source=source,
        store=store,
        results=results,
        splits=splits,
        test_scores=scored,
        head=head,
        shots=shots,
        title=title,
        command=command,
        verification=verification,
        timings=clock.steps,
        show=show,
    )
    return TransferRun(
        path=folder,
        store=store,
        result=result,
        model=deployed,
        test_score=scored[0].get(result.best.point),
        report=write_report(folder),
    )


def _make_folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}; give another folder with out="
        ) from error
    return folder


def _observe(loaded: LoadedModel, source: Source | Stream) -> Observation:
    return backend_of(loaded.model).observe(loaded.model, _example(loaded, source))


def _example(loaded: LoadedModel, source: Source | Stream) -> Any:
    """What the model takes: as its preprocessing says, or a ready sample of the data."""
    example = example_for(loaded)
    if example is None and isinstance(source, Source) and source.kind == "array":
        example = (2, *np.shape(source.read(0)))
    return example


def _tap(
    loaded: LoadedModel, observation: Observation, addresses: Sequence[AddressLike] | AddressLike
) -> Tap:
    """The wanted layers, the last features, and the input where it is one image."""
    asked = (
        [addresses]
        if isinstance(addresses, (str, int)) or not isinstance(addresses, Sequence)
        else list(addresses)
    )
    wanted: dict[str, AddressLike] = {}
    (image, *others) = observation.root.inputs
    if not others and image.layout == "BCYX":
        wanted[RAW] = "@in"
    example = _example_shape(observation)
    found = make_tap(loaded, asked, example=example)
    wanted |= {point.name: point.name for point in found.points}
    found.close()
    last = structure.last_features(observation)
    if last not in {point.address for point in found.points}:
        wanted[last] = last
    return make_tap(loaded, wanted, pool={RAW: _RAW_CELLS} if RAW in wanted else "auto", example=example)


def _example_shape(observation: Observation) -> Any:
    items = observation.root.inputs
    return items[0].shape if len(items) == 1 and items[0].key is None else None


def _test_scores(store: Store, result: ProbeResult, split: Split) -> dict[str, float]:
    """Held-out score of every scored point, fitted on the training rows; reported, never used to choose."""
    if not len(split.test):
        return {}
    labels = np.asarray(store.labels)
    return {
        row.point: score_predictions(
            result.metric, labels[split.test], _predict(result, row, store, split.test)
        )
        for row in result.table
        if row.score is not None
    }


def _predict(result: ProbeResult, row: ProbeRow, store: Store, rows: Array) -> Array:
    predicted: Array = np.asarray(result.fit(row.point).predict(_rows(store, row.point, rows)))
    return predicted


def _rows(store: Store, point: str, rows: Array) -> Array:
    values: Array = store[point].take(rows)
    return values.reshape(len(rows), -1)


def _deploy(
    folder: Path,
    loaded: LoadedModel,
    tap: Tap,
    result: ProbeResult,
    head: Any,
    source: Source | Stream,
    store: Store,
) -> tuple[deployment.Deployed, dict[str, Any]]:
    """Save the truncated network and the head, load them back, and compare features and predictions on a few samples."""
    backend = backend_of(loaded.model)
    images = loaded.preprocessing if isinstance(loaded.preprocessing, ImagePreprocessing) else None
    few = _few_samples(loaded, source)
    example = backend.example(few.inputs, preprocessing=images, model=loaded.model)
    chosen = next(p for p in tap.points if p.name == result.best.point)
    single = make_tap(loaded, {chosen.name: chosen.address}, pool={chosen.name: chosen.pool}, example=example)
    deployment.save(
        folder,
        tap=single,
        example=example,
        head=head,
        preprocessing=loaded.preprocessing,
        about={
            "input_size": loaded.input_size,
            "point": chosen.name,
            "fingerprint": store.fingerprint,
            "macs": chosen.macs,
            "params": chosen.params,
        },
    )
    before = backend.engine(single, preprocessing=images, precision="float32")(few.inputs)[chosen.name]
    before = before.reshape(len(few.records), -1)
    single.close()
    deployed = deployment.load(folder)
    after = deployed.batch_features(few)
    difference = float(np.abs(before - after).max())
    same = bool(np.array_equal(head.predict(before), deployed.head.predict(after)))
    if difference > _TOLERANCE * max(1.0, float(np.abs(before).max())) or not same:
        raise CaptureError(
            f"the saved model gives other features than the one that was measured (off by {difference:.3g} at {chosen.name}), "
            f"so it is not usable: use estimator and layer as found, and report this with the model's name"
        )
    return deployed, {"point": chosen.name, "max_abs_difference": difference, "labels_identical": same}


def _few_samples(loaded: LoadedModel, source: Source | Stream) -> Batch:
    preprocessing = None if source.kind == "array" else loaded.preprocessing
    reading = batches(source, preprocessing, batch_size=8, tokenizer=loaded.tokenize)
    try:
        return next(batch for batch in reading if batch.records)
    finally:
        reading.close()


class _Step:
    """One timed step; `amount` of `unit` makes it a rate."""

    def __init__(self, unit: str | None) -> None:
        self.unit, self.amount = unit, 0


class _Clock:
    """Times the steps of a run for its report."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    @contextmanager
    def __call__(self, step: str, *, unit: str | None = None) -> Iterator[_Step]:
        timed, started = _Step(unit), time.perf_counter()
        yield timed
        seconds = time.perf_counter() - started
        rate = {"rate": timed.amount / seconds, "unit": f"{unit}/s"} if timed.amount else {}
        self.steps.append({"step": step, "seconds": seconds, **rate})
