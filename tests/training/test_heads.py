"""The heads of a run are kept, and given back with its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spile
from spile.data import open_source
from spile.errors import TrainingError
from spile.supervision import Constant
from spile.training.rows import choose_rows


def net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 6, 3, stride=2), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def data(rows: int = 60) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = rng.normal(size=(rows, 1, 8, 8)).astype(np.float32) * 0.3
    x[np.arange(rows), 0, 2 * y] += 1.5
    return x, y


def train(folder: Path, **options: Any) -> spile.training.TrainRun:
    heads = spile.Supervision(taps=["0", "1"], head="bottleneck", weight=Constant(1.0))
    given = {"epochs": 3, "batch_size": 12, "rate": 2e-2, "progress": False, "diagnose": False}
    return spile.train(net, data(), folder, **given | {"supervise": heads} | options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> spile.training.TrainRun:
    return train(tmp_path_factory.mktemp("heads") / "run")


@pytest.mark.parametrize("given", ["the folder", "the model"])
def test_they_are_those_that_were_trained(run: spile.training.TrainRun, given: str) -> None:
    """On the held-out rows they have the accuracy that the run noted after its last epoch."""
    x, y = data()
    rows = choose_rows(open_source((x, y)), shots=None, validate=False, seed=0, unlabelled=False).test
    supervised = spile.load_supervised(run.path, model=run.loaded if given == "the model" else None)
    supervised.eval()
    with torch.no_grad():
        output = supervised(torch.from_numpy(x[rows]))
    assert list(output.aux) == ["0", "1"]
    for name, logits in {"": output.main, **{f"{n}/": each for n, each in output.aux.items()}}.items():
        found = float((logits.argmax(1).numpy() == y[rows]).mean())
        assert found == pytest.approx(run.epochs[-1][f"test/{name}accuracy"]), name
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(y[rows]))
        assert float(loss) == pytest.approx(run.epochs[-1][f"test/{name}loss"], rel=1e-4), name
    assert (supervised.base is run.model) == (given == "the model")
    supervised.strip()


def test_early_exits_of_a_run(run: spile.training.TrainRun) -> None:
    x, y = data()
    exits = spile.load_supervised(run.path, model=net()).exits((x, y), accuracy=0.0)
    with torch.no_grad():
        assert torch.equal(exits.base(torch.from_numpy(x)), run.model(torch.from_numpy(x)))
    assert exits(torch.from_numpy(x[:5])).logits.shape == (5, 3) and exits.report is not None


def test_a_head_of_ones_own_is_given_and_gets_its_weights(tmp_path: Path) -> None:
    def make(channels: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, 3))

    own = spile.Supervision(taps=["0"], head=make, weight=0.5)
    found = train(tmp_path / "run", supervise=own, epochs=1)
    with pytest.raises(TrainingError, match=r"head=\{'0': module\}"):
        spile.load_supervised(found.path)
    twice = [spile.load_supervised(found.path, head={"0": make}) for _ in range(2)]
    first, second = (each.heads["0"].state_dict() for each in twice)
    assert first and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_without_heads_and_one_that_cannot_be_loaded(
    run: spile.training.TrainRun, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"holds no heads.*--supervise"):
        spile.load_supervised(train(tmp_path / "bare", supervise=None, epochs=1).path)
    with pytest.raises(TrainingError, match="holds no heads"):
        spile.load_supervised(tmp_path / "nothing")
    folder = tmp_path / "odd"
    folder.mkdir()
    kept = json.loads((run.path / "model" / "heads.json").read_text())
    (folder / "heads.json").write_text(json.dumps(kept))
    with pytest.raises(TrainingError, match="no model that can be loaded"):
        spile.load_supervised(folder)
    (folder / "heads.json").write_text(json.dumps(kept | {"format": 0}))
    with pytest.raises(TrainingError, match="has format 0, and this spile reads 1"):
        spile.load_supervised(folder)
    (folder / "heads.json").write_text("[]")
    with pytest.raises(TrainingError, match="is broken"):
        spile.load_supervised(folder)
