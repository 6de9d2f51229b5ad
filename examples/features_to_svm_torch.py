"""ResNet-18 features into a support vector machine: one layer by habit, and the layer chosen.

python examples/features_to_svm_torch.py                     # torchvision's ImageNet weights, downloaded once
python examples/features_to_svm_torch.py --weights my.pth    # from a local file
python examples/features_to_svm_torch.py --untrained         # without any: shows the steps, not the scores
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import spile
from spile.data.demo import digits
from spile.sklearn import ActivationTransformer

parser = argparse.ArgumentParser()
parser.add_argument("--weights")
parser.add_argument("--untrained", action="store_true")
parser.add_argument("--samples", type=int, default=400)
parser.add_argument("--size", type=int, default=64)


def main(options: argparse.Namespace) -> None:
    source = digits()
    chosen = np.random.default_rng(0).permutation(len(source.records))[: options.samples]
    images = np.stack([source.read(int(i)) for i in chosen])
    labels = np.array([source.records[i].label for i in chosen])
    model = spile.load_model(
        "torchvision:resnet18",
        weights=options.weights,
        pretrained=not options.untrained,
        input_size=options.size,
    )

    # By habit: the last stage. Cross-validation runs the network once a sample, not once a fold.
    svm = make_pipeline(ActivationTransformer(model, "layer4"), StandardScaler(), SVC())
    print(f"layer4 + SVM: {cross_val_score(svm, images, labels, cv=5).mean():.3f}")

    # Chosen: every block scored by ridge on the same extraction, the best one refitted with an SVM.
    store = spile.extract(spile.tap(model, "blocks"), (images, labels), progress=False)
    result = spile.probe(store, nested=True, repeats=1)
    print(result)
    fitted = result.fit(estimator="svm")
    print(f"fitted: {type(fitted[-1]).__name__} on {result.best.point}")
    svm = make_pipeline(ActivationTransformer(model, result.best.point), StandardScaler(), SVC())
    print(f"{result.best.point} + SVM: {cross_val_score(svm, images, labels, cv=5).mean():.3f}")


if __name__ == "__main__":
    main(parser.parse_args())
