"""The PyTorch half of `test_parity`, in a process without Keras: ``torch_side.py FOLDER``.

Reads ``weights.npz`` and ``data.npz`` in the folder, writes ``torch.lance`` and ``torch.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import spile


class Block(nn.Module):
    def __init__(self, channels: int, filters: int, *, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, stride=stride, padding=padding)
        self.norm = nn.BatchNorm2d(filters, eps=1e-3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 4, stride=1, padding=1)
        self.down = Block(4, 6, stride=2, padding=0)
        self.deep = Block(6, 6, stride=1, padding=1)
        self.pool, self.head = Mean(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.deep(self.down(self.stem(x)))))


def network(weights: dict[str, np.ndarray]) -> Network:
    """With the weights of the Keras network, by its names."""
    keys = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    keys |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    model = Network()
    state = model.state_dict()
    for name, value in weights.items():
        layer, _, kind = name.rpartition("/")
        state[f"{layer.replace('/', '.')}.{keys[kind]}"].copy_(torch.from_numpy(oriented(value)))
    return model.eval()


def oriented(weight: np.ndarray) -> np.ndarray:
    """Inputs and outputs where PyTorch has them: Keras puts them last, in this order."""
    return np.moveaxis(weight, (-1, -2), (0, 1)) if weight.ndim > 1 else weight


def main(folder: Path) -> None:
    data = np.load(folder / "data.npz")
    wanted = json.loads((folder / "wanted.json").read_text())
    model = network(dict(np.load(folder / "weights.npz")))
    example = (2, 3, *data["images"].shape[1:3])
    pools = {place.replace("/", "."): pool for place, pool in wanted["pools"].items()}
    with spile.tap(model, list(pools), pool=pools, example=example) as tap:
        spile.extract(
            tap,
            (data["images"], data["labels"]),
            folder / "torch.lance",
            dtype="float32",
            batch_size=4,
            preprocessing=spile.ImagePreprocessing(),
            progress=False,
        )
    found = {}
    for pattern in wanted["patterns"]:
        with spile.tap(model, pattern, pool=None, example=example) as tap:
            found[pattern] = [[point.name, point.macs] for point in tap.points]
    (folder / "torch.json").write_text(json.dumps({"patterns": found, "last": tap.last_features}))
    assert "keras" not in sys.modules


if __name__ == "__main__":
    main(Path(sys.argv[1]))
