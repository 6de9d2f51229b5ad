"""Ten labels a class and the rest without, on the digits: do pseudo-labels help against the labels alone?

    OMP_NUM_THREADS=1 python benchmarks/pseudo_labels.py --seeds 5 --out pseudo.json

A plain network of six layers, 600 steps of Adam for all. Every batch has 32 rows with labels, the same ones
in the same order for every way of a seed; with pseudo-labels 32 rows without come on top. No augmentation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from plain_net import PlainNet, accuracy, digits

import spile
from spile.supervision import Constant, Labels, PseudoLabels
from spile.training.rows import epoch_order
from spile.training.statistics import paired_difference

STEPS, BATCH, RATE, SHOTS = 600, 64, 1e-3, 10
TAPS = ["body.1", "body.3"]
WAYS = {
    "labels, no heads": None,
    "labels on every head": Labels(),
    "labels and pseudo-labels on every head": [Labels(), PseudoLabels(threshold=0.95)],
}


def train(way: str, seed: int, *, steps: int = STEPS) -> dict[str, Any]:
    """One run: held-out accuracy; coverage and precision of the pseudo-labels in the last 50 steps."""
    data = digits(seed)
    rng = np.random.default_rng(seed)
    labelled = np.concatenate(
        [rng.choice(np.flatnonzero(data.y == c), SHOTS, replace=False) for c in range(10)]
    )
    rest = np.setdiff1d(np.arange(len(data.y)), labelled)
    rows = torch.from_numpy(np.concatenate([labelled, rest]))
    known = torch.arange(len(rows)) < len(labelled)
    torch.manual_seed(seed)
    net = PlainNet(6, strided=(1, 3))
    targets = WAYS[way]
    pseudo = isinstance(targets, list)
    sup: Any = spile.supervise(
        net,
        example=(2, 1, 28, 28),
        num_classes=10,
        taps=TAPS,
        head="linear",
        targets={"main": targets or Labels(), "*": targets or Labels()},
        weight=Constant(0.6 if targets else 0.0),
    )
    optimizer = torch.optim.Adam(sup.parameters(), lr=RATE)
    step, epoch, stats, begun = 0, 0, [], time.perf_counter()
    while step < steps:
        order = epoch_order(len(labelled), len(rest), batch_size=BATCH, seed=seed, epoch=epoch)
        for at in torch.from_numpy(order)[: steps - step]:
            at = at if pseudo else at[: BATCH // 2]
            labels = torch.where(known[at], data.y[rows[at]], -1)
            optimizer.zero_grad()
            loss = sup.loss(sup(data.x[rows[at]]), labels, progress=step / steps)
            loss.total.backward()
            optimizer.step()
            stats.append({name: value for name, value in loss.scalars().items() if name.startswith("main/")})
            step += 1
        epoch += 1
    seconds = time.perf_counter() - begun
    last = [{k: s[k] for k in ("main/coverage", "main/precision")} for s in stats[-50:]] if pseudo else []
    return {
        "way": way,
        "seed": seed,
        "accuracy": accuracy(net, data.x_test, data.y_test),
        "seconds": seconds,
        "coverage": float(np.nanmean([s["main/coverage"] for s in last])) if last else None,
        "precision": float(np.nanmean([s["main/precision"] for s in last])) if last else None,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """One row a way, and the differences to the way before, as Markdown."""
    scores = {way: [r["accuracy"] for r in runs if r["way"] == way] for way in WAYS}
    lines = ["| way | mean accuracy | each seed | s a run |", "|---|---|---|---|"]
    for way, found in scores.items():
        seconds = mean(r["seconds"] for r in runs if r["way"] == way)
        lines.append(f"| {way} | {mean(found):.3f} | {' '.join(f'{s:.3f}' for s in found)} | {seconds:.0f} |")
    names = list(WAYS)
    for a, b in ((names[0], names[1]), (names[1], names[2]), (names[0], names[2])):
        d = paired_difference(scores[a], scores[b])
        lines.append(
            f"\n{b} − {a}: {d.mean:+.3f}, 95 % interval {d.low:+.3f} to {d.high:+.3f}, {d.pairs} seeds"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="where every run is written to, as JSON")
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        for way in WAYS:
            runs.append(train(way, seed, steps=options.steps))
            print(runs[-1], flush=True)
            if options.out:
                options.out.write_text(json.dumps(runs, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
