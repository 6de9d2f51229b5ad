"""Training steps of two kinds in turns: a pair gives a ratio, so that a busy machine slows both alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

WARM = 3


def paired(plain: Callable[[], float], other: Callable[[], float], pairs: int) -> list[float]:
    """Seconds of `other` over those of `plain`, pair by pair; the first ones warm up."""
    ratios = []
    for number in range(pairs + WARM):
        order = (plain, other) if number % 2 else (other, plain)
        seconds = {step: step() for step in order}
        if number >= WARM:
            ratios.append(seconds[other] / seconds[plain])
    return ratios


def tell(title: str, ratios: list[float], expected: float) -> None:
    """Print the median of the ratios and its 95 % interval (bootstrap), beside what is expected."""
    random = np.random.default_rng(0)
    medians = [np.median(random.choice(ratios, len(ratios))) for _ in range(2000)]
    low, high = np.quantile(medians, [0.025, 0.975])
    middle = float(np.median(ratios))
    print(title)
    print(f"step with heads / plain step: {middle:.3f} [{low:.3f}, {high:.3f}], {len(ratios)} pairs")
    print(f"expected from MACs alone:     {expected:.3f}")
    print(f"above that:                   {middle / expected - 1:+.1%}")
