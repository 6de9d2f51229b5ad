"""Deep supervision for segmentation: a small encoder and decoder with a score map on two earlier layers.

    python examples/segmentation_torch.py

The heads are 1x1 convolutions; the map of labels is brought to their size by nearest. Their weights halve
from head to head the further it is from the output, as in nnU-Net. Takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import spile
from spile.supervision import LinearDecay

CLASSES = 3  # background, square, disc
SIZE = 32


class Segmenter(nn.Module):
    """Two steps down, two steps up, with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = block(3, 16), block(16, 32)
        self.middle = block(32, 32)
        self.up2, self.up1 = block(64, 16), block(32, 16)
        self.score = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel, in a dict as torchvision's segmenters give them."""
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        deep = self.middle(functional.max_pool2d(two, 2))
        two = self.up2(torch.cat([two, functional.interpolate(deep, scale_factor=2.0)], 1))
        one = self.up1(torch.cat([one, functional.interpolate(two, scale_factor=2.0)], 1))
        return {"out": self.score(one)}


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, norm, activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())


def shapes(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Grey squares and discs on noise, and their maps of labels."""
    random = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(samples, 3, SIZE, SIZE, generator=random)
    labels = torch.zeros(samples, SIZE, SIZE, dtype=torch.long)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for image, label in zip(images, labels, strict=True):
        for kind in (1, 2):
            centre, radius = torch.randint(6, SIZE - 6, (2,), generator=random), 5
            dy, dx = (y - centre[0]).abs(), (x - centre[1]).abs()
            inside = torch.maximum(dy, dx) <= radius if kind == 1 else dy**2 + dx**2 <= radius**2
            image[:, inside] += 1
            label[inside] = kind
    return images, labels


def main(samples: int = 64, steps: int = 24, batch_size: int = 8) -> list[dict[str, float]]:
    """Train, report, and give the model back."""
    torch.manual_seed(0)
    network = Segmenter()
    images, labels = shapes(samples, seed=0)
    supervised = spile.supervise(
        network,
        example=images[:2],
        num_classes=CLASSES,
        task="segmentation",
        taps=["middle", "up2"],
        head="dense",
        main="out",
        weight=LinearDecay(0.75, share="halving", end=1.0),
    )
    optimizer = torch.optim.Adam(supervised.parameters(), lr=1e-2)
    history = []
    for step in range(steps):
        rows = torch.arange(batch_size).add(step * batch_size) % samples
        loss = supervised.loss(supervised(images[rows]), labels[rows], progress=step / steps)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        history.append(loss.scalars())
    print({name: round(value, 3) for name, value in history[-1].items()})
    assert supervised.strip() is network
    return history


if __name__ == "__main__":
    main()
