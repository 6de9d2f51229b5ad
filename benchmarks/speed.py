"""Speed against the usual tools, in paired runs: one table a task, written to docs (`make bench`).

    python benchmarks/speed.py --out docs/benchmarks.md
    python benchmarks/speed.py --rounds 3 --only limits jpeg

Everyone gets the same inputs and must give the same values to 1e-3 of their size, float32. Networks have
random weights, which cost the same as trained ones. Preparing (tracing, compiling) is outside the timed turns
unless a row says so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Threads that spin while they wait crawl beside any other work, and ratios would show that alone. For all
# contenders alike; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import timm
import torch
from measuring import growth, jpeg_files, machine, start_up, stores, usual_jpeg_way, written
from pairing import Contender, Duel
from peers import (
    averaged,
    bare_openvino,
    captum_activation,
    hook_loop,
    matrix_products,
    timm_intermediates,
    torchvision_extractor,
)
from torch import Tensor, nn

import spile
from spile.backend import backend_of
from spile.data import batches, open_source
from spile.interfaces import EngineName

BATCH = 16
HOOKS, EAGER, OPENVINO = "hook loop", "spile, eager", "spile, openvino"
NETWORKS = {
    "resnet18": ("layer1", "layer2", "layer4"),
    "resnet50": ("layer1", "layer2", "layer4"),
    "tf_efficientnet_lite0": ("blocks.1", "blocks.2", "blocks.5"),
    "vit_small_patch16_224": ("blocks.2", "blocks.5", "blocks.11"),
}
"""A shallow, a middle and a deep point of each; the middle one meets all peers."""
HURRY_AFTER = 300.0
"""Seconds after which there are three rounds at most, so that a slow machine is done in time too."""
SPEC = spile.ImagePreprocessing(resize=256, crop=(224, 224))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def engine(tap: Any, name: EngineName, preprocessing: Any = None) -> Any:
    return backend_of(tap.model).engine(tap, name=name, preprocessing=preprocessing, precision="float32")


def extraction() -> Iterator[Duel]:
    """Ready float tensors in memory to averaged activations in memory, batches of 16."""
    for name, layers in NETWORKS.items():
        x = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        for layer in layers:
            yield one_layer(network(name), name, layer, x, all_peers=layer == layers[1])


def one_layer(model: nn.Module, name: str, layer: str, x: Tensor, *, all_peers: bool) -> Duel:
    pool = "mean" if name.startswith("vit") else "avg"
    tap = spile.tap(model, layer, pool=pool, example=x)
    # A hook of a peer that stays would slow down and falsify the others: each has a copy of the network.
    makers: dict[str, Callable[[], Any]] = {HOOKS: lambda: hook_loop(network(name), layer)}
    if all_peers:
        makers |= {
            "hook loop, whole map copied (THINGSvision's way)": lambda: hook_loop(
                network(name), layer, whole=True
            ),
            "torchvision create_feature_extractor": lambda: torchvision_extractor(network(name), layer),
            "timm forward_intermediates": lambda: timm_intermediates(network(name), layer, x[:2]),
            "Captum LayerActivation": lambda: captum_activation(network(name), layer),
        }
    contenders, left_out = [], {}
    for title, make in makers.items():
        try:
            run = make()
            run(x[:2])
        except Exception as error:
            left_out[title] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        else:
            contenders.append(Contender(title, lambda run=run: run(x)))
    for title, kind in ((EAGER, "eager"), (OPENVINO, "openvino")):
        own = engine(tap, kind)
        contenders.append(Contender(title, lambda own=own: own(x)[layer]))
    if all_peers:
        (row,) = (row for row in spile.layers(model, x[:2]) if row.address == layer)
        products = matrix_products(BATCH * row.macs)
        contenders.append(
            Contender("as many operations in PyTorch's matrix products", products, checked=False)
        )
    return Duel(f"{name} at {layer}", BATCH, tuple(contenders), left_out)


def limits() -> Iterator[Duel]:
    """ResNet-50: what averaging, normalising and copying cost beside OpenVINO's bare forward pass."""
    model = network("resnet50")
    x = torch.randn(BATCH, 3, 224, 224)
    for layer, last in (("layer2", 6), ("layer4", 8)):
        own = engine(spile.tap(model, layer, pool="avg", example=x), "openvino")
        bare = bare_openvino(nn.Sequential(*list(model.children())[:last]), x)
        yield Duel(
            f"resnet50 to {layer} beside the bare engine",
            BATCH,
            (Contender("bare OpenVINO", bare, checked=False), Contender(OPENVINO, lambda own=own: own(x))),
        )
    deepest = engine(spile.tap(model, "layer4", pool="avg", example=x), "openvino")
    stages = engine(spile.tap(model, "stages", pool="avg", example=x), "openvino")
    yield Duel(
        "resnet50, all stages beside the deepest alone",
        BATCH,
        (
            Contender("deepest stage", lambda: deepest(x)["layer4"]),
            Contender("all four stages", lambda: stages(x)["layer4"]),
        ),
    )


def transformers_way() -> Iterator[Duel]:
    """A Hugging Face ViT-S with random weights: its own `output_hidden_states` against a tap on it."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    model = ViTModel(config, add_pooling_layer=False).eval()
    x = torch.randn(BATCH, 3, 224, 224)

    def own_way() -> Any:
        with torch.no_grad():
            states = model(x, output_hidden_states=True).hidden_states
        return averaged(states[6]).numpy()

    layer = next(row.address for row in spile.layers(model, x) if row.block and ".5" in row.address)
    tap = spile.tap(model, layer, pool="mean", example=x)
    runs = {kind: engine(tap, kind) for kind in ("eager", "openvino")}
    yield Duel(
        "Hugging Face ViT-S, sixth block",
        BATCH,
        (
            Contender("output_hidden_states", own_way),
            Contender(EAGER, lambda: runs["eager"](x)[layer]),
            Contender(OPENVINO, lambda: runs["openvino"](x)[layer]),
        ),
    )


def jpeg() -> Iterator[Duel]:
    """JPEG files of 500x375 to a finished store on disk, against Pillow, DataLoader, hooks and npy."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, layer, files in (("resnet50", "layer2", 96), ("tf_efficientnet_lite0", "blocks.2", 384)):
            paths = jpeg_files(folder / name, files)
            tap = spile.tap(network(name), layer, pool="avg", example=(1, 3, 224, 224))
            spent = {"seconds": 0.0}

            def stored(kind: EngineName, tap: Any = tap, paths: Any = paths, spent: Any = spent) -> Any:
                path = folder / f"{time.monotonic_ns()}.lance"
                store = spile.extract(
                    tap, paths, path, engine=kind, dtype="float32", preprocessing=SPEC, progress=False
                )
                spent["seconds"] = store.manifest.recorded["engine"].get("preparation_seconds", 0.0)
                return store[next(iter(store.points))].numpy()

            def decoded(paths: Any = paths) -> None:
                for _ in batches(open_source(paths), SPEC, batch_size=64):
                    pass

            usual = usual_jpeg_way(network(name), layer, paths, folder / f"{name}.npy")
            yield Duel(
                f"{files} JPEG files to a store, {name} at {layer}",
                files,
                (
                    Contender("Pillow, DataLoader, hooks, npy", usual),
                    Contender(
                        "spile.extract, openvino, once prepared",
                        lambda stored=stored: stored("openvino"),
                        spared=lambda spent=spent: spent["seconds"],
                    ),
                    Contender("spile.extract, auto, all told", lambda stored=stored: stored("auto")),
                    Contender("decoding, resizing and cropping alone", decoded, checked=False),
                ),
            )


def worst() -> Iterator[Duel]:
    """Where there is least to gain: few tiny images, small batches. `auto` against a hook loop, all told."""
    cases = (
        ("tf_efficientnet_lite0", "blocks.0", 32, 64, 8),
        ("resnet18", "layer4", 32, 256, 32),
        ("resnet50", "layer4", 224, 8, 1),
    )
    for name, layer, side, samples, batch in cases:
        x = np.random.default_rng(0).random((samples, 3, side, side), dtype=np.float32)
        features = hook_loop(network(name), layer)
        tap = spile.tap(network(name), layer, pool="avg", example=(1, 3, side, side))

        def looped(x: Any = x, batch: int = batch, features: Any = features) -> Any:
            parts = range(0, len(x), batch)
            return np.concatenate([features(torch.from_numpy(x[i : i + batch])) for i in parts])

        def extracted(x: Any = x, batch: int = batch, tap: Any = tap, layer: str = layer) -> Any:
            store = spile.extract(tap, x, batch_size=batch, dtype="float32", progress=False)
            return store[layer].numpy()

        yield Duel(
            f"{samples} images of {side}x{side} in batches of {batch}, {name} at {layer}",
            samples,
            (Contender(HOOKS, looped), Contender("spile.extract, auto, all told", extracted)),
        )


SECTIONS = {
    "extraction": extraction,
    "limits": limits,
    "transformers": transformers_way,
    "jpeg": jpeg,
    "worst": worst,
}


SCRIPTS = {
    "Keras on TensorFlow": "keras_extraction.py --samples 160 --rounds 3",
    "Keras on JAX": "keras_extraction.py --samples 160 --rounds 3",
    "Probes": "transfer_search.py speed --layers 3",
    "Heads": "supervision_overhead.py --model resnet18 --size 128 --pairs 15",
    "Guides": "guide_overhead.py --rounds 12",
}


def scripts() -> str:
    """What the other scripts print, with fewer rounds than they take by themselves."""
    parts = ["## Other scripts of this folder, run briefly"]
    for title, command in SCRIPTS.items():
        script, *options = command.split()
        env = dict(os.environ) | ({"KERAS_BACKEND": title.split()[-1].lower()} if "Keras" in title else {})
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name(script), *options],
            check=True,
            capture_output=True,
            text=True,
            env=env,
        )
        setting = f"KERAS_BACKEND={env['KERAS_BACKEND']} " if "Keras" in title else ""
        printed = done.stdout.strip()
        printed = printed if "|---" in printed else f"```\n{printed}\n```"
        parts.append(f"### {title}: `{setting}python benchmarks/{command}`\n\n{printed}")
    return "\n\n".join(parts)


OTHERS = {"growth": growth, "stores": stores, "startup": start_up, "scripts": scripts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", choices=[*SECTIONS, *OTHERS])
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # forked DataLoader workers do not touch it
    wanted = options.only or [*SECTIONS, *OTHERS]
    began = time.perf_counter()
    report, fought = [machine()], []
    for name, section in SECTIONS.items():
        if name not in wanted:
            continue
        report.append(f"## {str(section.__doc__).splitlines()[0]}")
        for duel in section():
            late = time.perf_counter() - began > HURRY_AFTER
            duel.fight(min(options.rounds, 3) if late or name == "jpeg" else options.rounds)
            fought.append(duel)
            report.append(duel.markdown())
            print(report[-1], "\n", flush=True)
    for name, measure in OTHERS.items():
        if name in wanted:
            report.append(measure())
            print(report[-1], "\n", flush=True)
    report.append(f"The whole run took {(time.perf_counter() - began) / 60:.1f} minutes.")
    if options.out:
        written(options.out, report, fought)


if __name__ == "__main__":
    main()
