"""`spile.train` on PyTorch: small networks, seconds."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import spile
from spile.errors import DataError, ModelError, TrainingError
from spile.reporting.record import read_run
from spile.supervision import Constant, Labels, PseudoLabels, SelfDistill, SmoothedLabels, Teacher
from spile.torch import inputs
from spile.training.building import build
from spile.training.running import fit

EXAMPLE = torch.zeros(2, 1, 8, 8)


def net(dropout: float = 0.2, classes: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout(dropout)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def data(rows: int = 90) -> tuple[np.ndarray[Any, Any], list[str]]:
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = rng.normal(size=(rows, 1, 8, 8)).astype(np.float32) * 0.4
    x[np.arange(rows), 0, 2 * y] += 1.5
    return x, ["abc"[code] for code in y]


HEADS = spile.Supervision(taps=["0", "1"], head="linear", weight=Constant(0.4))


def recipe(**options: Any) -> spile.Recipe:
    wanted = {"model": net, "data": data(), "epochs": 3, "batch_size": 12, "rate": 2e-2, "supervise": HEADS}
    return spile.Recipe(**wanted | options)


def run(tmp_path: Path, name: str = "run", **options: Any) -> spile.training.TrainRun:
    own = {k: options.pop(k) for k in ("seed", "resume", "loggers", "diagnose") if k in options}
    return spile.train(recipe(**options), out=tmp_path / name, progress=False, **own)


def weights(model: nn.Module) -> list[float]:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()]).tolist()


def test_a_run_learns_and_leaves_a_report_with_curves(tmp_path: Path) -> None:
    found = run(tmp_path, epochs=8)
    assert found.accuracy is not None and found.accuracy > 0.8
    assert found.classes == ("a", "b", "c")
    assert isinstance(found.model, nn.Sequential) and not found.model.training
    again = net(classes=3)
    again.load_state_dict(load_file(found.weights))
    assert weights(again) == weights(found.model)
    assert not any(module._forward_hooks for module in found.model.modules())
    with torch.no_grad():
        assert found.model(EXAMPLE).shape == (2, 3)
    record = read_run(tmp_path / "run")
    assert record.training is not None and record.training.heads == ("0", "1")
    charts = {chart.title: chart for chart in record.training.charts}
    assert {line.name for line in charts["Accuracy of the heads"].lines} == {"main", "0", "1"}
    assert {"Loss", "Weight of the heads", "Gradient norm", "Agreement of gradients"} <= set(charts)
    assert all(len(line.values) == 8 for chart in charts.values() for line in chart.lines)
    html = found.report.read_text()
    assert "held-out samples right after 8 epochs, trained with heads on 0 and 1" in html
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        assert "test/accuracy" in next(csv.reader(file))
    assert found.epochs[-1]["train/0/weight"] == pytest.approx(0.2)


def test_what_is_said_of_the_model_is_true_of_it(tmp_path: Path) -> None:
    """The accuracy reported is that of the model returned, on rows that it did not learn from."""
    x, y = data()
    found = run(tmp_path, epochs=4)
    _, reader, _ = fit(recipe(epochs=1), tmp_path / "other", seed=0)
    rows = reader.rows
    with torch.no_grad():
        said = [found.classes[i] for i in found.model(torch.from_numpy(x[rows.test])).argmax(1)]
    right = np.mean([a == y[i] for a, i in zip(said, rows.test, strict=True)])
    assert found.accuracy == pytest.approx(float(right))


@pytest.mark.parametrize("supervise", [None, HEADS])
def test_a_class_that_no_training_row_has_counts_as_wrong(tmp_path: Path, supervise: Any) -> None:
    x, y = data(120)
    splits = ["train" if i < 90 else "test" for i in range(120)]
    kept = [i for i in range(120) if i >= 90 or y[i] != "c"]
    source = spile.data.open_source(x[kept], labels=[y[i] for i in kept], splits=[splits[i] for i in kept])
    words = r"10 of 30 test rows are of classes that no training row has: 'c'\. They count as wrong"
    with pytest.warns(UserWarning, match=words):
        found = run(tmp_path, data=source, supervise=supervise, epochs=6)
    with torch.no_grad():
        said = [found.classes[i] for i in found.model(torch.from_numpy(x[90:])).argmax(1)]
    assert found.accuracy == pytest.approx(np.mean([a == b for a, b in zip(said, y[90:], strict=True)]))
    assert 0.5 < found.accuracy < 0.67
    last = found.epochs[-1]
    assert np.isfinite(last["test/loss"])
    assert supervise is None or last["test/0/accuracy"] < 0.67


def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, "whole", epochs=4)
    from spile.torch.training import Training

    begin, seen = Training.on_train_epoch_start, []

    def cut(self: Training) -> None:
        seen.append(self.current_epoch)
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt
        begin(self)

    monkeypatch.setattr(Training, "on_train_epoch_start", cut)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path, "cut", epochs=4)
    resumed = run(tmp_path, "cut", epochs=4, resume=True)
    assert seen == [0, 1, 2, 2, 3]
    assert weights(resumed.model) == weights(whole.model)
    kept = [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.epochs]
    assert json.dumps(kept) == json.dumps(
        [{k: v for k, v in r.items() if k != "seconds"} for r in whole.epochs]
    )
    assert resumed.seconds > resumed.epochs[1]["seconds"]


def test_one_seed_is_one_result_and_another_is_another(tmp_path: Path) -> None:
    first, again, other = (run(tmp_path, str(i), seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert weights(first.model) == weights(again.model)
    assert weights(first.model) != weights(other.model)


def test_with_and_without_heads_begin_alike() -> None:
    from spile.training.building import load
    from spile.training.rows import choose_rows, open_rows

    found = []
    for supervise in (None, HEADS):
        wanted = recipe(supervise=supervise)
        rows = choose_rows(open_rows(wanted.data), shots=None, validate=False, seed=0, unlabelled=False)
        built = build(wanted, load(wanted, 7), rows, [], few=data()[0][:4], seed=7)
        found.append(weights(built.loaded.model))
    assert found[0] == found[1]


def test_heads_of_weight_0_and_stopped_gradients_change_nothing(tmp_path: Path) -> None:
    """What is compared differs by the heads alone: with none of their gradient the two runs are the same."""
    without = run(tmp_path, "without", supervise=None, model=lambda: net(0.0))
    stopped = replace(HEADS, gradient="stop")
    with_heads = run(tmp_path, "with", supervise=stopped, model=lambda: net(0.0), diagnose=False)
    assert weights(with_heads.model) == pytest.approx(weights(without.model), abs=1e-6)


def test_early_stopping_keeps_the_best_epoch_by_validation_alone(tmp_path: Path) -> None:
    found = run(tmp_path, epochs=40, patience=2, rate=0.2, optimizer="sgd")
    losses = [row["validation/loss"] for row in found.epochs]
    assert found.best == losses.index(min(losses))
    assert len(found.epochs) < 40
    assert len(found.epochs) - 1 - found.best == 2


def test_accumulation_does_not_shift_the_weights_of_heads(tmp_path: Path) -> None:
    decaying = replace(HEADS, weight=spile.supervision.LinearDecay(0.4, end=1.0))
    plain = run(tmp_path, "plain", supervise=decaying, batch_size=12)
    halves = run(tmp_path, "halves", supervise=decaying, batch_size=6, accumulate=2)
    for a, b in zip(plain.epochs, halves.epochs, strict=True):
        assert a["train/0/weight"] == pytest.approx(b["train/0/weight"], abs=1e-3)
    assert plain.epochs[0]["train/0/weight"] > 1.5 * plain.epochs[-1]["train/0/weight"]


def test_pseudo_labels_use_the_other_rows(tmp_path: Path) -> None:
    wanted = replace(HEADS, targets=[Labels(), PseudoLabels(threshold=0.4)])
    found = run(tmp_path, supervise=wanted, shots=4)
    assert 0 < found.epochs[-1]["train/0/coverage"] <= 1
    assert read_run(tmp_path / "run").data.train_rows == 72  # type: ignore[union-attr]


def test_targets_that_keep_something_for_every_row(tmp_path: Path) -> None:
    wanted = replace(HEADS, targets=[SelfDistill(), SmoothedLabels(samples=90)])
    found = run(tmp_path, supervise=wanted)
    assert found.epochs[-1]["train/0/smoothed_labels"] > 0


def test_bfloat16(tmp_path: Path) -> None:
    found = run(tmp_path, precision="bfloat16", epochs=6)
    assert found.accuracy is not None and found.accuracy > 0.6
    assert next(found.model.parameters()).dtype == torch.float32


def test_a_model_that_comes_in_evaluation_mode_is_trained_in_training_mode(tmp_path: Path) -> None:
    found = run(tmp_path, model=net(classes=3).eval(), epochs=2)
    assert int(found.model[0][1].num_batches_tracked) >= 2 * 6


class Viewing(nn.Module):
    """Takes a `view` across channels, which memory that is channels last forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).view(x.size(0), -1))


@pytest.mark.parametrize("supervise", [None, spile.Supervision(taps=["conv"], head="linear")])
def test_a_model_that_takes_views_is_trained(
    tmp_path: Path, supervise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_FEW_PIXELS", 0)  # so that these small batches are channels last
    images, labels = data()
    coloured = np.repeat(images, 3, axis=1), labels
    assert run(tmp_path, model=Viewing, data=coloured, epochs=4, supervise=supervise).accuracy > 0.9


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(TrainingError, match="holds a run already: go on with it"):
        run(tmp_path, epochs=1)
    with pytest.raises(TrainingError, match="of another recipe: epochs was 1, is 2"):
        run(tmp_path, epochs=2, resume=True)


def test_what_cannot_be_read_is_in_the_report_and_too_much_of_it_stops(tmp_path: Path) -> None:
    x, y = data()
    good = spile.data.open_source(x, labels=y)

    def read(position: int) -> Any:
        if position % 30 == 0:
            raise spile.data.BadSample("file not found")
        return good.read(position)

    source = spile.data.Samples(good.name, good.kind, good.records, read)
    with pytest.raises(DataError, match=r"3 of 90 samples cannot be used .*give a larger max_bad"):
        run(tmp_path, data=source)
    run(tmp_path, data=source, max_bad=0.05, resume=True)  # the limit is no other recipe
    record = read_run(tmp_path / "run")
    assert [(bad.id, bad.reason) for bad in record.skipped] == [
        (good.records[i].id, "file not found") for i in (0, 30, 60)
    ]
    assert record.skipped_total == 3
    assert "3 skipped" in (tmp_path / "run" / "report.html").read_text()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="accumulate=60 is more than the 6 batches"):
        run(tmp_path, "a", accumulate=60)
    with pytest.raises(TrainingError, match=r"no number after epoch 1: write a lower rate"):
        run(tmp_path, "b", rate=1e30, optimizer="sgd", epochs=1)
    with pytest.raises(TrainingError, match="gives a int"):
        run(tmp_path, "c", model=lambda: 3)
    with pytest.raises(TrainingError, match="loggers='xml'"):
        run(tmp_path, "d", loggers=["xml"])
    with pytest.raises(TrainingError, match="did you mean 'epochs'"):
        spile.train(net, data(), tmp_path / "e", epoch=3)
    with pytest.raises(TrainingError, match=r"no run of spile transfer") as error:
        run(tmp_path, "f", from_probe=tmp_path)
    assert "transfer" in str(error.value)
    with pytest.raises(ModelError, match="no final Linear or Conv2d"):
        run(tmp_path, "g", model=lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), supervise=None)


@pytest.mark.zoo
def test_the_probes_head_is_where_training_starts(tmp_path: Path) -> None:
    """LP-FT: with a rate of next to nothing the accuracy is that of the probe, not that of chance."""
    x, y = data()
    torch.manual_seed(0)
    model = net(classes=3).eval()
    spile.transfer(model, (x, y), tmp_path / "probe", addresses=["1"], progress=False)
    common = {"model": model, "supervise": None, "rate": 1e-12, "optimizer": "sgd", "epochs": 1}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    started = run(tmp_path, "started", from_probe=tmp_path / "probe", **common)
    model.load_state_dict(state)
    unstarted = run(tmp_path, "unstarted", **common)
    assert started.accuracy is not None and unstarted.accuracy is not None
    assert started.epochs[0]["test/loss"] < unstarted.epochs[0]["test/loss"]
    assert started.accuracy > 0.6


def test_a_probe_of_other_weights_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spile.transfer(net(classes=3).eval(), data(), tmp_path / "probe", addresses=["1"], progress=False)
    torch.manual_seed(1)
    with pytest.raises(TrainingError, match="another model or other weights"):
        run(tmp_path, model=net(classes=3).eval(), from_probe=tmp_path / "probe", supervise=None)


@pytest.mark.zoo
def test_jacobian_aggregation_end_to_end(tmp_path: Path) -> None:
    """TorchJD fills the gradients; steps, rates, diagnosis and resuming go on as ever."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    wanted = replace(HEADS, weight=spile.supervision.Aggregated(aggregation.UPGrad()))
    found = run(tmp_path, supervise=wanted, epochs=8)
    assert found.accuracy is not None and found.accuracy > 0.6
    first, last = found.epochs[0], found.epochs[-1]
    assert last["train/0/loss"] < first["train/0/loss"] and last["train/1/loss"] < first["train/1/loss"]
    assert last["rate"] < 0.05 * first["rate"] < 0.05 * 2e-2  # a step of the optimiser is a step of the rate
    assert last["gradient/0.0/gradient_norm"] > 0
    resumed = run(tmp_path, supervise=wanted, epochs=8, resume=True)
    assert weights(resumed.model) == weights(found.model)
    with pytest.raises(TrainingError, match="accumulate= does not go with weight=Aggregated"):
        run(tmp_path, "a", supervise=wanted, accumulate=2)
    with pytest.raises(TrainingError, match="precision='float16' does not go with weight=Aggregated"):
        run(tmp_path, "b", supervise=wanted, precision="float16")


def test_the_mean_of_losses_by_torchjd_is_the_mean_of_losses(tmp_path: Path) -> None:
    """Training by an aggregator that sums is training on the sum."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    common: dict[str, Any] = {"model": lambda: net(0.0), "optimizer": "sgd", "diagnose": False, "epochs": 2}
    summed = replace(HEADS, weight=spile.supervision.Aggregated(aggregation.Sum()))
    plain = run(tmp_path, "plain", supervise=replace(HEADS, weight=2.0), **common)
    found = run(tmp_path, "summed", supervise=summed, **common)
    assert weights(found.model) == pytest.approx(weights(plain.model), abs=1e-4)


@pytest.mark.zoo
def test_the_curves_of_every_head_arrive_at_the_loggers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    wanted = replace(HEADS, targets=[Labels(), PseudoLabels(threshold=0.4)])
    found = run(tmp_path, supervise=wanted, shots=4, loggers=["csv", "tensorboard"])
    curves = events(tmp_path / "run" / "logs")
    with next((tmp_path / "run" / "logs").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "accuracy", "weight", "labels", "pseudo_labels", "coverage", "precision"):
        for head in ("0", "1"):
            key = f"train/{head}/{name}"
            expected = [row[key] for row in found.epochs]
            assert curves[key] == pytest.approx(expected, rel=1e-5, nan_ok=True), key
            assert [float(row[key]) for row in rows] == pytest.approx(expected, rel=1e-5, nan_ok=True), key
    assert curves["test/0/accuracy"] == pytest.approx([row["test/0/accuracy"] for row in found.epochs])
    assert "gradient/0.0/share/0" in curves


def events(folder: Path) -> dict[str, list[float]]:
    """The scalars of an event file, by tag, in order."""
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[str, list[float]] = {}
    for path in folder.rglob("events.out.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its checksum, the record, its checksum
            length = int.from_bytes(content[at : at + 8], "little")
            for value in Event.FromString(content[at + 12 : at + 12 + length]).summary.value:
                found.setdefault(value.tag, []).append(value.simple_value)
            at += 16 + length
    return found


def test_what_no_row_tells_is_not_known(tmp_path: Path) -> None:
    """All rows have a label, so that pseudo-labels cover none."""
    wanted = replace(HEADS, targets=[Labels(), PseudoLabels(threshold=1.0)])
    found = run(tmp_path, supervise=wanted, epochs=2, loggers=["csv"])
    assert all(
        np.isnan(row["train/0/coverage"]) and row["train/0/pseudo_labels"] == 0 for row in found.epochs
    )
    record = read_run(tmp_path / "run")
    assert record.training is not None
    assert "Pseudo-labels" not in {chart.title for chart in record.training.charts}
    html = found.report.read_text()
    assert ">nan" not in html and "nan\u202f%" not in html


@pytest.mark.zoo
def test_a_teacher_by_the_folder_of_its_run(tmp_path: Path) -> None:
    teacher = run(tmp_path, "teacher", supervise=None, epochs=6)
    wanted = replace(HEADS, targets=[Labels(), Teacher(model=str(teacher.path))])
    found = run(tmp_path, "student", supervise=wanted)
    assert found.epochs[-1]["train/0/teacher_logits"] > 0
    options = json.loads((tmp_path / "student" / "recipe.json").read_text())
    assert str(teacher.path) in options["supervise.targets"]
