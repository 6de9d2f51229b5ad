"""Plain 20- and 24-layer networks on the digits, with and without auxiliary heads, the same seeds for both.

    OMP_NUM_THREADS=1 python benchmarks/deep_supervision.py --depths 20 24 --seeds 5 --out results.json

The three ways to train take turns, so that a busy machine slows all alike. A plain loop; batches of 64. Runs
that are in the file already are not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from plain_net import PlainNet, accuracy, digits, taps
from torch import Tensor, nn

import spile
from spile.supervision import Constant

EPOCHS, BATCH, RATE = 8, 64, 1e-3
GOOD = 0.8
WEIGHT = 0.3
"""Of each head."""

Loss = Callable[[Tensor, Tensor, float], Tensor]


def without(net: PlainNet, depth: int) -> tuple[nn.Module, Loss]:
    """The network alone."""
    return net, lambda x, y, progress: nn.functional.cross_entropy(net(x), y)


def every_third(net: PlainNet, depth: int) -> tuple[nn.Module, Loss]:
    """A pooled linear head on every third layer, weight 0.3 each from start to end."""
    at = taps(depth)
    sup = spile.supervise(
        net, example=(2, 1, 28, 28), num_classes=10, taps=at, head="linear", weight=Constant(WEIGHT * len(at))
    )
    return sup, lambda x, y, progress: sup.loss(sup(x), y, progress=progress).total


def defaults(net: PlainNet, depth: int) -> tuple[nn.Module, Loss]:
    """What `spile.supervise` does when nothing is said."""
    sup = spile.supervise(net, example=(2, 1, 28, 28), num_classes=10)
    return sup, lambda x, y, progress: sup.loss(sup(x), y, progress=progress).total


WAYS = {"without heads": without, "head every 3 layers": every_third, "spile's defaults": defaults}


def train(
    way: str, depth: int, seed: int, *, epochs: int = EPOCHS, rows: int | None = None
) -> dict[str, Any]:
    """One run: accuracy after every epoch, the first layer's gradient at the start, seconds of training."""
    data = digits(seed)
    x, y = data.x[:rows], data.y[:rows]
    torch.manual_seed(seed)
    net = PlainNet(depth)
    trained, loss = WAYS[way](net, depth)
    optimizer = torch.optim.Adam(trained.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(seed)
    steps, step, seconds = epochs * -(-len(y) // BATCH), 0, 0.0
    curve, first_gradient = [], 0.0
    for _ in range(epochs):
        begun = time.perf_counter()
        for batch in torch.randperm(len(y), generator=order).split(BATCH):
            optimizer.zero_grad()
            loss(x[batch], y[batch], step / steps).backward()
            if step == 0:
                first_gradient = float(net.body[0][0].weight.grad.norm())
            optimizer.step()
            step += 1
        seconds += time.perf_counter() - begun
        curve.append(accuracy(net, data.x_test, data.y_test))
    return {
        "way": way,
        "depth": depth,
        "seed": seed,
        "accuracy": curve[-1],
        "curve": curve,
        "first_gradient": first_gradient,
        "seconds": seconds,
        "epochs_to_good": next((n for n, value in enumerate(curve, 1) if value >= GOOD), None),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """One row a way and depth, as Markdown."""
    lines = [
        "| depth | heads | mean accuracy | each seed | stuck | gradient of layer 1 "
        f"| epochs to {GOOD} | s a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for depth in sorted({run["depth"] for run in runs}):
        for way in WAYS:
            mine = [run for run in runs if (run["depth"], run["way"]) == (depth, way)]
            if not mine:
                continue
            scores = [run["accuracy"] for run in mine]
            reached = [run["epochs_to_good"] or "–" for run in mine]
            lines.append(
                f"| {depth} | {way} | {mean(scores):.3f} | {' '.join(f'{score:.3f}' for score in scores)} "
                f"| {sum(score < 0.2 for score in scores)} of {len(mine)} "
                f"| {mean(run['first_gradient'] for run in mine):.1e} | {' '.join(map(str, reached))} "
                f"| {mean(run['seconds'] for run in mine):.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 24])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--out", type=Path, help="where every run is written to, as JSON")
    options = parser.parse_args()
    known = options.out is not None and options.out.exists()
    runs = json.loads(options.out.read_text()) if known else []
    done = {(run["depth"], run["seed"], run["way"]) for run in runs}
    for depth in options.depths:
        for seed in range(options.seeds):
            for way in options.ways:
                if (depth, seed, way) in done:
                    continue
                runs.append(train(way, depth, seed, epochs=options.epochs))
                print({**runs[-1], "curve": [round(value, 3) for value in runs[-1]["curve"]]}, flush=True)
                if options.out:
                    options.out.write_text(json.dumps(runs, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
