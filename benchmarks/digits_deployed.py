"""Digits with 1,000 labels: a truncated network, its layers chosen within a budget, exported and verified.

    python benchmarks/digits_deployed.py            # PyTorch: .pt2, ONNX, OpenVINO
    python benchmarks/digits_deployed.py --keras    # the Keras port of the same network: .keras

The budget is 30 % of the network's parameters and 80 % of its multiply-accumulates. 100 labels of every digit
choose and fit; the other 797 digits only measure. Differences and sizes do not depend on how busy the machine
is; latencies do.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

import spile
from spile.data.demo import digits

parser = argparse.ArgumentParser()
parser.add_argument("--keras", action="store_true")
parser.add_argument("--size", type=int, default=112, help="side of the input in pixels")
parser.add_argument("--combine", default="banded", choices=("single", "greedy", "banded"))
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--out", default="digits-deployed")


def main() -> None:
    options = parser.parse_args()
    name = "demo:efficientnet_lite0" + ("_keras" if options.keras else "")
    loaded = spile.load_model(name, input_size=options.size)
    source = digits()
    labels = np.array([record.label for record in source.records])
    images = np.stack([source.read(i) for i in range(len(labels))])
    rows = spile.layers(loaded)
    macs, params = max(row.macs for row in rows), sum(p for p in _parameters(loaded.model))
    print(f"{name}: {params:,} parameters, {macs:,} MACs", flush=True)
    started = time.perf_counter()
    addresses = [row.address for row in rows if row.block] or "blocks"
    run = spile.transfer(
        loaded,
        (images, labels),
        options.out,
        addresses=addresses,
        combine=options.combine,
        max_params=int(0.3 * params),
        max_macs=int(0.8 * macs),
        shots=100,
        seeds=options.seeds,
        nested=False,
        progress=False,
    )
    print(run, f"({time.perf_counter() - started:.0f} s)", flush=True)
    best = run.result.best
    print(f"points: {', '.join(run.result.points)}")
    print(f"MACs {best.macs / macs:.1%}, parameters {best.params / params:.1%} of the network")
    exported = run.export(f"{options.out}/exported", images[:64])
    print(exported)
    print(json.dumps({"test": run.test_score, "means": dict(run.means)}))
    for one in exported.verify(images[-797:]):
        print(one)


def _parameters(model: object) -> list[int]:
    weights = getattr(model, "weights", None)  # of Keras; those of a PyTorch model have a method
    if isinstance(weights, list):
        return [int(np.prod(weight.shape)) for weight in weights]
    return [parameter.numel() for parameter in model.parameters()]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
