from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from spile.data import Skipped
from spile.errors import StoreError, TrainingError
from spile.fitting import Fitted
from spile.reporting.record import read_run
from spile.training import Recipe, Supervision, comparing
from spile.training.comparing import Scores, compare, verdict
from spile.training.statistics import Difference


def scores(mean: float, half: float, budget: str = "equal steps") -> Scores:
    difference = Difference(mean=mean, low=mean - half, high=mean + half, level=0.95, pairs=5)
    return Scores(budget=budget, a=(), b=(), epochs=(1, 1), difference=difference)


@pytest.mark.parametrize(
    "steps, time, answer",
    [
        (0.1, 0.1, "Yes: b is better"),
        (-0.1, -0.1, "No: b is worse"),
        (0.0, 0.0, "No: it is not shown that b is better"),
        (0.1, 0.0, "Only per step: b is better at equal steps, but that is not shown at equal time"),
        (0.1, -0.1, "Only per step: b is better at equal steps, but that is reversed at equal time"),
        (0.0, 0.1, "Only per second"),
        (0.0, -0.1, "No: b is not better at equal steps or time, and worse at one of them"),
        (0.1, None, "Yes: b is better"),
        (0.0, None, "No: it is not shown"),
    ],
)
def test_the_verdict_says_yes_only_where_the_intervals_do(
    steps: float, time: float | None, answer: str
) -> None:
    found = verdict("b", scores(steps, 0.05), None if time is None else scores(time, 0.05, "equal time"))
    assert found.startswith(answer)
    assert "95 % interval" in found


class Runs:
    """In place of training: accuracies grow with epochs, heads cost double time."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.asked: list[tuple[bool, int, int]] = []

    def __call__(self, recipe: Recipe, folder: Path, *, seed: int, progress: bool) -> Any:
        heads = recipe.supervise is not None
        self.asked.append((heads, seed, recipe.epochs))
        top = 0.6 + 0.01 * seed + self.gain * heads
        epochs = tuple(
            {
                "epoch": float(e),
                "seconds": e * (2.0 if heads else 1.0),
                "test/accuracy": top + 0.001 * (seed % 2) * heads - 0.1 / e,
            }
            for e in range(1, recipe.epochs + 1)
        )

        class Rows:
            test = (0,)

        class Reader:
            rows = Rows
            skipped = MappingProxyType({3: Skipped(3, "gone.png", "file not found")})

        return None, Reader, Fitted(epochs=epochs, best=len(epochs) - 1)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(model="timm:resnet18", data="demo:digits", epochs=4)


def test_both_budgets_and_the_time_to_accuracy(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = Runs(gain=0.05)
    monkeypatch.setattr(comparing, "fit", runs)
    found = compare(
        recipe, replace(recipe, supervise=Supervision()), 3, names=("plain", "heads"), out=tmp_path
    )
    assert runs.asked[:4] == [(False, 0, 4), (True, 0, 4), (False, 1, 4), (True, 1, 4)]
    assert runs.asked[6:] == [(False, seed, 8) for seed in range(3)]
    assert found.equal_steps.difference.mean == pytest.approx(0.05, abs=0.002)
    assert found.equal_time is not None and found.equal_time.epochs == (8, 4)
    assert found.equal_time.difference.mean == pytest.approx(0.05 - 0.1 / 4 + 0.1 / 8, abs=0.002)
    assert found.verdict.startswith("Yes: heads is better")
    assert found.reached[1].mean_epochs is not None
    assert "accuracy" in str(found) and found.verdict in str(found)
    record = read_run(tmp_path)
    assert record.comparison is not None and record.comparison.verdict == found.verdict
    assert [bad.id for bad in record.skipped] == ["gone.png"] and record.skipped_total == 1
    html = (tmp_path / "report.html").read_text()
    assert "Equal time" in html and found.verdict in html
    json.dumps(found.to_json())


def test_a_folder_that_will_not_do_is_refused_before_anything_is_trained(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = Runs(gain=0.0)
    monkeypatch.setattr(comparing, "fit", runs)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(TrainingError, match="holds a run already: name another folder"):
        compare(recipe, recipe, 2, out=tmp_path)
    with pytest.raises(StoreError, match=r"cannot write to .*: Not a directory\. Name another folder"):
        compare(recipe, recipe, 2, out=tmp_path / "run.json" / "new")
    assert not runs.asked


def test_no_gain_is_a_no(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "fit", Runs(gain=0.0))
    found = compare(recipe, replace(recipe, supervise=Supervision()), 3, equal_time=False)
    assert found.verdict.startswith("No")
    assert found.equal_time is None


@pytest.mark.parametrize(
    "change, options, words",
    [
        ({"epochs": 5}, {}, "other numbers of steps"),
        ({}, {"seeds": 1}, "seeds=1: an interval needs seeds=2 or more"),
        ({}, {"level": 95}, "level=95"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    recipe: Recipe, change: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        compare(recipe, replace(recipe, **change), **options)


def test_a_model_object_is_refused(recipe: Recipe) -> None:
    from torch import nn

    with pytest.raises(TrainingError, match="a Linear would be trained further by every run"):
        compare(recipe, replace(recipe, model=nn.Linear(2, 2)))
