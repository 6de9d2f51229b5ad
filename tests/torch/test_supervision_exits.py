"""Early exits: who leaves, what the others see, what calibration looks at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spile
from spile.errors import ModelError, SupervisionError
from spile.supervision.exits import ExitPolicy
from spile.torch.exits import EarlyExits
from spile.torch.supervision import Supervised

NEVER = float("inf")


class Net(nn.Module):
    """Counts the samples that its last block sees."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.c = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 4)
        self.skip = skip
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        self.seen.append(len(b))
        c = self.c(b) + (a.mean(0, keepdim=True) if self.skip else 0)
        return self.fc(c.mean((2, 3)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def supervised(model: nn.Module | None = None, **options: Any) -> Supervised:
    given: dict[str, Any] = {"example": (2, 3, 6, 6), "num_classes": 4, "taps": ["a", "b"], "head": "mlp"}
    return spile.supervise(model or Net(), **given | options).eval()  # type: ignore[return-value,no-any-return]


def data(samples: int = 120) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Classes that two colours tell."""
    labels = torch.randint(0, 4, (samples,))
    images = 0.3 * torch.randn(samples, 3, 6, 6)
    images[:, 0] += (labels // 2 * 2 - 1)[:, None, None]
    images[:, 1] += (labels % 2 * 2 - 1)[:, None, None]
    return images, labels.numpy()


def trained() -> Supervised:
    model = supervised().train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images, labels = data(256)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(model(images), labels, progress=0.0).total.backward()
        optimizer.step()
    return model.eval()


def policy(*thresholds: float) -> ExitPolicy:
    return ExitPolicy(temperatures=(1.0, 1.0, 1.0), thresholds=thresholds)


def exits_of(model: Supervised, *thresholds: float) -> EarlyExits:
    return EarlyExits(model.base, dict(model.heads.items()), model.points, policy(*thresholds))


def test_samples_leave_where_they_are_sure_and_the_rest_of_the_batch_is_compacted() -> None:
    model = supervised()
    images = torch.randn(10, 3, 6, 6)
    with torch.no_grad():
        out = model(images)
    confidence = out.aux["a"].softmax(1).amax(1)
    threshold = float(confidence.median())
    exits = exits_of(model, threshold, NEVER, 0.0)
    model.base.seen.clear()  # type: ignore[union-attr,operator]
    found = exits(images)
    left = confidence >= threshold
    assert 0 < left.sum() < 10
    assert model.base.seen == [10 - int(left.sum())]
    assert torch.equal(found.exits, torch.where(left, 0, 2))
    expected = torch.where(left[:, None], out.aux["a"], out.main)
    torch.testing.assert_close(found.logits, expected)


def test_a_batch_of_which_all_leave_stops_there() -> None:
    model = supervised()
    exits = exits_of(model, 0.0, 0.0, 0.0)
    model.base.seen.clear()  # type: ignore[union-attr,operator]
    found = exits(torch.randn(5, 3, 6, 6))
    assert found.exits.tolist() == [0] * 5
    assert model.base.seen == []  # type: ignore[comparison-overlap]


def test_the_model_is_untouched_between_and_after_passes() -> None:
    model = supervised().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    exits = exits_of(model, 0.3, 0.3, 0.0)
    exits(torch.randn(5, 3, 6, 6))
    hooks = [len(module._forward_hooks) for module in model.base.modules()]
    with pytest.raises(RuntimeError):
        exits(torch.randn(5, 2, 6, 6))
    assert [len(module._forward_hooks) for module in model.base.modules()] == hooks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.base.training
    assert model.strip() is model.base
    assert not any(module._forward_hooks for module in model.base.modules())


def test_calibration_reaches_its_goal_on_samples_it_has_not_seen() -> None:
    model = trained()
    images, labels = data(400)
    exits = model.exits((images, labels), accuracy=0.9)
    rows = {row.name: row for row in exits.report.rows}
    assert list(rows) == ["early exits", "ends at a", "ends at b", "full model"]
    early, full = rows["early exits"], rows["full model"]
    assert early.accuracy > 0.8
    assert early.macs < full.macs == model.macs
    assert all(0 < row.p50 <= row.p95 for row in rows.values())
    assert sum(exits.report.shares) == pytest.approx(1)
    assert exits.report.samples == 200
    assert "left at each exit" in str(exits.report)
    found = exits(images)
    right = (found.logits.argmax(1).numpy() == labels).mean()
    assert right == pytest.approx(early.accuracy, abs=0.1)


def test_a_smaller_model_stands_beside_the_exits() -> None:
    """Trained on its own: what early exits must beat to be worth their trouble."""
    model = trained()
    exits = model.exits(data(200), accuracy=0.9)
    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    small.append(nn.Linear(4, 4)).train()
    images, labels = data(60)
    state = {k: v.clone() for k, v in small.state_dict().items()}
    found = exits.measure(images, labels, static={"one layer": small}, rounds=7)
    assert [r.name for r in found.rows] == [
        "early exits",
        "ends at a",
        "ends at b",
        "full model",
        "one layer",
    ]
    beside = found["one layer"]
    assert beside.macs == 6 * 6 * 3 * 4 + 4 * 4 and 0 < beside.p50 <= beside.p95
    with torch.no_grad():
        right = (small.eval()(images).argmax(1).numpy() == labels).mean()
    assert beside.accuracy == pytest.approx(right)
    assert all(torch.equal(state[k], v) for k, v in small.state_dict().items())
    early, out = found["early exits"], exits(images)
    assert early.accuracy == pytest.approx((out.logits.argmax(1).numpy() == labels).mean())
    costs = np.asarray(exits.costs)[out.exits.numpy()]
    assert early.macs == pytest.approx(costs.mean())
    assert found.samples == 60 and "one layer" in str(found)


def test_temperatures_thresholds_and_report_have_samples_of_their_own(monkeypatch: Any) -> None:
    from spile.torch import calibrating

    seen: dict[str, list[Any]] = {"temperature": [], "policy": [], "report": []}
    originals = calibrating.fit_temperature, calibrating.fit_policy, calibrating.measure

    def keep(name: str, original: Any, axis: int) -> Any:
        def kept(logits: Any, *args: Any, **kwargs: Any) -> Any:
            rows = logits if axis == 0 else logits[-1]
            seen[name] += [row.tobytes() for row in rows]
            return original(logits, *args, **kwargs)

        return kept

    monkeypatch.setattr(calibrating, "fit_temperature", keep("temperature", originals[0], 0))
    monkeypatch.setattr(calibrating, "fit_policy", keep("policy", originals[1], 1))
    monkeypatch.setattr(calibrating, "measure", keep("report", originals[2], 1))
    supervised().exits(data(80), accuracy=0.0, holdout=0.25)
    temperature, chosen, report = (set(rows) for rows in seen.values())
    assert len(chosen) == 30
    assert len(report) == 20
    assert not (temperature & chosen or chosen & report or temperature & report)


def test_something_that_flows_past_an_exit_is_refused() -> None:
    with pytest.raises(SupervisionError, match="samples cannot leave at 'a', as something of the whole"):
        supervised(Net(skip=True), taps=["a"]).exits(data(), accuracy=0.0)

    class Skip(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.b(self.a(x)) + x.mean(1, keepdim=True)).mean((2, 3)))

    with pytest.raises(SupervisionError, match=r"samples cannot leave at 'a'.*RuntimeError"):
        supervised(Skip(), taps=["a"]).exits(data(), accuracy=0.0)
    with pytest.raises(SupervisionError, match="'b@in' is the input of one"):
        supervised(taps=["b@in"]).exits(data(), accuracy=0.0)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = trained()
    exits = model.exits(data(), accuracy=0.5)
    exits.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exits.json", "weights.safetensors"]
    loaded = EarlyExits.load(tmp_path, model=Net())
    images = torch.randn(20, 3, 6, 6)
    ours, theirs = loaded(images), exits(images)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.exits, theirs.exits)
    assert loaded.policy == exits.policy
    assert loaded.costs == exits.costs
    assert loaded.report == exits.report
    assert loaded.static_costs == exits.static_costs
    assert loaded.measure(*data(20), rounds=2)["full model"].macs == model.macs
    with pytest.raises(ModelError, match="do not fit"):
        EarlyExits.load(tmp_path, model=nn.Sequential(Net().a, Net().b))
    content = json.loads((tmp_path / "exits.json").read_text())
    (tmp_path / "exits.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(SupervisionError, match="has the format 99, and this version reads 1"):
        EarlyExits.load(tmp_path, model=Net())
    with pytest.raises(SupervisionError, match="holds no saved exits"):
        EarlyExits.load(tmp_path / "nothing", model=Net())


def test_heads_of_ones_own_are_given_when_loading(tmp_path: Path) -> None:
    def own(channels: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))

    model = supervised(taps=["a"], head=own)
    exits = model.exits(data(), accuracy=0.0)
    exits.save(tmp_path)
    with pytest.raises(SupervisionError, match=r"module of your own: EarlyExits\.load\(\.\.\., heads="):
        EarlyExits.load(tmp_path, model=Net())
    loaded = EarlyExits.load(tmp_path, model=Net(), heads={"a": own(8)})
    images = torch.randn(5, 3, 6, 6)
    assert torch.equal(loaded(images).logits, exits(images).logits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "pass .inputs, labels."),
        ((torch.zeros(40, 3, 6, 6), torch.full((40,), -1)), "one class number a sample, 0 or more"),
        ((torch.zeros(10, 3, 6, 6), torch.zeros(10, dtype=torch.long)), "10 samples are too few"),
        ((torch.zeros(64, 3, 6, 6), torch.zeros(40, dtype=torch.long)), "inputs of 64 samples and 40 labels"),
    ],
)
def test_data_that_cannot_calibrate(given: Any, message: str) -> None:
    with pytest.raises(SupervisionError, match=message):
        supervised().exits(given)


def test_exits_are_for_classes() -> None:
    with pytest.raises(SupervisionError, match="task='multilabel' has not"):
        supervised(task="multilabel").exits(data())
