"""Offline sets, several seeds: raw input, last layer, chosen layer or combination, a CNN from scratch.

    python benchmarks/transfer_sets.py --sets mnist5k-5 photos --seeds 5 --json results.json

Every seed draws its own training rows; layers and combinations are chosen by cross-validation on these alone,
and the other rows (at most 1,000) only measure. A set is ``NAME`` or ``NAME-SHOTS`` with so many labels a
class. Where a set has its own test rows, seeds redraw the folds and, with shots, the training rows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import spile
from spile.data.demo import open_demo
from spile.probing.measuring import held_out_scores
from spile.probing.rows import Split, split_rows

SETS = ("mnist5k-5", "mnist5k-10", "digits-10", "digits-80", "photos", "shapes", "reviews-50")
WAYS = ("raw", "last", "single", "greedy", "banded", "chosen", "scratch")
MOST_TEST, MOST_TRAIN = 1000, 1000

parser = argparse.ArgumentParser()
parser.add_argument("--sets", nargs="+", default=SETS)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--samples", type=int, default=1500, help="so many samples of a set at most")
parser.add_argument("--json", type=Path)
parser.add_argument("--cache", type=Path, default=Path("transfer-sets"))


def main() -> None:
    options = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    print("| set | " + " | ".join(WAYS) + " | last − chosen, SE |")
    for name in options.sets:
        started = time.perf_counter()
        demo, _, shots = name.partition("-")
        store, images, where = prepared(demo, options)
        found = results.setdefault(name, {way: [] for way in WAYS})
        for seed in range(options.seeds):
            split = bounded(split_rows(store, shots=int(shots) if shots else None, seed=seed), seed)
            for way, score in one_seed(store, split, seed).items():
                found[way].append(score)
            found["scratch"].append(
                scratch(images, where, store, split, seed) if images is not None else np.nan
            )
        print(row(name, found), f"<!-- {time.perf_counter() - started:.0f} s -->", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results))


def prepared(demo: str, options: Any) -> tuple[Any, Any, Any]:
    """The store of a set, its small pictures, and the place of each row in them."""
    source = open_demo(demo)
    keep = np.linspace(0, len(source.records) - 1, min(options.samples, len(source.records))).astype(int)
    text = source.kind == "text"
    loaded = (
        spile.load_model("demo:minilm")
        if text
        else spile.load_model("demo:efficientnet_lite0", input_size=options.size)
    )
    from spile.backend import backend_of
    from spile.data.samples import Samples
    from spile.probing.preparing import example_of, few_samples, tap_for

    part = Samples(
        f"{source.name}[{len(keep)}]",
        source.kind,
        [source.records[i] for i in keep],
        lambda position: source.read(int(keep[position])),
    )
    few = few_samples(loaded, part)
    example = example_of(loaded, few)
    observation = backend_of(loaded.model).observe(loaded.model, example)
    tap = tap_for(loaded, observation, "blocks", example)
    store = spile.extract(tap, part, options.cache / f"{demo}-{options.size}.lance", progress=False)
    if text:
        return store, None, None
    images = np.stack([part.read(int(i)) for i in store.positions])
    return store, images, np.arange(len(images))


def bounded(split: Split, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(
        *(
            np.sort(rng.permutation(rows)[:most])
            for rows, most in ((split.train, MOST_TRAIN), (split.test, MOST_TEST))
        )
    )


def one_seed(store: Any, split: Split, seed: int) -> dict[str, float]:
    """Held-out scores; "chosen" is whichever of the ways has the best cross-validated score."""
    scores: dict[str, float] = {}
    best = (-np.inf, "")
    for way in ("single", "greedy", "banded"):
        result = spile.probe(store, rows=split.train, seed=seed, combine=way, nested=False, repeats=1)
        held = held_out_scores(store, [result], [split])[0]
        scores[way] = held.model
        best = max(best, (result.best.score, way))
        for kept in result.table:
            if kept.baseline and kept.point in held.scores:
                scores[kept.baseline] = held.scores[kept.point]
    scores.setdefault("raw", np.nan)
    return {**scores, "chosen": scores[best[1]]}


def scratch(images: Any, where: Any, store: Any, split: Split, seed: int) -> float:
    """A small CNN on the pictures at 32 pixels, Adam with a falling rate, the same training rows."""
    torch.manual_seed(seed)
    labels = np.unique(np.asarray(store.labels), return_inverse=True)[1]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = nn.functional.interpolate(x, size=32, mode="bilinear")
    y = torch.from_numpy(labels)
    net = nn.Sequential(
        *(
            layer
            for a, b in ((3, 32), (32, 64), (64, 96))
            for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        ),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(96 * 16, int(labels.max()) + 1),
    )
    steps = 300
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.choice(split.train, min(32, len(split.train)), replace=False)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.inference_mode():
        found = torch.cat([net(x[rows]).argmax(1) for rows in np.array_split(split.test, 8)])
    return float((found == y[split.test]).float().mean())


def row(name: str, found: dict[str, list[float]]) -> str:
    def cell(values: list[float]) -> str:
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        return "–" if np.isnan(values).any() else f"{np.mean(values):.3f} ± {error:.3f}"

    gap = np.subtract(found["last"], found["chosen"])
    error = np.std(gap, ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else 0.0
    cells = [cell(found[way]) for way in WAYS]
    return f"| {name} | " + " | ".join(cells) + f" | {gap.mean():+.3f}, {error:.3f} |"


if __name__ == "__main__":
    main()
