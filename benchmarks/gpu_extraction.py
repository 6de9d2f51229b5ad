"""ResNet-50 in bfloat16 on one GPU: all stages, averaged, against the bare compiled pass and a hook loop.

    python benchmarks/gpu_extraction.py --samples 20000 --files 5000

Decoded images in memory, and JPEG files to a store on disk against decoding alone and computing alone.
Everyone gets the same images, in turns; compiling is over before, or not counted. `--device cpu` tries the
script out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from measuring import jpeg_files, machine
from pairing import Contender, Duel
from torch import nn

import spile
from spile.data import batches, open_source

SPEC = spile.ImagePreprocessing(
    resize=256, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255
)
STAGES = ["layer1", "layer2", "layer3", "layer4"]
Pixels = np.ndarray[Any, Any]


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet50").eval().to(device)


def finished(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def bare(device: str, samples: int, batch: int) -> Callable[[], None]:
    """The compiled forward pass on a batch that lies on the device, as often as there are batches."""
    forward = torch.compile(network(device).forward_features)
    x = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            for _ in range(0, samples, batch):
                forward(x)
        finished(device)

    return run


def hook_loop(device: str, pixels: Pixels, batch: int) -> Callable[[], None]:
    """Eager, a hook on every stage, whole maps averaged on the device, each result copied at once."""
    model = network(device)
    kept: list[Any] = []
    for stage in STAGES:
        model.get_submodule(stage).register_forward_hook(
            lambda module, args, out: kept.append(out.float().mean((2, 3)).cpu())
        )
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))

    def run() -> None:
        kept.clear()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            for start in range(0, len(pixels), batch):
                images = torch.from_numpy(pixels[start : start + batch]).to(device).permute(0, 3, 1, 2)
                model((images.float() / 255 - mean) / std)

    return run


def extracting(
    device: str, data: Any, batch: int, path: Callable[[], Path | None] = lambda: None
) -> Contender:
    tap, spent = spile.tap(network(device), STAGES, pool="avg", example=(2, 3, 224, 224)), {"seconds": 0.0}

    def run() -> None:
        store = spile.extract(
            tap, data, path(), engine="compile", precision="bfloat16", batch_size=batch, preprocessing=SPEC,
            progress=False,
        )  # fmt: skip
        spent["seconds"] = store.manifest.recorded["engine"]["preparation_seconds"]

    return Contender("spile.extract, compile", run, checked=False, spared=lambda: spent["seconds"])


def duels(device: str, samples: int, files: int, batch: int) -> Iterator[Duel]:
    pixels = np.random.default_rng(0).integers(0, 256, (samples, 224, 224, 3), dtype=np.uint8)
    yield Duel(
        f"{samples} decoded images in memory, batches of {batch}",
        samples,
        (
            Contender("bare compiled forward", bare(device, samples, batch), checked=False),
            extracting(device, pixels, batch),
            Contender("hook loop, copied at once", hook_loop(device, pixels, batch), checked=False),
        ),
    )
    with tempfile.TemporaryDirectory() as place:
        paths = jpeg_files(Path(place) / "photos", files)

        def decoded() -> None:
            for _ in batches(open_source(paths), SPEC, batch_size=batch):
                pass

        yield Duel(
            f"{files} JPEG files of 500x375 to a store",
            files,
            (
                Contender("decoding, resizing and cropping alone", decoded, checked=False),
                Contender("bare compiled forward", bare(device, files, batch), checked=False),
                extracting(device, paths, batch, lambda: Path(place) / f"{time.monotonic_ns()}.lance"),
            ),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=20_000, help="decoded images, 150 kB each")
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine() if options.device == "cpu" else machine(torch.cuda.get_device_name()))
    for duel in duels(options.device, options.samples, options.files, options.batch):
        print(f"\n{duel.fight(options.rounds).markdown()}")


if __name__ == "__main__":
    main()
