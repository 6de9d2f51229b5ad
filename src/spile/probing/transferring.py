"""Transfer: extract, probe, pick, fit, save, verify, report. One call from a network to a classifier."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile import structure
from spile.backend import Tap, backend_of
from spile.data import Batch, Source, Stream, batches, open_source
from spile.errors import AddressError, CaptureError, DataError, ModelError, ProbeError, StoreError
from spile.extraction import extract
from spile.models import LoadedModel, as_loaded
from spile.observation import Observation
from spile.preprocessing import ImagePreprocessing, Preprocessing
from spile.probing import deployment
from spile.probing.record import Verified, write_record
from spile.probing.result import ProbeResult
from spile.probing.rows import Split, check_labels, labels_of, split_rows
from spile.probing.scoring import score_predictions
from spile.probing.search import Rule, probe
from spile.probing.task import Estimator
from spile.reporting import write_report
from spile.resolution import AddressesLike, AddressLike
from spile.store import Store
from spile.taps import tap as make_tap

Array = npt.NDArray[Any]

_RAW_IMAGE, _RAW_VECTOR = "raw pixels", "raw input"
_RAW_CELLS = "grid:28"
_FEW = 8
_TOLERANCE = 1e-4
"""How far the saved model's features may be off, as a share of the largest."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TransferRun:
    """What `transfer` made, and where it lies."""

    path: Path
    store: Store
    result: ProbeResult
    model: deployment.Deployed
    test_score: float | None
    """Of the chosen layer on the rows that took no part in choosing or fitting."""
    means: Mapping[str, float]
    """Held-out scores, mean over the seeds: ``"chosen"`` (each seed chose its own), ``"last"``, ``"raw"``."""
    seeds: int
    report: Path

    def __str__(self) -> str:
        best = self.result.best
        words = {"chosen": "chosen layer", "last": "last layer", "raw": "raw input"}
        means = ", ".join(f"{words[kind]} {score:.3f}" for kind, score in self.means.items())
        lines = [
            f"{best.point}: {best.score:.3f} ± {best.stderr:.3f} by cross-validation",
            f"held-out rows: {means}{f' (mean of {self.seeds} seeds)' if self.seeds > 1 else ''}"
            if means
            else "",
            f"report: {self.report}",
        ]
        return "\n".join(filter(None, lines))


def transfer(
    model: Any,
    data: Any,
    out: str | os.PathLike[str] = "run",
    *,
    addresses: AddressesLike = "stages",
    preprocessing: Preprocessing | None = None,
    estimator: Estimator = "ridge",
    rule: Rule = "best",
    cv: int = 5,
    shots: int | None = None,
    seeds: int = 1,
    batch_size: int | Literal["auto"] = "auto",
    max_bad: float = 0.01,
    progress: bool = True,
    title: str | None = None,
    command: str | None = None,
    show: Sequence[tuple[str, Any]] = (),
) -> TransferRun:
    """Find the layer of a pretrained model that suits a task, fit a model on it, save both with a report.

    The layers at `addresses`, the model's last features and its raw input are extracted in one pass into
    ``out/features.lance`` (a second run goes on from there). Every layer is scored by cross-validation on
    the training rows alone; the best is refitted on all of them, saved to ``out/model`` together with the
    network up to that layer, loaded back and compared. Rows of the split ``test`` (else ``val``), or a fifth
    set aside, only measure the result.

    Args:
        model: a model object, a reference such as ``"timm:resnet50"``, or what `spile.load_model` gave.
        data: labelled data, anything `spile.extract` takes.
        out: the run's folder.
        addresses: which layers to compare.
        preprocessing: what uint8 images get; a model object does not tell it.
        estimator: ``"ridge"`` or a scikit-learn estimator.
        rule: how the layer is chosen, see `spile.probe`.
        cv: folds.
        shots: use only so many labels of every class for choosing and fitting; the rest measures.
        seeds: repeat the choice of training rows so often; the report lists them, the first makes the model.
        batch_size: samples a batch.
        max_bad: share of samples that may be unreadable.
        progress: show a bar where standard error is a terminal.
        title: of the report.
        command: what was typed, for the report.
        show: further images for the activation maps, as ``(title, pixels)``, drawn at 224 pixels.

    Raises `ProbeError` where the labels do not suffice, and all that `spile.extract` raises.
    """
    if seeds < 1:
        raise ProbeError(f"seeds={seeds} is no count of repetitions: write seeds=1 or more")
    clock = _Clock()
    loaded = as_loaded(model)
    if preprocessing is not None:
        loaded = replace(loaded, preprocessing=preprocessing)
    source = _open(data)
    with clock("look at the model"):
        few = _few_samples(loaded, source)
        example = _example(loaded, few)
        observation = backend_of(loaded.model).observe(loaded.model, example)
        tap = _tap(loaded, observation, addresses, example)
        deployment.check(tap, example)
    folder = _make_folder(out)
    with clock("extract", unit="samples") as timed:
        store = extract(
            tap,
            source,
            folder / "features.lance",
            batch_size=batch_size,
            preprocessing=loaded.preprocessing,
            max_bad=max_bad,
            progress=progress,
        )
        timed.amount = len(store)
    tap.close()
    with clock("choose a layer"):
        splits = [split_rows(store, shots=shots, seed=seed) for seed in range(seeds)]
        results = [
            probe(store, estimator=estimator, rule=rule, cv=cv, rows=split.train, seed=seed)
            for seed, split in enumerate(splits)
        ]
        scored = _test_scores(store, results, splits)
        head = results[0].fit()
    with clock("save and verify"):
        deployed, verified = _deploy(folder / "model", loaded, tap, results[0], head, few, store)
    write_record(
        folder,
        loaded=loaded,
        points=tap.points,
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
        verified=verified,
        timings=clock.steps,
        show=show,
    )
    return TransferRun(
        path=folder,
        store=store,
        result=results[0],
        model=deployed,
        test_score=scored[0].get(results[0].best.point),
        means=_means(results, scored),
        seeds=seeds,
        report=write_report(folder),
    )


def _open(data: Any) -> Source | Stream:
    """The data, which is read twice: a few samples, then all. What is useless is refused."""
    if isinstance(data, Iterator):
        raise DataError(
            f"a {type(data).__name__} can be read only once: pass what makes it, such as a DataLoader, a "
            "list of samples, or arrays (x, y)"
        )
    source = open_source(data)
    if isinstance(source, Source):
        check_labels(record.label for record in source.records)
    return source


def _few_samples(loaded: LoadedModel, source: Source | Stream) -> Batch:
    """A few samples as the model is given them, for the dry pass and for comparing the saved model."""
    preprocessing = None if source.kind == "array" else loaded.preprocessing
    reading = batches(source, preprocessing, batch_size=_FEW, tokenizer=loaded.tokenize)
    skipped: list[str] = []
    try:
        for batch in reading:
            if batch.records:
                return batch
            skipped += [f"{bad.id}: {bad.reason}" for bad in batch.skipped]
    finally:
        reading.close()
    raise DataError(f"{source.name}: not one sample can be used ({'; '.join(skipped[:3]) or 'it is empty'})")


def _example(loaded: LoadedModel, few: Batch) -> Any:
    return backend_of(loaded.model).example(few.inputs, preprocessing=_images(loaded), model=loaded.model)


def _images(loaded: LoadedModel) -> ImagePreprocessing | None:
    return loaded.preprocessing if isinstance(loaded.preprocessing, ImagePreprocessing) else None


def _make_folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}. Name another folder (out=, --out)"
        ) from error
    return folder


def _tap(loaded: LoadedModel, observation: Observation, addresses: AddressesLike, example: Any) -> Tap:
    """The wanted layers, the last features, and the input where it is one image or one vector."""
    wanted: dict[str, AddressLike] = {}
    raw = _raw(observation)
    if raw is not None:
        wanted[raw] = "@in"
    with closing(make_tap(loaded, addresses, example=example)) as found:
        wanted |= {point.name: point.address for point in found.points}
        taken = {point.address for point in found.points}
    last = structure.last_features(observation)
    if last not in taken:
        wanted[last] = last
    return make_tap(loaded, wanted, pool={raw: _RAW_CELLS} if raw == _RAW_IMAGE else "auto", example=example)


def _raw(observation: Observation) -> str | None:
    items = observation.root.inputs
    if len(items) != 1 or not items[0].dtype.startswith("float"):
        return None
    return {"BCYX": _RAW_IMAGE, "BYXC": _RAW_IMAGE, "BC": _RAW_VECTOR}.get(items[0].layout or "")


def _test_scores(
    store: Store, results: Sequence[ProbeResult], splits: Sequence[Split]
) -> list[dict[str, float]]:
    """Of every repetition, the held-out score of each scored point; reported, never used to choose.

    One pass over each column serves all repetitions.
    """
    scores: list[dict[str, float]] = [{} for _ in results]
    measured = [index for index, split in enumerate(splits) if len(split.test)]
    for point in [row.point for row in results[0].table if row.score is not None]:
        heads = [results[index].fit(point) for index in measured]
        predicted: list[list[Array]] = [[] for _ in measured]
        start = 0
        for values in store[point].batches():
            for head, index, found in zip(heads, measured, predicted, strict=True):
                test = splits[index].test
                mine = test[slice(*np.searchsorted(test, [start, start + len(values)]))] - start
                if len(mine):
                    found.append(np.asarray(head.predict(values[mine].reshape(len(mine), -1))))
            start += len(values)
        for index, found in zip(measured, predicted, strict=True):
            score = _score(results[index], labels_of(store, splits[index].test), np.concatenate(found))
            if score is not None:
                scores[index][point] = score
    return scores


def _means(results: Sequence[ProbeResult], scored: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over the seeds; what no seed measured is left out."""
    found: dict[str, list[float]] = {"chosen": [], "last": [], "raw": []}
    for result, scores in zip(results, scored, strict=True):
        points = {row.baseline: row.point for row in result.table if row.baseline}
        for kind, point in {"chosen": result.best.point, **points}.items():
            if point in scores:
                found[kind].append(scores[point])
    return {kind: float(np.mean(values)) for kind, values in found.items() if values}


def _score(result: ProbeResult, true: Array, predicted: Array) -> float | None:
    """``None`` where it is not defined: R² of one row."""
    if result.metric == "r2" and len(true) < 2:
        return None
    return score_predictions(result.metric, true, predicted)


def _deploy(
    folder: Path,
    loaded: LoadedModel,
    tap: Tap,
    result: ProbeResult,
    head: Any,
    few: Batch,
    store: Store,
) -> tuple[deployment.Deployed, Verified]:
    """Save the network up to the chosen point and the head; load them back and compare.

    A network that its reference does not give back is saved as a program.
    """
    chosen = next(point for point in tap.points if point.name == result.best.point)
    example = _example(loaded, few)
    about = {
        "input_size": loaded.input_size,
        "point": chosen.name,
        "fingerprint": store.fingerprint,
        "macs": chosen.macs,
        "params": chosen.params,
    }
    single = make_tap(loaded, {chosen.name: chosen.address}, pool={chosen.name: chosen.pool}, example=example)
    with closing(single):
        problem: ModelError | CaptureError | AddressError | None = None
        for exported in (False, True) if deployment.named(single) else (True,):
            try:
                deployment.save(
                    folder,
                    tap=single,
                    example=example,
                    head=head,
                    preprocessing=loaded.preprocessing,
                    about=about,
                    exported=exported,
                )
                return _verified(folder, single, head, few, _images(loaded))
            except (ModelError, CaptureError, AddressError) as error:
                problem = problem or error
                shutil.rmtree(folder, ignore_errors=True)
    assert problem is not None
    raise problem


def _verified(
    folder: Path, tap: Tap, head: Any, few: Batch, images: ImagePreprocessing | None
) -> tuple[deployment.Deployed, Verified]:
    """The model as it is loaded back. Raises `CaptureError` where it is another one than was measured."""
    (point,) = tap.points
    engine = backend_of(tap.model).engine(tap, preprocessing=images, precision="float32")
    before = np.asarray(engine(few.inputs)[point.name]).reshape(len(few.records), -1)
    deployed = deployment.load(folder, trusted=deployment.untrusted_types(folder))
    after = deployed.batch_features(few)
    difference = float(np.abs(before - after).max()) if before.shape == after.shape else np.inf
    expected = head.predict(before)
    if difference > _TOLERANCE * max(1.0, float(np.abs(before).max())):
        raise CaptureError(
            f"the saved model gives other features at {point.name} than the one that was measured (off by "
            f"{difference:.3g}), so it was not kept: does its output depend on more than its input?"
        )
    if not np.array_equal(expected, deployed.head.predict(before)):
        raise CaptureError(
            f"the saved {type(head).__name__} predicts otherwise than the fitted one; not kept"
        )
    same = np.array_equal(expected, deployed.head.predict(after))
    labels = None if deployed.classes is None else bool(same)
    return deployed, Verified(point=point.name, max_abs_difference=difference, labels_identical=labels)


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
