"""What a training step with heads costs, against a plain step plus the heads' own share of operations.

    python benchmarks/supervision_overhead.py --model resnet18 --size 128

Both kinds of steps run in turns in one process, and every pair gives one ratio, so that a busy machine slows
both alike; printed are the median of the ratios and its 95 % interval (bootstrap). Expected is 1 + (MACs of
the heads / MACs of the model): what is above that is the cost of tapping, of the losses and of moving memory.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from steps import paired, tell
from torch.nn import functional

import spile
from spile.torch.calibrating import macs_of

CLASSES = 10


def step_of(run: Callable[[], Any], parameters: Any) -> Callable[[], float]:
    """Seconds of one forward and backward pass and optimiser step."""
    optimizer = torch.optim.SGD(list(parameters), lr=1e-3)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        run().backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--head", default="bottleneck")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.randint(0, CLASSES, (options.batch,))
    plain = torchvision.models.get_model(options.model, num_classes=CLASSES)
    supervised: Any = spile.supervise(
        copy.deepcopy(plain), example=images[:2], num_classes=CLASSES, head=options.head
    )
    macs = {name: macs_of(head, supervised.features[name]) for name, head in supervised.heads.items()}
    expected = 1 + sum(macs.values()) / supervised.macs

    steps = (
        step_of(lambda: functional.cross_entropy(plain(images), labels), plain.parameters()),
        step_of(
            lambda: supervised.loss(supervised(images), labels, progress=0.0).total, supervised.parameters()
        ),
    )
    ratios = paired(*steps, options.pairs)
    title = f"{options.model}, {options.size} px, batch {options.batch}, heads at {', '.join(macs)}"
    tell(title, ratios, expected)


if __name__ == "__main__":
    main()
