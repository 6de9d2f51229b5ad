"""Offline sets, several seeds: raw input, last layer, chosen layer or combination, a CNN from scratch.

    python benchmarks/transfer_sets.py --sets mnist5k-5 photos --seeds 5 --json results.json

A set is ``NAME`` or ``NAME-SHOTS`` with so many labels a class. Every seed draws its own training rows
(without SHOTS, 80 % of them, whole groups, 300 at most); layers and combinations are chosen by
cross-validation on these alone, and the other rows only measure. Each set is extracted once, into
``--cache``.

``single``, ``greedy`` and ``banded`` are what ``combine=`` of that name ends with; ``chosen`` is whichever of
them has the best cross-validated score. ``raw`` is the input without the network: pixels, or tf-idf of texts.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from offline_sets import open_set, some_of
from torch import nn

import spile
from spile.backend import backend_of
from spile.probing.measuring import held_out_scores
from spile.probing.preparing import example_of, few_samples, tap_for, texts_of
from spile.probing.rows import Split, split_rows

SETS = (
    "mnist5k-5", "mnist5k-10", "photos", "digits-10", "fashion-10", "reviews-50", "imdb-50", "shapes",
    "textures", "digits2mnist-30", "fashion-30",
)  # fmt: skip
WAYS = ("raw", "last", "single", "greedy", "banded", "chosen", "scratch")
MOST_TRAIN, MOST_TEST = 300, 1000

parser = argparse.ArgumentParser()
parser.add_argument("--sets", nargs="+", default=SETS)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--samples", type=int, default=2500, help="so many samples of a set at most")
parser.add_argument("--json", type=Path, help="results so far are read from here, and written to")
parser.add_argument("--cache", type=Path, default=Path("transfer-sets"))


def main() -> None:
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
    results: dict[str, list[dict[str, Any]]] = known
    print("| set | " + " | ".join(WAYS) + " | last − chosen, SE | picks |")
    for name in options.sets:
        demo, _, shots = name.partition("-")
        found = results.setdefault(name, [])
        opened: Any = None
        for seed in range(len(found), options.seeds):
            opened = opened or prepared(demo, options)
            store, images, texts = opened
            started = time.perf_counter()
            split = drawn(store, int(shots) if shots else None, seed)
            one = one_seed(store, split, seed, texts)
            one["scratch"] = None if images is None else scratch(images, store, split, seed)
            one |= {"train": len(split.train), "test": len(split.test), "s": time.perf_counter() - started}
            found.append(one)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
        print(row(name, found), flush=True)


def prepared(demo: str, options: Any) -> tuple[Any, Any, Any]:
    """The store of a set, its small pictures, and its texts."""
    part = some_of(open_set(demo), options.samples)
    text = part.kind == "text"
    loaded = spile.load_model("demo:minilm" if text else "demo:efficientnet_lite0",
                              **({} if text else {"input_size": options.size}))  # fmt: skip
    example = example_of(loaded, few_samples(loaded, part))
    observation = backend_of(loaded.model).observe(loaded.model, example)
    tap = tap_for(loaded, observation, "blocks", example)
    path = options.cache / f"{demo}-{options.size}-{len(part.records)}.lance"
    store = spile.extract(tap, part, path, progress=False)
    if text:
        return store, None, texts_of(part, store)
    return store, [part.read(int(i)) for i in store.positions], None


def drawn(store: Any, shots: int | None, seed: int) -> Split:
    split = split_rows(store, shots=shots, seed=seed)
    rng = np.random.default_rng(seed)
    train = split.train
    if shots is None:
        units = np.asarray(store.ids if store.groups is None else store.groups)[train]
        names = np.unique(units.astype(str))
        kept = rng.permutation(names)[: round(0.8 * len(names))]
        train = rng.permutation(train[np.isin(units.astype(str), kept)])[:MOST_TRAIN]
    return replace(split, train=np.sort(train), test=np.sort(rng.permutation(split.test)[:MOST_TEST]))


def one_seed(store: Any, split: Split, seed: int, texts: Any) -> dict[str, Any]:
    """Held-out scores, and what was picked."""
    scores: dict[str, Any] = {"raw": None}
    ways: dict[str, tuple[float, str, float]] = {}
    for way in ("greedy", "banded"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer rows of a class than folds
            words = texts if way == "greedy" else None
            options = {"combine": way, "repeats": 1, "nested": False, "texts": words}
            result = spile.probe(store, rows=split.train, seed=seed, **options)
        held = held_out_scores(store, [result], [split], texts=words)[0]
        ways[way] = (result.best.score or 0.0, " + ".join(result.points), held.model or 0.0)
        if way == "greedy":
            best = max(
                (r for r in result.table if r.score is not None and not r.points
                 and r.baseline not in ("raw", "tfidf")),
                key=lambda r: r.score or 0.0,
            )  # fmt: skip
            ways["single"] = (best.score or 0.0, best.point, held.scores[best.point])
            for kept in result.table:
                if kept.baseline and kept.point in held.scores:
                    key = {"tfidf": "raw"}.get(kept.baseline, kept.baseline)
                    scores[key] = held.scores[kept.point]
    chosen = max(("single", "greedy", "banded"), key=lambda way: ways[way][0])
    for way, (_, _, held_score) in ways.items():
        scores[way] = held_score
    return {
        **scores,
        "chosen": ways[chosen][2],
        "way": chosen,
        "pick": ways[chosen][1],
        "cv": ways[chosen][0],
    }


def scratch(images: Any, store: Any, split: Split, seed: int) -> float:
    """A small CNN on the pictures at 32 pixels, Adam with a falling rate, the same training rows."""
    torch.manual_seed(seed)
    labels = np.unique(np.asarray(store.labels), return_inverse=True)[1]
    x = torch.cat([small(image) for image in images])
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
    steps = 150
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


def small(image: Any) -> torch.Tensor:
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return nn.functional.interpolate(x, size=32, mode="bilinear")


def row(name: str, found: list[dict[str, Any]]) -> str:
    def cell(way: str) -> str:
        values = [one[way] for one in found]
        if None in values:
            return "–"
        return f"{np.mean(values):.3f} ± {standard_error(values):.3f}"

    gap = [one["last"] - one["chosen"] for one in found]
    picks = ", ".join(f"{one['way']}: {one['pick']}" for one in found)
    return (
        f"| {name} | "
        + " | ".join(map(cell, WAYS))
        + f" | {np.mean(gap):+.3f}, {standard_error(gap):.3f} | {picks} |"
    )


def standard_error(values: Any) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
