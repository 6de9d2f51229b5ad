"""Does guiding help with few labels? Guided augmentation against its placebo, another sample's map.

    python benchmarks/guided_comparison.py --fashion FOLDER --out guided.json --minutes 10
    python benchmarks/guided_comparison.py --out guided.json --table docs/augmentation_results.md

A small network is trained from scratch on 10 or 50 labels a class, with the same initial weights, rows and
order of batches for every way of one seed, and as many steps. The guide is a pretrained EfficientNet-Lite0,
its maps kept in a bank, so that guided and placebo cost the same. Every run is kept in --out: the script goes
on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import offline_sets
import torch
from offline_sets import open_set
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

import spile
from spile.augmentation import ByLevel, Frame, MapCutMix, Photometric, Quantile
from spile.data.samples import Samples
from spile.training.statistics import paired_difference

SETS = ("shapes", "photos", "fashion")
SHOTS = (10, 50)
SIDE, SEEN, BATCH = 32, 128, 50
STEPS = {10: 150, 50: 300}
TESTED = 1000


def jitter(strength: float) -> Photometric:
    """Brightness, contrast and a cast of colour, all drawn."""

    def change(image: Tensor) -> Tensor:
        pixels = image.float()
        middle = pixels.mean()
        gain, shift = 1 + strength * (2 * torch.rand(2) - 1)
        cast = 1 + strength * (torch.rand(3, 1, 1) - 0.5)
        return (((pixels - middle) * gain + middle * shift) * cast).round().clamp(0, 255).to(torch.uint8)

    return Photometric(change)


BANDS = ByLevel(Quantile(0.5, 0.85), low=jitter(0.6), mid=jitter(0.2))
WAYS = {
    "none": None,
    "RandAugment": None,
    "CutMix": None,
    "MapCutMix": (MapCutMix(), "guided"),
    "MapCutMix, placebo": (MapCutMix(), "permuted"),
    "ByLevel": (BANDS, "guided"),
    "ByLevel, placebo": (BANDS, "permuted"),
}


class Set:
    """The pictures of a set that are used, small, and their maps."""

    def __init__(self, name: str, seeds: int) -> None:
        self.source = open_set(name)
        records = self.source.records
        self.classes = sorted({record.label for record in records}, key=str)
        numbers = {label: number for number, label in enumerate(self.classes)}
        self.codes = np.array([numbers[record.label] for record in records])
        test = np.flatnonzero([record.split == "test" for record in records])
        self.train = np.flatnonzero([record.split == "train" for record in records])
        self.test = np.random.default_rng(0).permutation(test)[:TESTED]
        used = np.unique(np.concatenate([self.rows(shots, seed) for shots in SHOTS for seed in range(seeds)]))
        self.pictures = {int(row): self.small(int(row)) for row in [*used, *self.test]}
        guide = spile.guide(spile.load_model("demo:efficientnet_lite0", input_size=SEEN), "blocks.4")
        chosen = [records[int(row)] for row in used]
        self.bank = spile.MapBank(guide).fill(
            Samples(name, "image", chosen, lambda place: self.source.read(int(used[place]))), batch_size=64
        )

    def rows(self, shots: int, seed: int) -> np.ndarray:
        """So many of each class, or all that there are."""
        order = np.random.default_rng([seed, shots]).permutation(self.train)
        return np.concatenate([order[self.codes[order] == code][:shots] for code in range(len(self.classes))])

    def small(self, row: int) -> np.ndarray:
        """uint8 (3, SIDE, SIDE)."""
        picture = Image.fromarray(np.squeeze(self.source.read(row))).convert("RGB")
        return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)

    def batch(self, rows: Any) -> tuple[Tensor, Tensor]:
        pixels = np.stack([self.pictures[int(row)] for row in rows])
        return torch.from_numpy(pixels), torch.from_numpy(self.codes[rows])

    def frames(self, rows: Any) -> list[Frame]:
        sizes = (self.source.read(int(row)).shape[:2] for row in rows)
        return [Frame.whole((int(h), int(w)), (SIDE, SIDE)) for h, w in sizes]


def network(classes: int) -> nn.Module:
    widths = (3, 16, 32, 64, 64)
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise(widths)):
        stride = 1 if number == 3 else 2
        layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def ready(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def trained(data: Set, shots: int, seed: int, way: str) -> dict[str, float]:
    """Accuracy on the test rows, and seconds of training."""
    rows, steps = data.rows(shots, seed), STEPS[shots]
    frames = dict(zip(rows.tolist(), data.frames(rows), strict=True))
    torch.manual_seed(seed)
    model = network(len(data.classes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    randaugment, cutmix = v2.RandAugment(), v2.CutMix(num_classes=len(data.classes))
    chosen = WAYS[way]
    augment = None
    if chosen is not None:
        augment = spile.augment(
            data.bank, chosen[0], seed=seed, maps=chosen[1], classes=len(data.classes), framework="torch"
        )
    order = np.random.default_rng([seed, 7])
    torch.manual_seed(seed + 1000)
    began = time.perf_counter()
    for step in range(steps):
        picked = order.permutation(rows)[:BATCH]
        images, labels = data.batch(picked)
        wanted: Any = labels
        if way == "RandAugment":
            images = torch.stack([randaugment(image) for image in images])
        elif way == "CutMix":
            images, wanted = cutmix(images, labels)
        elif augment is not None:
            ids = [data.source.records[int(row)].id for row in picked]
            cuts = [frames[int(row)] for row in picked]
            images, wanted, _ = augment(images, labels, ids=ids, epoch=step, frames=cuts)
        optimizer.zero_grad()
        functional.cross_entropy(model(ready(images)), wanted).backward()
        optimizer.step()
        rate.step()
    seconds = time.perf_counter() - began
    images, labels = data.batch(data.test)
    with torch.no_grad():
        right = model.eval()(ready(images)).argmax(1) == labels
    return {"accuracy": right.double().mean().item(), "seconds": seconds}


def key_of(name: str, shots: int, seed: int, way: str) -> str:
    return f"{name}/{shots}/{seed}/{way}"


def measure(options: argparse.Namespace, found: dict[str, Any]) -> None:
    began = time.monotonic()
    for name in options.sets:
        wanted = [
            (shots, seed, way) for seed in range(options.seeds) for shots in SHOTS for way in WAYS
            if key_of(name, shots, seed, way) not in found
        ]  # fmt: skip
        data = Set(name, options.seeds) if wanted else None
        for shots, seed, way in wanted:
            assert data is not None
            if time.monotonic() - began > 60 * options.minutes:
                return
            found[key_of(name, shots, seed, way)] = trained(data, shots, seed, way)
            options.out.write_text(json.dumps(found, indent=1))
            print(key_of(name, shots, seed, way), found[key_of(name, shots, seed, way)], flush=True)


def table(options: argparse.Namespace, found: dict[str, Any]) -> str:
    """Two tables in Markdown, of what there is."""

    def scores(name: str, shots: int, way: str) -> list[float]:
        keys = [key_of(name, shots, seed, way) for seed in range(options.seeds)]
        return [found[key]["accuracy"] for key in keys if key in found]

    settings = [
        (name, shots) for name in SETS for shots in SHOTS
        if all(len(scores(name, shots, way)) == options.seeds for way in WAYS)
    ]  # fmt: skip
    lines = ["| set, labels a class | " + " | ".join(WAYS) + " |", "|---|" + "---:|" * len(WAYS)]
    for name, shots in settings:
        cells = (scores(name, shots, way) for way in WAYS)
        lines.append(
            f"| {name}, {shots} | " + " | ".join(f"{fmean(c):.3f} ± {stdev(c):.3f}" for c in cells) + " |"
        )
    pairs = [
        ("MapCutMix − its placebo", "MapCutMix, placebo", "MapCutMix"),
        ("ByLevel − its placebo", "ByLevel, placebo", "ByLevel"),
        ("MapCutMix − CutMix", "CutMix", "MapCutMix"),
        ("ByLevel − none", "none", "ByLevel"),
    ]
    lines += [
        "",
        "| set, labels a class | " + " | ".join(pair[0] for pair in pairs) + " |",
        "|---|" + "---:|" * len(pairs),
    ]

    def shown(a: list[float], b: list[float]) -> str:
        made = paired_difference(a, b)
        return f"{made.mean:+.3f} [{made.low:+.3f}, {made.high:+.3f}]"

    for name, shots in settings:
        cells = [shown(scores(name, shots, a), scores(name, shots, b)) for _, a, b in pairs]
        lines.append(f"| {name}, {shots} | " + " | ".join(cells) + " |")
    if len(settings) > 1:
        means = {
            way: [fmean(scores(n, s, way)[seed] for n, s in settings) for seed in range(options.seeds)]
            for way in WAYS
        }
        lines.append(
            "| all, mean of each seed | " + " | ".join(shown(means[a], means[b]) for _, a, b in pairs) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("guided.json"))
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--fashion", type=Path, help="where dataset-fashion-mnist is unpacked")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=25, help="stop after so many; run it again to go on")
    parser.add_argument("--table", type=Path, help="put the tables after <!-- measured --> in this page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    offline_sets.FASHION = options.fashion or offline_sets.FASHION
    if options.fashion is None and "fashion" in options.sets:
        options.sets.remove("fashion")
        print("without --fashion its pictures are left out")
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    measure(options, found)
    made = table(options, found)
    print(made)
    if options.table is not None:
        head, mark, _ = options.table.read_text().partition("<!-- measured -->\n")
        options.table.write_text(f"{head}{mark}\n{made}\n")


if __name__ == "__main__":
    main()
