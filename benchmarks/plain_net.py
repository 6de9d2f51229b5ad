"""Plain networks, convolutions and ReLUs without norm or skips, hard to train when deep; and digits for them.

Width 24, Adam 1e-3, stride 2 at the first and the sixth layer, PyTorch's own initial weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spile.data import open_source

WIDTH = 24
EVERY = 3
"""A head sits on every so many layers."""
STRIDED = (1, 6)


class PlainNet(nn.Module):
    """`depth` convolutions 3x3 on (samples, 1, 28, 28), pool, classifier.

    ``body.5`` is the sixth layer with its ReLU.
    """

    def __init__(
        self, depth: int, *, classes: int = 10, width: int = WIDTH, strided: tuple[int, ...] = STRIDED
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(1 if layer == 1 else width, width, 3, stride=1 + (layer in strided), padding=1),
                    nn.ReLU(),
                )
                for layer in range(1, depth + 1)
            )
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(images).mean((2, 3)))


def taps(depth: int) -> list[str]:
    """Addresses of every third layer but the last."""
    return [f"body.{layer - 1}" for layer in range(EVERY, depth, EVERY)]


class Digits(NamedTuple):
    """Training and test rows of ``demo:mnist5k``: images (n, 1, 28, 28) around 0, class numbers (n,)."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(seed: int, *, test: int = 1000) -> Digits:
    """4,000 rows to train and 1,000 to test, drawn anew for every seed."""
    source = open_source("demo:mnist5k")
    images = np.stack([source.read(i)[:, :, 0] for i in range(len(source.records))])
    x = torch.from_numpy(images).float().div(255).sub(0.1307).div(0.3081).unsqueeze(1)
    y = torch.tensor([int(record.label) for record in source.records])
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    return Digits(x[rows[test:]], y[rows[test:]], x[rows[:test]], y[rows[:test]])


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers, in evaluation mode."""
    net.eval()
    with torch.inference_mode():
        right = sum(
            int((net(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum()) for i in range(0, len(y), 500)
        )
    net.train()
    return right / len(y)
