"""`compare`: does the second recipe beat the first? Paired seeds, equal steps, equal time, an answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import floor
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

from spile.data import Skipped
from spile.errors import TrainingError
from spile.fitting import Epoch
from spile.probing.preparing import make_folder
from spile.probing.record import about, write_json
from spile.reporting import write_report
from spile.training.recipe import Recipe
from spile.training.record import chart, left_out
from spile.training.running import fit
from spile.training.statistics import Difference, Reached, paired_difference, time_to


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Both recipes at one budget: the held-out accuracy of every seed."""

    budget: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    epochs: tuple[int, int]
    difference: Difference


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What `compare` found. Printed, it says whether the second recipe is better."""

    names: tuple[str, str]
    seeds: tuple[int, ...]
    equal_steps: Scores
    equal_time: Scores | None
    """The faster recipe with as many more epochs as fit into the time of the slower, if asked for."""
    seconds: tuple[float, float]
    """Of training steps, the median run of each at equal steps."""
    accuracy: float
    """What `reached` is about."""
    reached: tuple[Reached, Reached]
    curves: tuple[tuple[tuple[Epoch, ...], ...], tuple[tuple[Epoch, ...], ...]]
    """Of each recipe and seed, at equal steps."""
    report: Path | None = None

    @property
    def verdict(self) -> str:
        """One or two sentences: yes, no, or not shown."""
        return verdict(self.names[1], self.equal_steps, self.equal_time)

    def to_json(self) -> dict[str, Any]:
        """All numbers, as plain data."""
        both = [scores for scores in (self.equal_steps, self.equal_time) if scores is not None]
        return {
            "names": self.names,
            "verdict": self.verdict,
            "seeds": self.seeds,
            "seconds": self.seconds,
            "budgets": [asdict(scores) for scores in both],
            "accuracy": self.accuracy,
            "reached": [asdict(each) for each in self.reached],
        }

    def __str__(self) -> str:
        lines = []
        for scores in (self.equal_steps, self.equal_time):
            if scores is not None:
                found = scores.difference
                lines.append(
                    f"{scores.budget}: {self.names[0]} {fmean(scores.a):.3f} (epochs: {scores.epochs[0]}), "
                    f"{self.names[1]} {fmean(scores.b):.3f} (epochs: {scores.epochs[1]}), difference "
                    f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] over {found.pairs} seeds"
                )
        for name, reached in zip(self.names, self.reached, strict=True):
            when = (
                f"after {reached.mean_epochs:.1f} epochs, {reached.mean_seconds:.1f} s"
                if reached.mean_epochs is not None and reached.mean_seconds is not None
                else "never"
            )
            lines.append(
                f"accuracy {self.accuracy:.3f}: {name} {when} ({reached.count} of {len(self.seeds)} seeds)"
            )
        return "\n".join([*lines, self.verdict])


def compare(
    recipe_a: Recipe,
    recipe_b: Recipe,
    seeds: int = 5,
    *,
    names: tuple[str, str] = ("a", "b"),
    accuracy: float | None = None,
    level: float = 0.95,
    equal_time: bool = True,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
    title: str | None = None,
    command: str | None = None,
) -> Comparison:
    """Train two recipes with the same seeds and say whether the second is better. The answer may be no.

    Of one seed both have the same initial weights of the model, order of rows and held-out rows. First both
    take equally many epochs, in turns; then the faster one is trained anew with as many epochs as fit into
    the slower one's time, so that auxiliary heads, which cost time, are held against longer training. The
    interval is Student's t of the paired differences.

    Args:
        recipe_a: the baseline. Its model is a reference or a function, since every run needs a new one.
        recipe_b: the other; with the same data and as many epochs.
        seeds: how many, from 0; two or more.
        names: what the two are called.
        accuracy: that time is taken to; by default the lower of the two mean final accuracies.
        level: of the interval.
        equal_time: also compare at equal training time.
        out: a folder for ``run.json`` and ``report.html``; it must not hold a run.
        progress: show bars.
        title: of the report.
        command: what was typed, for the report.

    Raises `TrainingError` where the recipes cannot be compared, and `StoreError` where `out` cannot be made.
    """
    _check(recipe_a, recipe_b, seeds, level)
    folder = None if out is None else _folder(Path(out))
    recipes = (recipe_a, recipe_b)
    runs: tuple[list[tuple[Epoch, ...]], list[tuple[Epoch, ...]]] = ([], [])
    skipped: dict[int, Skipped] = {}
    for seed in range(seeds):
        for recipe, found in zip(recipes, runs, strict=True):
            found.append(_run(recipe, seed, progress, skipped))
    a, b = ([_final(epochs) for epochs in found] for found in runs)
    seconds = (median(run[-1]["seconds"] for run in runs[0]), median(run[-1]["seconds"] for run in runs[1]))
    ratio = median(b[-1]["seconds"] / a[-1]["seconds"] for a, b in zip(*runs, strict=True))
    wanted = accuracy if accuracy is not None else floor(1000 * min(fmean(a), fmean(b))) / 1000
    epochs = (recipe_a.epochs, recipe_b.epochs)
    made = Comparison(
        names=names,
        seeds=tuple(range(seeds)),
        equal_steps=_scores("equal steps", a, b, epochs, level),
        equal_time=_at_equal_time(recipes, (a, b), ratio, level, progress, skipped) if equal_time else None,
        seconds=seconds,
        accuracy=wanted,
        reached=(_reached(runs[0], wanted), _reached(runs[1], wanted)),
        curves=(tuple(runs[0]), tuple(runs[1])),
    )
    if folder is None:
        return made
    write_json(folder / "run.json", {**record(made, title, command), **left_out(skipped)})
    return replace(made, report=write_report(folder))


def verdict(name: str, equal_steps: Scores, equal_time: Scores | None) -> str:
    """In words, whether the recipe called `name` is better. Pure."""
    signs = [scores.difference.sign for scores in (equal_steps, equal_time) if scores is not None]
    said = [_said(scores) for scores in (equal_steps, equal_time) if scores is not None]
    if all(sign > 0 for sign in signs):
        answer = f"Yes: {name} is better"
    elif all(sign < 0 for sign in signs):
        answer = f"No: {name} is worse"
    elif signs[0] > 0:
        answer = f"Only per step: {name} is better at equal steps, but that is not shown at equal time"
        answer = answer.replace("not shown", "reversed") if signs[-1] < 0 else answer
    elif any(sign < 0 for sign in signs):
        answer = f"No: {name} is not better at equal steps or time, and worse at one of them"
    elif len(signs) > 1 and signs[1] > 0:
        answer = f"Only per second: {name} is better at equal time, but that is not shown at equal steps"
    else:
        answer = f"No: it is not shown that {name} is better"
    return f"{answer} ({'; '.join(said)})."


def _said(scores: Scores) -> str:
    found = scores.difference
    return (
        f"{scores.budget}: {100 * found.mean:+.1f} points, {100 * found.level:.0f} % interval "
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}, {found.pairs} seeds"
    )


def _check(a: Recipe, b: Recipe, seeds: int, level: float) -> None:
    for recipe in (a, b):
        if not isinstance(recipe, Recipe):
            raise TrainingError(
                f"compare takes two recipes, not a {type(recipe).__name__}: spile.Recipe(model=..., data=...)"
            )
        if not isinstance(recipe.model, str) and (hasattr(recipe.model, "model") or _is_object(recipe.model)):
            raise TrainingError(
                f"a {type(recipe.model).__name__} would be trained further by every run: give a reference "
                "such as 'timm:resnet18', or a function that makes the model"
            )
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 2:
        raise TrainingError(f"seeds={seeds!r}: an interval needs seeds=2 or more; 5 is a start")
    if not 0 < level < 1:
        raise TrainingError(f"level={level!r}: write a confidence between 0 and 1, such as 0.95")
    if a.epochs != b.epochs or a.batch_size != b.batch_size or a.accumulate != b.accumulate:
        raise TrainingError(
            "the recipes take other numbers of steps: give both the same epochs, batch_size and accumulate"
        )


def _folder(folder: Path) -> Path:
    """Make the folder, before hours are spent on what goes there."""
    if (folder / "run.json").exists():
        raise TrainingError(f"{folder} holds a run already: name another folder (out=, --out)")
    return make_folder(folder)


def _is_object(model: Any) -> bool:
    from spile.backend import framework_of

    return framework_of(model) is not None


def _run(recipe: Recipe, seed: int, progress: bool, skipped: dict[int, Skipped]) -> tuple[Epoch, ...]:
    """What was measured after every epoch; what could not be read is added to `skipped`."""
    with TemporaryDirectory() as folder:
        _, reader, fitted = fit(recipe, Path(folder), seed=seed, progress=progress)
    skipped.update(reader.skipped)
    if not len(reader.rows.test):
        raise TrainingError(
            f"{reader.source.name}: there are no test rows to compare on; give a split column"
        )
    if recipe.patience is not None:
        return fitted.epochs[: fitted.best + 1]
    return fitted.epochs


def _final(epochs: Sequence[Epoch]) -> float:
    return epochs[-1]["test/accuracy"]


def _scores(
    budget: str, a: Sequence[float], b: Sequence[float], epochs: tuple[int, int], level: float
) -> Scores:
    found = paired_difference(a, b, level=level)
    return Scores(budget=budget, a=tuple(a), b=tuple(b), epochs=epochs, difference=found)


def _at_equal_time(
    recipes: tuple[Recipe, Recipe],
    scores: tuple[Sequence[float], Sequence[float]],
    ratio: float,
    level: float,
    progress: bool,
    skipped: dict[int, Skipped],
) -> Scores:
    """The faster recipe with more epochs; `ratio` is the time of b over that of a."""
    epochs = [recipe.epochs for recipe in recipes]
    faster = 0 if ratio >= 1 else 1
    longer = max(epochs[faster], round(epochs[faster] * max(ratio, 1 / ratio)))
    found = list(scores)
    if longer > epochs[faster]:
        stretched = replace(recipes[faster], epochs=longer)
        found[faster] = [_final(_run(stretched, seed, progress, skipped)) for seed in range(len(scores[0]))]
        epochs[faster] = longer
    return _scores("equal time", found[0], found[1], (epochs[0], epochs[1]), level)


def _reached(runs: Sequence[Sequence[Epoch]], wanted: float) -> Reached:
    def when(name: str) -> tuple[float | None, ...]:
        return tuple(
            time_to([row["test/accuracy"] for row in run], [row[name] for row in run], wanted=wanted)
            for run in runs
        )

    return Reached(epochs=when("epoch"), seconds=when("seconds"))


def record(made: Comparison, title: str | None, command: str | None) -> dict[str, Any]:
    """``run.json`` of a comparison: its tables, and the mean accuracy of each recipe by epoch."""
    both = [scores for scores in (made.equal_steps, made.equal_time) if scores is not None]
    length = min(len(run) for runs in made.curves for run in runs)
    means = [
        {"name": name, "values": [fmean(run[i]["test/accuracy"] for run in runs) for i in range(length)]}
        for name, runs in zip(made.names, made.curves, strict=True)
    ]
    return {
        **about(title or f"{made.names[1]} against {made.names[0]}", command),
        "training": {
            "epochs": [row["epoch"] for row in made.curves[0][0][:length]],
            "charts": [chart("Accuracy", means, words="On held-out rows, mean over the seeds.", share=True)],
        },
        "comparison": {
            "a": made.names[0],
            "b": made.names[1],
            "verdict": made.verdict,
            "level": made.equal_steps.difference.level,
            "seeds": made.seeds,
            "budgets": [
                {
                    "budget": scores.budget,
                    "a": scores.a,
                    "b": scores.b,
                    "mean": scores.difference.mean,
                    "low": scores.difference.low,
                    "high": scores.difference.high,
                    "epochs_a": scores.epochs[0],
                    "epochs_b": scores.epochs[1],
                }
                for scores in both
            ],
            "reached": [
                {
                    "name": name,
                    "wanted": made.accuracy,
                    "count": reached.count,
                    "seeds": len(made.seeds),
                    "epochs": reached.mean_epochs,
                    "seconds": reached.mean_seconds,
                }
                for name, reached in zip(made.names, made.reached, strict=True)
            ],
        },
    }
