"""Transfer: extract, probe, pick, fit, save, verify, report. One call from a network to a classifier."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spile.backend import backend_of
from spile.errors import ProbeError
from spile.extraction import extract
from spile.interfaces import Precision
from spile.models import as_loaded
from spile.preprocessing import Preprocessing
from spile.probing import deployment
from spile.probing.combining import Combine
from spile.probing.exporting import Export
from spile.probing.heads import check_name
from spile.probing.leaks import warn_of_split
from spile.probing.measuring import CurvePoint, curve_of, held_out_scores, mean_scores
from spile.probing.metrics import Metric
from spile.probing.precisions import PrecisionChange, compare_precisions
from spile.probing.preparing import example_of, few_samples, make_folder, open_data, tap_for, texts_of
from spile.probing.record import write_record
from spile.probing.result import ProbeResult
from spile.probing.rows import split_rows
from spile.probing.saving import save_and_verify
from spile.probing.search import Rule, probe
from spile.probing.task import Estimator
from spile.reporting import write_report
from spile.resolution import AddressesLike
from spile.store import Store


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
    curve: tuple[CurvePoint, ...]
    """The same for each number of labels a class, where several were asked for."""
    seeds: int
    precision: PrecisionChange | None
    """What computing in less than float32 did to the score; ``None`` in float32."""
    report: Path

    def export(
        self, folder: str | os.PathLike[str], data: Any, *, formats: str | Sequence[str] = "all"
    ) -> Export:
        """The chosen model as one file a format, verified on `data`: see `Deployed.export`."""
        return self.model.export(Path(folder), data, formats=formats)

    def __str__(self) -> str:
        best = self.result.best
        words = {"chosen": "chosen layer", "last": "last layer", "raw": "raw input", "tfidf": "tf-idf"}
        means = ", ".join(f"{words[kind]} {score:.3f}" for kind, score in self.means.items())
        lines = [
            f"{best.point}: {best.score:.3f} ± {best.stderr:.3f} by cross-validation",
            f"held-out rows: {means}{f' (mean of {self.seeds} seeds)' if self.seeds > 1 else ''}"
            if means
            else "",
            *(str(point) for point in self.curve),
            "" if self.precision is None else str(self.precision),
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
    head: Estimator = None,
    calibrate: bool = False,
    combine: Combine = "single",
    rule: Rule = "best",
    metric: Metric = "auto",
    cv: int = 5,
    max_macs: int | None = None,
    max_params: int | None = None,
    max_bytes: int | None = None,
    nested: bool | Literal["auto"] = "auto",
    unit_rows: bool = False,
    shots: int | Sequence[int] | None = None,
    seeds: int = 1,
    group_duplicates: bool = False,
    precision: Precision = "float32",
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
    the training rows alone; the best, or a combination, is refitted on all of them, saved to ``out/model``
    together with the network up to there, loaded back and compared. Rows of the split ``test`` (else
    ``val``), or a fifth set aside, only measure the result.

    Args:
        model: a model object, a reference such as ``"timm:resnet50"``, or what `spile.load_model` gave.
        data: labelled data, anything `spile.extract` takes.
        out: the run's folder.
        addresses: which layers to compare.
        preprocessing: what uint8 images get; a model object does not tell it.
        estimator: what layers are compared with: ``"ridge"``, a name of `spile.probing.heads.NAMES`, or a
            scikit-learn estimator.
        head: what is fitted on the chosen layer and saved; by default `estimator`.
        calibrate: map the probabilities of a head other than ridge, whose are calibrated always.
        combine: see `spile.probe`, as for `rule`, `metric`, `nested` and the limits.
        rule: how the layer is chosen.
        metric: what scores are.
        cv: folds.
        max_macs: limit of multiply-accumulates a sample.
        max_params: limit of parameters.
        max_bytes: limit of the size of the weights.
        nested: whether to estimate the score of choosing.
        unit_rows: divide each row of single layers by its length too, see `spile.probe`.
        shots: use only so many labels of every class for choosing and fitting; the rest measures. Several
            numbers give a learning curve; the model is of the largest.
        seeds: repeat the choice of training rows so often; the report lists them, the first makes the model.
        group_duplicates: keep near-duplicates on one side of every split, see `Store.near_duplicates`; they
            are warned of otherwise.
        precision: what is computed in, as of `spile.extract`. With ``bfloat16`` some training rows are
            computed in float32 too, and the report shows what it changes in the score.
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
    if head is not None:
        check_name(head)
    draws = _draws(shots, seeds)
    clock = _Clock()
    loaded = as_loaded(model)
    if preprocessing is not None:
        loaded = replace(loaded, preprocessing=preprocessing)
    source = open_data(data)
    with clock("look at the model"):
        few = few_samples(loaded, source)
        example = example_of(loaded, few)
        observation = backend_of(loaded.model).observe(loaded.model, example)
    with closing(tap_for(loaded, observation, addresses, example)) as tap:
        deployment.check(tap, example)
        folder = make_folder(out)
        with clock("extract", unit="samples") as timed:
            store = extract(
                tap,
                source,
                folder / "features.lance",
                precision=precision,
                batch_size=batch_size,
                preprocessing=loaded.preprocessing,
                max_bad=max_bad,
                progress=progress,
            )
            timed.amount = len(store)
    with clock("choose a layer"):
        texts = texts_of(source, store)
        groups = store.near_duplicates().groups if group_duplicates else None
        splits = [split_rows(store, shots=number, seed=seed, groups=groups) for number, seed in draws]
        warn_of_split(store, splits[0])
        results = [
            probe(
                store,
                estimator=estimator,
                rule=rule,
                combine=combine,
                metric=metric,
                cv=cv,
                rows=split.train,
                groups=groups,
                texts=texts,
                seed=seed,
                max_macs=max_macs,
                max_params=max_params,
                max_bytes=max_bytes,
                nested=nested if index == 0 else False,
                unit_rows=unit_rows,
            )
            for index, (split, (_, seed)) in enumerate(zip(splits, draws, strict=True))
        ]
        held_out = held_out_scores(store, results, splits, head=head, texts=texts)
        fitted = _fit(results[0], estimator if head is None else head, calibrate=calibrate)
        change = compare_precisions(
            results[0],
            precision,
            tap=lambda: tap_for(loaded, observation, addresses, example),
            source=source,
            store=store,
            preprocessing=loaded.preprocessing,
        )
    with clock("save and verify"):
        deployed, verified = save_and_verify(folder / "model", loaded, tap, results[0], fitted, few, store)
    curve = curve_of(draws, results, held_out)
    write_record(
        folder,
        loaded=loaded,
        points=tap.points,
        whole=observation.root,
        source=source,
        store=store,
        results=results[:seeds],
        splits=splits,
        held_out=held_out,
        head=fitted,
        shots=draws[0][0],
        curve=curve,
        title=title,
        command=command,
        verified=verified,
        precision=change,
        timings=clock.steps,
        show=show,
    )
    return TransferRun(
        path=folder,
        store=store,
        result=results[0],
        model=deployed,
        test_score=held_out[0].model,
        means=mean_scores(results[:seeds], held_out[:seeds]),
        curve=curve,
        seeds=seeds,
        precision=change,
        report=write_report(folder),
    )


def _draws(shots: int | Sequence[int] | None, seeds: int) -> list[tuple[int | None, int]]:
    """(labels a class, seed) of every repetition; the largest number of labels first."""
    if shots is None or isinstance(shots, int):
        return [(shots, seed) for seed in range(seeds)]
    if not shots:
        raise ProbeError("shots is empty: write shots=10, or several, shots=(5, 10, 50)")
    return [(number, seed) for number in sorted(set(shots), reverse=True) for seed in range(seeds)]


def _fit(result: ProbeResult, head: Estimator, *, calibrate: bool) -> Any:
    classes = result.classes is not None
    return result.fit(estimator=head, calibrate=classes and (calibrate or head == "ridge"))


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
