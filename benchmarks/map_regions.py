"""Do guided regions find a drawn object whose mask is known exactly?

    python benchmarks/map_regions.py --samples 100

Objects are the shapes of ``demo:shapes`` at 224 px, the guide is EfficientNet-Lite0 with ImageNet weights.
Each region is given the object's own area (by rank), so that only where it lies is judged: intersection over
union with the true mask, its mean over the samples and a 95 % interval (bootstrap).
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

import spile
from spile.augmentation import Frame, Maps, Quantile
from spile.augmentation.geometry import Axis, Grid, areas
from spile.augmentation.maps import chosen_maps
from spile.augmentation.randomness import Draw
from spile.augmentation.thresholds import levels
from spile.data import shapes

SIDE = 224


def scenes(samples: int) -> tuple[torch.Tensor, np.ndarray]:
    images, masks = [], []
    for scene in shapes.scenes(samples, "test"):
        rng = np.random.default_rng([2026, shapes._SEEDS[scene.split], scene.number])
        mask = Image.fromarray((shapes._mask(scene.shape, rng) * 255).astype(np.uint8))
        masks.append(np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) > 127)
        images.append(np.asarray(Image.fromarray(shapes.draw(scene)).resize((SIDE, SIDE))))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), np.stack(masks)


def overlap(maps: Maps, masks: np.ndarray, *, plain: bool = False) -> np.ndarray:
    """IoU of each region of the mask's own area; `plain` puts cells where a resize would."""
    found = []
    for values, grid, frame, mask in zip(maps.values, maps.grids, maps.frames, masks, strict=True):
        h, w = values.shape
        if plain:
            grid = Grid(Axis.of_pixels(SIDE).resized(h), Axis.of_pixels(SIDE).resized(w))
        share = float(np.clip(mask.mean(), 0.01, 0.95))
        keys = np.zeros_like(values)
        active = levels(values, areas(grid, frame), Quantile(1 - share, bounds=(1e-6, 1.0)), keys)
        one = Maps(active[None].astype(np.float32), (grid,), (frame,))
        region = one.on_pixels()[0] > 0.5
        found.append((region & mask).sum() / max((region | mask).sum(), 1))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    images, masks = scenes(options.samples)
    loaded = spile.load_model("demo:efficientnet_lite0", input_size=SIDE)
    ids = [str(number) for number in range(len(images))]
    rows: dict[str, np.ndarray] = {}
    for at, reduce in (("blocks.2", "l2"), ("blocks.4", "l2"), ("blocks.4", "pca"), ("blocks.6", "gradcam")):
        guide = spile.guide(loaded, at, reduce=reduce)
        parts = [guide(images[start : start + 20]) for start in range(0, len(images), 20)]
        maps = Maps(
            np.concatenate([part.values for part in parts]),
            sum((part.grids for part in parts), ()),
            (Frame.whole((SIDE, SIDE)),) * len(images),
        )
        rows[f"{reduce} at {at}"] = overlap(maps, masks)
        if at != "blocks.6":  # 7 x 7 cells are too few to measure where they lie
            own = spile.guide(loaded, at, centres="measured")(images[:1]).grids[0]
            first = f"rows begin at {own.rows.first:.1f}, columns at {own.columns.first:.1f}"
            print(f"{at}: {first}; by strides and padding at {maps.grids[0].rows.first:.1f}")
            rows[f"{reduce} at {at}, measured"] = overlap(replace(maps, grids=(own,) * len(images)), masks)
        rows[f"{reduce} at {at}, plain upsampling"] = overlap(maps, masks, plain=True)
        if at == "blocks.4" and reduce == "l2":
            for which in ("permuted", "random", "centre"):
                rows[f"placebo: {which}"] = overlap(chosen_maps(maps, which, ids, Draw(0, 0)), masks)
    generator = np.random.default_rng(0)
    print("| region | IoU with the true mask |\n|---|---:|")
    for name, found in rows.items():
        means = [generator.choice(found, len(found)).mean() for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        print(f"| {name} | {found.mean():.3f} [{low:.3f}, {high:.3f}] |")
    pairs = [(f"l2 at blocks.{number}", way) for number in (2, 4) for way in ("plain upsampling", "measured")]
    for at, other in pairs:
        gain = rows[at] - rows[f"{at}, {other}"]
        means = [generator.choice(gain, len(gain)).mean() for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        print(f"\n{at}, fields - {other}, paired: {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
