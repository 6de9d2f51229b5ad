"""Random numbers made of (seed, epoch, sample id, operation) alone. Pure.

No state is kept, so nothing depends on the order of samples, the batch, the worker, the process or on what
ran before: a run that is resumed, shuffled or spread over processes draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of one epoch."""

    seed: int
    epoch: int

    def key(self, sample: str, operation: str) -> int:
        """A number of 63 bits to seed another library with."""
        text = f"{self.seed}\x1f{self.epoch}\x1f{sample}\x1f{operation}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def generator(self, sample: str, operation: str) -> np.random.Generator:
        """A generator of its own for one operation on one sample."""
        return np.random.Generator(np.random.Philox(self.key(sample, operation)))

    def partners(self, samples: Sequence[str], operation: str) -> list[int]:
        """For each sample of a batch the position of another: each is taken once, none by itself.

        The samples are put in a ring in the order of their keys, and each takes the next one, so a permuted
        batch has the same pairs. A batch of one sample is its own partner.
        """
        order = sorted(range(len(samples)), key=lambda i: (self.key(samples[i], operation), i))
        partner = [0] * len(samples)
        for place, position in enumerate(order):
            partner[position] = order[(place + 1) % len(order)]
        return partner
