"""One of two processes that train a supervised model; run by test_supervision_gradients.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import spile
from spile.augmentation import Frame
from spile.supervision import Constant, Labels, PseudoLabels, SelfDistill, SmoothedLabels, Uncertainty


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x)).mean((2, 3)))


def supervised(**options: Any) -> Any:
    torch.manual_seed(0)
    return spile.supervise(Net(), example=(2, 3, 8, 8), num_classes=5, taps=["a", "b"], **options)


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    mine = slice(4 * rank, 4 * rank + 4)
    found: dict[str, Any] = {}

    for unused in (False, True):
        model = supervised(weight=Constant(0.0), targets=[Labels(), SelfDistill(hint=1.0)])
        parallel = DistributedDataParallel(model, find_unused_parameters=unused)
        for _ in range(3):  # a missing gradient is only noticed at the next pass
            model.loss(parallel(images[mine]), labels[mine], progress=0.0).total.backward()
        zero = all(p.grad is not None and not p.grad.any() for p in model.heads.parameters())
        found["weight 0"] = "heads have a gradient of exactly 0" if zero else "heads move"

    model = supervised(weight=Uncertainty())
    alone = supervised(weight=Uncertainty())
    parallel = DistributedDataParallel(model)
    model.loss(parallel(images[mine]), labels[mine], progress=0.0).total.backward()
    found["gradient"] = flat(model)
    with torch.no_grad():
        terms = alone.loss(alone(images), labels, progress=0.0)
    assert terms.total.isfinite()
    halves = [alone.loss(alone(images[h]), labels[h], progress=0.0).total for h in (slice(4), slice(4, 8))]
    (sum(halves) / 2).backward()  # type: ignore[union-attr]
    found["of the whole batch"] = flat(alone)

    model = supervised(targets=[SmoothedLabels(samples=8), PseudoLabels(threshold="adaptive", decay=0.5)])
    parallel = DistributedDataParallel(model)
    unlabelled = torch.full((4,), -1)
    model.loss(parallel(images[mine]), unlabelled, progress=0.0, ids=torch.arange(8)[mine])
    averaged, adaptive = model.terms.references
    found["rows seen"] = averaged.averaged.seen.tolist()
    found["averages"] = averaged.averaged.sums.tolist()
    found["thresholds"] = adaptive.thresholds.by_class().tolist()
    torch.manual_seed(0)
    net = Net().train()
    guide = spile.guide(net, "a", given="ready", example=(1, 3, 8, 8))
    bank = spile.MapBank(guide, folder / "maps.lance", run="both")
    parallel = DistributedDataParallel(net)
    with bank.keeper() as keeper:
        keeper.step([str(i) for i in range(8)[mine]], frames=[Frame.whole((8, 8))] * 4, epoch=0)
        parallel(images[mine])
        keeper.end(0)
    found["maps kept"] = sorted(bank._kept)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def flat(model: nn.Module) -> list[float]:
    return [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
