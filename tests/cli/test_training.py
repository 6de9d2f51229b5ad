from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rich
import typer

from spile.cli import app
from spile.cli.training import target_named, weighting_named
from spile.errors import SupervisionError
from spile.supervision import (
    Constant,
    CosineDecay,
    DepthRamp,
    LinearDecay,
    SelfDistill,
    SmoothedLabels,
    Uncertainty,
)

FACTORY = """
from torch import nn

def make():
    body = [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()) for _ in range(1)]
    return nn.Sequential(*body, nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 2))
"""


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    y = np.arange(40) % 2
    x = np.random.default_rng(0).normal(size=(40, 1, 6, 6)).astype(np.float32) + y[:, None, None, None]
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "net.py").write_text(FACTORY)
    return [
        str(tmp_path / "data.npz"),
        "-m",
        f"{tmp_path / 'net.py'}:make",
        "-o",
        str(tmp_path / "run"),
        "-q",
    ]


def spile(*args: str) -> None:
    app([*args], standalone_mode=False)


def test_train_prints_every_epoch_and_where_the_report_is(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spile(
        "train",
        *given,
        "--supervise",
        "0",
        "--head",
        "linear",
        "--targets",
        "labels,self-distill",
        "--weight",
        "constant:0.3",
        "--epochs",
        "2",
        "--rate",
        "0.02",
    )
    out = capsys.readouterr().out
    assert "accuracy on held-out rows" in out and "report.html" in out and "train loss" in out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["training"]["heads"] == ["0"]
    assert record["training"]["options"]["supervise.weight"] == "Constant(total=0.3, share='even')"


def test_compare_prints_a_verdict(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    spile(
        "train",
        *given,
        "--supervise",
        "0",
        "--head",
        "linear",
        "--epochs",
        "1",
        "--compare",
        "--seeds",
        "2",
        "--json",
    )
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] and found["names"] == ["without heads", "with heads"]
    assert Path(found["report"]).is_file()
    with pytest.raises(SupervisionError, match="--supervise auto"):
        spile("train", *given, "--compare")


PRINTS = """
import builtins
builtins.print("made")
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals_and_never_among_the_results(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Path(given[2].removesuffix(":make")).open("a") as file:
        file.write(PRINTS)
    before = dict(vars(rich.get_console()))
    spile("train", *given[:-1], "--epochs", "2", "--json")
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["epochs"]) == 2
    assert "made" in shown.err
    assert ("epoch 1 of 2" in shown.err) is terminal
    assert vars(rich.get_console()) == before


@pytest.mark.parametrize(
    "options, words",
    [
        ("--head linear", "--head is of --supervise, which is not there: add --supervise auto, or leave"),
        ("--targets labels --augment bylevel:0", "--targets is of --supervise"),
        ("--weight 0.3", "--weight is of --supervise"),
        ("--gradient 0", "--gradient is of --supervise"),
        ("--maps random --supervise 0", "--maps is of --augment, .* add --augment bylevel:layer3"),
        ("--seeds 5", "--seeds is of --compare, which is not there: add --compare, or leave --seeds out"),
        ("--accuracy 0", "--accuracy is of --compare"),
        ("--compare --supervise 0 --seed 0", "--seed does not go with --compare, .* write --seeds"),
        ("--compare --supervise 0 --resume", "--resume does not go with --compare"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(given: list[str], options: str, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        spile("train", *given, *options.split())


def test_weights_and_targets_by_name(given: list[str]) -> None:
    assert weighting_named("0.3") == Constant(0.3)
    assert weighting_named("cosine:0.5") == CosineDecay(0.5)
    assert weighting_named("linear") == LinearDecay(0.4)
    assert weighting_named("ramp:1") == DepthRamp(1.0)
    assert weighting_named("uncertainty") == Uncertainty()
    with pytest.raises(SupervisionError, match=r"--weight 'cosin:0.4': .*cosine:0.4"):
        weighting_named("cosin:0.4")
    assert target_named("self-distill", given[0]) == SelfDistill()
    assert target_named("smoothed-labels", given[0]) == SmoothedLabels(samples=40)
    with pytest.raises(SupervisionError, match=r"did you mean 'labels'.*teacher:run"):
        target_named("label", given[0])


@pytest.mark.zoo
def test_a_run_is_used_and_taught_from(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`spile predict`, and the run in the place of a model: of transfer, of a teacher, to look at."""
    data, run = given[0], str(tmp_path / "run")
    spile("train", *given, "--epochs", "6", "--rate", "0.05")
    assert f"spile predict {run} DATA" in capsys.readouterr().out
    spile("predict", run, data, "--json")
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 40 and np.mean([row["label"] == i % 2 for i, row in enumerate(rows)]) > 0.7
    spile("transfer", data, "-m", run, "-o", str(tmp_path / "moved"), "-l", "0", "-q", "--json")
    assert json.loads(capsys.readouterr().out)["best"] == "0"
    taught = ["--supervise", "0", "--head", "linear", "--targets", f"labels,teacher:{run}", "--epochs", "1"]
    spile("train", data, "-m", given[2], "-o", str(tmp_path / "student"), "-q", *taught)
    options = json.loads((tmp_path / "student" / "run.json").read_text())["training"]["options"]
    assert f"model='{run}'" in options["supervise.targets"]
