"""Deep supervision in PyTorch: a ResNet-50 with three auxiliary classifiers, and no trace of them afterwards.

    python examples/deep_supervision_torch.py

Early layers learn from losses of their own, beside what reaches them from the far end. The images are small
and the training is short, so that it takes seconds: look at the losses of the heads, not at the accuracy.
"""

from __future__ import annotations

import torch
import torchvision

import spile
from spile.supervision import Constant

CLASSES = 4
SIZE = 32


def quarters(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, of which one quarter is brighter: the label says which."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples,), generator=random)
    images = torch.randn(samples, 3, SIZE, SIZE, generator=random)
    half = SIZE // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = half * (label // 2), half * (label % 2)
        image[:, y : y + half, x : x + half] += 1
    return images, labels


def main(samples: int = 32, epochs: int = 2, batch_size: int = 8) -> list[dict[str, float]]:
    """Train, report, and give the model back."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None, num_classes=CLASSES)
    images, labels = quarters(samples, seed=0)

    supervised = spile.supervise(
        network,
        example=images[:2],
        num_classes=CLASSES,
        taps={"stem": "relu#0", "middle": "layer2", "last": "layer4"},
        weight=Constant(0.9),  # shared evenly: 1 for the output, 0.3 for each head
    )
    optimizer = torch.optim.Adam(supervised.parameters(), lr=1e-4)  # the heads are in it

    steps = epochs * samples // batch_size
    history = []
    for step in range(steps):
        rows = torch.arange(batch_size).add(step * batch_size) % samples
        out = supervised(images[rows])
        loss = supervised.loss(out, labels[rows], progress=step / steps)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        history.append(loss.scalars())
        print(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in history[-1].items() if "labels" in k))

    print("gradients of the stem:", supervised.diagnose(images[:8], labels[:8])["conv1"])
    with torch.no_grad():
        expected = supervised.eval()(images[:2]).main
        assert supervised.strip() is network
        assert torch.equal(network(images[:2]), expected)
    return history


if __name__ == "__main__":
    main()
