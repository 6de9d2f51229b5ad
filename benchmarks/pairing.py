"""Contenders that take turns: what counts is the ratio of two times of the same round."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spile.choosing import difference

TOLERANCE = 1e-3


@dataclass
class Contender:
    """One way to get the same arrays."""

    name: str
    run: Callable[[], Any]
    checked: bool = True
    """Its result must be that of the first contender; a bare limit gives none."""
    spared: Callable[[], float] = lambda: 0.0
    """Seconds of the last turn that do not count: preparing, where a row is about the rate after that."""
    seconds: list[float] = field(default_factory=list)
    error: float = 0.0


@dataclass(frozen=True)
class Duel:
    """Contenders on one task; ratios are to the first one."""

    title: str
    samples: int
    contenders: tuple[Contender, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def fight(self, rounds: int) -> Duel:
        """Everyone once untimed, compared with the first; then rounds, each in an order of its own."""
        expected = None
        for contender in self.contenders:
            found = contender.run()
            if contender.checked:
                expected = np.asarray(found) if expected is None else expected
                contender.error = difference(np.asarray(found), expected)
                if contender.error > TOLERANCE:
                    raise SystemExit(f"{self.title}: {contender.name} differs by {contender.error:.2g}")
        order = list(self.contenders)
        for each in range(rounds):
            random.Random(each).shuffle(order)
            for contender in order:
                gc.collect()
                began = time.perf_counter()
                contender.run()
                contender.seconds.append(time.perf_counter() - began - contender.spared())
        return self

    def ratios(self, contender: Contender) -> list[float]:
        """How many times as fast as the first one, round by round."""
        first = self.contenders[0]
        return [a / b for a, b in zip(first.seconds, contender.seconds, strict=True)]

    def ratio(self, name: str, to: str) -> float:
        """Median over the rounds of how many times as fast `name` is as `to`."""
        by_name = {contender.name: contender for contender in self.contenders}
        pairs = zip(by_name[to].seconds, by_name[name].seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)

    def markdown(self) -> str:
        """A heading and a table."""
        lines = [f"**{self.title}**", "", "| | samples/s | times the first (min to max) | difference |"]
        lines.append("|---|---:|---:|---:|")
        for contender in self.contenders:
            ratios = self.ratios(contender)
            rate = self.samples / statistics.median(contender.seconds)
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            error = f"{contender.error:.0e}" if contender.checked else ""
            lines.append(f"| {contender.name} | {rate:,.1f} | {spread} | {error} |")
        lines += [f"\nLeft out: {name}: {why}." for name, why in self.left_out.items()]
        return "\n".join(lines)
