"""Guided augmentation in PyTorch: where a layer of VGG16 is active, images change otherwise than elsewhere.

    python examples/guided_augmentation_torch.py --weights DEFAULT

The activations after ``features.14`` (the third convolution of the third block, as ``block3_conv3`` in Keras)
become one map an image, scaled to 0..1; what exceeds 0.5 is the active region. Outside of it colours change
much and details blur; inside, brightness changes a little. Without ``--weights`` the network is untrained, so
that the example runs without a download.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

import spile
from spile.augmentation import Absolute, ByLevel
from spile.data import open_source

SIZE = 64
CLASSES = 5


def images_of(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn shapes on grey ground, and which shape it is."""
    source = open_source("demo:shapes")
    names = sorted({record.label for record in source.records})
    images = np.stack([source.read(position) for position in range(samples)])
    return images, np.array([names.index(record.label) for record in source.records[:samples]])


def classifier() -> nn.Module:
    """A small network to be trained."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def main(options: argparse.Namespace) -> list[float]:
    """Augment, train, and say what was changed."""
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=options.weights)
    guide = spile.guide(vgg, "features.14", preprocessing=spile.ImagePreprocessing(crop=(SIZE, SIZE)))
    policy = ByLevel(
        Absolute(0.5),
        low=[v2.ColorJitter(brightness=0.4, contrast=0.4, hue=0.1), v2.GaussianBlur(5, (0.5, 2.0))],
        high=v2.ColorJitter(brightness=0.1),
    )
    augment = spile.augment(guide, policy, seed=0)

    images, labels = images_of(options.samples)
    few = torch.from_numpy(images[:4]).permute(0, 3, 1, 2)
    changed = augment(few, ids=range(4), epoch=0).images
    maps = guide(few).on_pixels()
    difference = (changed.float() - few).abs().mean(1).numpy()
    print(f"mean change where the layer is active:  {difference[maps > 0.5].mean():.1f} of 255")
    print(f"mean change elsewhere:                  {difference[maps <= 0.5].mean():.1f} of 255")

    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = spile.feed(augment, (images, labels), batch_size=16, workers=options.workers)
    losses = []
    for epoch in range(options.epochs):
        batches.set_epoch(epoch)
        total = 0.0
        for pixels, classes in batches:
            loss = functional.cross_entropy(model(pixels.float() / 255), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--weights", default=None, help="DEFAULT")
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--workers", type=int, default=0)

if __name__ == "__main__":
    main(parser.parse_args())
