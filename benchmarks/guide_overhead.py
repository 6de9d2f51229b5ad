"""What guiding costs a training step, against the same augmentation without a guide.

    python benchmarks/guide_overhead.py --model resnet18 --at layer2 --size 224 --batch 16

Plain, guided and kept-map steps run in turns in one process, and every round gives ratios, so
that a busy machine slows all alike; printed are the medians and their 95 % intervals (bootstrap). All three
do the same to the same number of pixels: the plain step's region is a placebo that costs nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from torch.nn import functional
from torchvision.transforms import v2

import spile
from spile.augmentation import ByLevel, Frame, Maps, Quantile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--at", default="layer2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    side, count = options.size, options.batch
    model = torchvision.models.get_model(options.model, num_classes=10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    ids = [str(number) for number in range(count)]
    policy = ByLevel(Quantile(0.5, 0.85), low=v2.ColorJitter(0.4, 0.4), mid=v2.ColorJitter(0.1))
    images_as = spile.ImagePreprocessing(crop=(side, side))

    def made(**wanted: Any) -> Any:
        return spile.guide(model, options.at, preprocessing=images_as, example=(1, 3, side, side), **wanted)

    half, whole = made(resolution=0.5), made()
    augmenter = spile.augment(half, policy)
    first = half(images)
    random = np.random.default_rng(0).random(first.values.shape).astype(np.float32)
    fixed = Maps(random, first.grids, first.frames)
    bank = spile.MapBank(half)
    bank.update(ids, first)
    kept = spile.augment(bank, policy)
    frames = [Frame.whole((side, side))] * count

    def step(change: Callable[[], torch.Tensor]) -> tuple[float, float]:
        """Seconds of the whole step, and of making its images."""
        began = time.perf_counter()
        pixels = change().float() / 255
        made_at = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        return time.perf_counter() - began, made_at - began

    own = spile.MapBank(spile.guide(model, options.at, given="ready", example=(1, 3, side, side)), refresh=1)
    keeper = own.keeper()

    def keeping() -> torch.Tensor:
        keeper.step(ids, frames=frames, epoch=0)
        return kept(images, ids=ids, frames=frames).images

    steps = {
        "unguided": lambda: augmenter(images, ids=ids, maps=fixed).images,
        "kept maps": lambda: kept(images, ids=ids, frames=frames).images,
        "kept maps, kept from the pass": keeping,
        "guide at half resolution": lambda: augmenter(images, ids=ids).images,
        "guide": lambda: spile.augment(whole, policy)(images, ids=ids).images,
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        order = list(steps) if number % 2 else list(steps)[::-1]
        for name in order:
            taken = step(steps[name])
            if name == "kept maps, kept from the pass":
                keeper.end(0)
                keeper._watched.active = False
            if number:  # the first round warms up
                seconds[name].append(taken)
    generator = np.random.default_rng(0)
    print(f"{options.model} guided at {options.at}, {side} px, batch {count}, {options.rounds} rounds")
    for name in steps:
        whole_step, making = np.array(seconds[name]).T
        plain_step, plain_making = np.array(seconds["unguided"]).T
        ratios = whole_step / plain_step
        medians = [np.median(generator.choice(ratios, len(ratios))) for _ in range(2000)]
        low, high = np.quantile(medians, [0.025, 0.975])
        print(f"{name:30s} step / unguided step: {np.median(ratios):.3f} [{low:.3f}, {high:.3f}]", end="; ")
        # Of one step, so that it does not matter what else the machine does meanwhile.
        share = np.median(making / (whole_step - making)) - np.median(
            plain_making / (plain_step - plain_making)
        )
        print(f"more time in making images: {share:+.1%} of the model's step")


if __name__ == "__main__":
    main()
