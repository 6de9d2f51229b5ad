"""`train`: a recipe and a seed to a trained model, its curves and a report."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spile.backend import backend_of
from spile.data import Source
from spile.errors import DataError, StoreError, TrainingError
from spile.fitting import Epoch, Fitted, Job, LabelledBatch
from spile.models import LoadedModel
from spile.preprocessing import ImagePreprocessing
from spile.reporting import write_report
from spile.training.augmenting import Read, augmented, augmenter_of, drawn
from spile.training.building import Built, build, load
from spile.training.heads import save_heads
from spile.training.recipe import Recipe, checked_options
from spile.training.record import known, write_record
from spile.training.rows import Reader, TrainingRows, choose_rows, open_rows
from spile.training.saving import save

_RECIPE = "recipe.json"
_LIMIT = "max_bad"
"""An option that changes no result: a run that stopped there may go on with another."""
_FEW = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainRun:
    """What `train` made, and where it lies."""

    path: Path
    model: Any
    """The trained model, in evaluation mode, without heads; its output is one logit a class of `classes`."""
    classes: tuple[Any, ...]
    epochs: tuple[Epoch, ...]
    """What was measured after every epoch; see `spile.fitting.Epoch`."""
    best: int
    """Position in `epochs` of the one whose weights were kept."""
    weights: Path
    """``model/network.safetensors`` of a PyTorch model, ``model/network.keras`` of a Keras model."""
    problem: str
    """Why the run cannot be loaded, but for its weights: `spile.load`, ``-m RUN``. Empty where it can."""
    report: Path
    loaded: LoadedModel = field(repr=False)
    """The model with its preprocessing. The heads it was trained with: `spile.load_supervised`."""

    @property
    def accuracy(self) -> float | None:
        """On the test rows, with the weights that were kept; ``None`` without test rows."""
        return known(self.epochs[self.best], "test/accuracy")

    @property
    def seconds(self) -> float:
        """Spent on training steps, measuring apart."""
        return self.epochs[-1]["seconds"]

    def __str__(self) -> str:
        shown = "not measured (no test rows)" if self.accuracy is None else f"{self.accuracy:.3f}"
        lines = [
            f"accuracy on held-out rows: {shown} after epoch {self.best + 1} of {len(self.epochs)}, "
            f"{self.seconds:.1f} s of training",
            f"report: {self.report}",
        ]
        if not self.problem:
            lines.insert(1, f"use it: spile predict {self.path} DATA, or as a model, -m {self.path}")
        return "\n".join(lines)


def train(
    model: Any,
    data: Any = None,
    out: str | os.PathLike[str] = "run",
    *,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    diagnose: bool = True,
    loggers: Sequence[Any] = ("csv",),
    title: str | None = None,
    command: str | None = None,
    **options: Any,
) -> TrainRun:
    """Train a classifier, with auxiliary heads if asked for, and write a report with curves.

    The model's classifier is replaced by one for the classes of the data, unless it has as many outputs. Rows
    of the split ``test`` (else ``val``), or a fifth set aside as by `spile.transfer`, only measure. PyTorch
    models are trained by Lightning, Keras models by `fit`.

    Args:
        model: as `Recipe.model`; or a whole `Recipe`, and neither `data` nor `options`.
        data: as `Recipe.data`.
        out: the run's folder: checkpoints, logs, ``run.json``, ``report.html``.
        seed: of the initial weights, the order of the rows, the rows set aside, dropout.
        resume: go on with a run in `out` that was cut off, from its last whole epoch.
        progress: show bars where standard error is a terminal.
        diagnose: look at gradients after every epoch, layer by layer; costs some passes over one batch.
        loggers: ``"csv"``, ``"tensorboard"``, or loggers of Lightning; callbacks of Keras.
        title: of the report.
        command: what was typed, for the report.
        options: the other fields of `Recipe`, such as ``epochs=20, supervise=spile.Supervision()``.

    Raises `TrainingError`, `SupervisionError`, `DataError`.
    """
    if isinstance(model, Recipe):
        if data is not None or options:
            raise TrainingError("a Recipe holds the data and all options: train(recipe, out=..., seed=...)")
        recipe = model
    else:
        recipe = Recipe(model=model, data=data, **checked_options(options))
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise TrainingError(f"seed={seed!r}: write a whole number of 0 or more")
    folder = _folder(Path(out), recipe, seed, resume)
    built, reader, fitted = fit(
        recipe,
        folder,
        seed=seed,
        resume=resume,
        progress=progress,
        diagnose=diagnose,
        loggers=loggers,
    )
    rows, source = reader.rows, reader.source
    pictures = []
    if built.augmenter is not None and built.drawn_from is not None:
        last = len(fitted.epochs) - 1
        pictures = drawn(built.augmenter, built.drawn_from, source, rows, folder, epoch=last)
    write_record(
        folder,
        recipe=recipe,
        seed=seed,
        built=built,
        rows=rows,
        source=source,
        skipped=reader.skipped,
        fitted=fitted,
        augmented=pictures,
        title=title,
        command=command,
    )
    if built.supervised is not None:
        built.supervised.strip()
    weights, problem = save(folder, built.loaded, classes=rows.classes, main=recipe.main, source=source)
    if built.supervised is not None:
        save_heads(
            weights.parent,
            built.supervised,
            example=built.example,
            classes=len(rows.classes),
            main=recipe.main,
        )
    if problem:
        warnings.warn(f"{folder} can be used through its weights alone, {weights}: {problem}", stacklevel=2)
    return TrainRun(
        path=folder,
        model=built.loaded.model,
        classes=rows.classes,
        epochs=fitted.epochs,
        best=fitted.best,
        weights=weights,
        problem=problem,
        report=write_report(folder),
        loaded=built.loaded,
    )


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    seed: int,
    resume: bool = False,
    progress: bool = False,
    diagnose: bool = False,
    loggers: Sequence[Any] = (),
) -> tuple[Built, Reader, Fitted]:
    """The training itself, without a report. The reader knows the rows, and what could not be read."""
    source = open_rows(recipe.data)
    rows = choose_rows(
        source,
        shots=recipe.shots,
        validate=recipe.patience is not None,
        seed=seed,
        unlabelled=recipe.uses_unlabelled,
    )
    _check_classes(rows, source)
    _warn_of_unseen(rows, source)
    loaded = load(recipe, seed)
    reader = Reader(source, rows, loaded, recipe.batch_size, seed, recipe.max_bad)
    first = _first(reader, source)
    ids = [str(source.records[int(i)].id) for i in rows.labelled]
    built = build(recipe, loaded, rows, ids, few=_some(first.inputs, _FEW), seed=seed)
    images = loaded.preprocessing
    read: Read = reader.train
    if recipe.augment is not None:
        heads = recipe.supervise is not None
        augmenter = augmenter_of(recipe.augment, built, source, rows, seed=seed, heads=heads)
        built = replace(built, augmenter=augmenter, drawn_from=read)
        read = augmented(read, augmenter, source, rows)
    job = Job(
        model=built.loaded.model,
        supervised=built.supervised,
        main=recipe.main,
        images=images if isinstance(images, ImagePreprocessing) else None,
        read=read,
        batches=reader.batches,
        epochs=recipe.epochs,
        measured={
            name: reader.measuring(chosen)
            for name, chosen in (("validation", rows.validation), ("test", rows.test))
            if len(chosen)
        },
        optimizing=recipe.optimizing,
        precision=recipe.precision,
        seed=seed,
        folder=folder,
        resume=resume,
        patience=recipe.patience,
        probe=first if diagnose and built.supervised is not None else None,
        progress=progress and _is_watched(),
        loggers=loggers,
    )
    if job.steps < 1:
        raise TrainingError(
            f"accumulate={recipe.accumulate} is more than the {reader.batches} batches of an epoch: write "
            f"accumulate={reader.batches} or less, or a smaller batch_size"
        )
    return built, reader, backend_of(job.model).fit(job)


def _is_watched() -> bool:
    """Whether standard error is a terminal, or a notebook's."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


def _check_classes(rows: TrainingRows, source: Source) -> None:
    if len(rows.classes) < 2:
        raise TrainingError(
            f"{source.name}: the training rows have {len(rows.classes)} class; a classifier needs two"
        )


def _warn_of_unseen(rows: TrainingRows, source: Source) -> None:
    if not rows.unseen:
        return
    count = int((rows.codes[rows.test] == len(rows.classes)).sum())
    said = (
        f"{source.name}: {count} of {len(rows.test)} test rows are of classes that no training row has: "
        f"{', '.join(map(repr, rows.unseen[:_FEW]))}{', …' if len(rows.unseen) > _FEW else ''}"
    )
    mend = "Add training rows of them, or leave them out"
    warnings.warn(f"{said}. They count as wrong in the accuracy, and not in the loss. {mend}", stacklevel=4)


def _first(reader: Reader, source: Source) -> LabelledBatch:
    found = next(iter(reader.train(0)), None)
    if found is None:
        raise DataError(f"{source.name}: not one training sample can be read")
    return found


def _some(inputs: Any, count: int) -> Any:
    if isinstance(inputs, Mapping):
        return {name: value[:count] for name, value in inputs.items()}
    return inputs[:count]


def _folder(folder: Path, recipe: Recipe, seed: int, resume: bool) -> Path:
    """Make the folder. Raises `TrainingError` where a run is in it that is not to be gone on with."""
    path, wanted = folder / _RECIPE, {**recipe.described(), "seed": str(seed)}
    if path.is_file():
        if not resume:
            raise TrainingError(
                f"{folder} holds a run already: go on with it (resume=True, --resume), or name another folder"
            )
        known = json.loads(path.read_text(encoding="utf-8"))
        names = sorted({*known, *wanted} - {_LIMIT})
        differing = [
            f"{name} was {known.get(name)}, is {wanted.get(name)}"
            for name in names
            if known.get(name) != wanted.get(name)
        ]
        if differing:
            raise TrainingError(f"{folder} holds a run of another recipe: {'; '.join(differing)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}. Name another folder (out=, --out)"
        ) from error
    return folder
