"""Activations as engineered features beside classical ones: HOG and local binary patterns of scikit-image.

python examples/handcrafted_plus_activations.py
"""

from __future__ import annotations

import argparse

import numpy as np
from skimage.feature import hog, local_binary_pattern
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import spile
from spile.data.demo import photos
from spile.sklearn import ActivationTransformer

parser = argparse.ArgumentParser()
parser.add_argument("--samples", type=int, default=312)
parser.add_argument("--size", type=int, default=64)


def gradients(images: np.ndarray) -> np.ndarray:
    """(n, d) histograms of oriented gradients."""
    cells = images.shape[1] // 4
    return np.stack([hog(image.mean(axis=2), pixels_per_cell=(cells, cells)) for image in images])


def textures(images: np.ndarray) -> np.ndarray:
    """(n, 10) shares of the uniform local binary patterns of 8 neighbours."""
    codes = [local_binary_pattern(image.mean(axis=2).astype(np.uint8), 8, 1, "uniform") for image in images]
    return np.stack([np.bincount(code.astype(int).ravel(), minlength=10) / code.size for code in codes])


def main(options: argparse.Namespace) -> None:
    source = photos()
    rows = [i for i, record in enumerate(source.records) if record.split == "train"]
    rows = rows[:: max(1, len(rows) // options.samples)]
    images = np.stack([source.read(i) for i in rows])
    labels = np.array([source.records[i].label for i in rows])
    groups = np.array([source.records[i].group for i in rows])

    model = spile.load_model("demo:efficientnet_lite0", input_size=options.size)
    activations = ActivationTransformer(model, "blocks.3")
    classical = [FunctionTransformer(gradients), FunctionTransformer(textures)]
    ways = {
        "HOG + LBP": make_union(*classical),
        "activations": activations,
        "both": make_union(activations, *classical),
    }
    for name, features in ways.items():
        pipeline = make_pipeline(features, StandardScaler(), LogisticRegression(max_iter=500))
        # Patches of one band of a photograph overlap: they stay on one side of every split.
        scores = cross_val_score(pipeline, images, labels, groups=groups, cv=GroupKFold(3))
        print(f"{name}: {scores.mean():.3f}")


if __name__ == "__main__":
    main(parser.parse_args())
