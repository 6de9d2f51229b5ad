"""A fitted head as a module: the scores of its arrays, eager and in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor, nn

from spile.plain import PlainHead
from spile.probing.features import joined
from spile.probing.heads import fit_head
from spile.probing.plain_heads import plain_head
from spile.probing.ridge import fit_ridge
from spile.torch.fitted import FittedHead
from spile.torch.whole import _WRITERS, FORMATS, open_whole

RNG = np.random.default_rng(0)
Y = np.arange(80) % 3
TRAIN, NEW = (
    [(RNG.normal(size=(80, d)) + (Y[:, None] == np.arange(d))).astype(np.float32) for d in (6, 8)]
    for _ in range(2)
)


def heads() -> dict[str, PlainHead]:
    """Every kind of head on two parts of 6 and 8 features."""
    X, names = joined(TRAIN), np.array(["ant", "bee", "cow"])[Y]
    several = (RNG.normal(size=(80, 2)) + X[:, :2] > 0).astype(int)
    fits: dict[str, Any] = {
        "ridge": fit_ridge(X, names, classes=np.unique(names), calibrate=True),
        "numbers": fit_ridge(X, X[:, 0]),
        "two": fit_ridge(X, Y > 0, classes=np.arange(2)),
        "knn uniform": fit_head(KNeighborsClassifier(3), X, names, kind="classes"),
        "svm linear": fit_head(SVC(kernel="linear", break_ties=True), X, names, kind="classes"),
        "svm two": fit_head("svm", X, Y > 0, kind="classes", calibrate=True),
        "svm numbers": fit_head("svm", X, X[:, 0], kind="numbers"),
    }
    for name in ("svm", "linear_svm", "logistic", "lda", "knn"):
        fits[name] = fit_head(name, X, names, kind="classes")
        fits[f"{name} calibrated"] = fit_head(name, X, names, kind="classes", calibrate=True)
        fits[f"{name} several"] = fit_head(name, X, several, kind="multilabel")
    return {name: plain_head(fit, unit_rows=True) for name, fit in fits.items()}


HEADS = heads()
STRUCTURES = ("ridge", "svm", "svm calibrated", "linear_svm calibrated", "knn", "knn uniform", "svm several")
"""One head of each structure; the others differ in their numbers only."""


class Several(nn.Module):
    """The scores of several heads side by side, as tracing takes seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(FittedHead(HEADS[name]) for name in STRUCTURES)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.cat([head([first, second]) for head in self.heads], dim=1)
        return scores, scores.argmax(1)


@pytest.fixture(scope="module")
def program() -> Any:
    parts = {name: torch.from_numpy(part[:5]) for name, part in zip(("first", "second"), NEW, strict=True)}
    samples = {0: torch.export.Dim("samples")}
    shapes = {"first": samples, "second": samples}
    return torch.export.export(Several().eval(), (), parts, dynamic_shapes=shapes)


@pytest.mark.parametrize("name", HEADS)
def test_a_module_gives_the_scores_of_the_arrays(name: str) -> None:
    head = HEADS[name]
    for parts in (NEW, TRAIN):  # a row of the training set is its own nearest neighbour, at distance 0
        found = FittedHead(head)([torch.from_numpy(part) for part in parts])
        np.testing.assert_allclose(found, head(joined(parts)), atol=2e-5, rtol=1e-5)


def test_zeros_stay_zeros() -> None:
    zeros = [torch.zeros(2, 6), torch.zeros(2, 8)]
    assert FittedHead(HEADS["ridge"])(zeros).isfinite().all()


@pytest.mark.zoo
@pytest.mark.parametrize("name", FORMATS)
def test_every_head_in_every_format(tmp_path: Path, program: Any, name: str) -> None:
    pytest.importorskip({"pt2": "torch", "onnx": "onnxscript", "openvino": "openvino"}[name])
    path = tmp_path / FORMATS[name]
    _WRITERS[name](program, path, {})

    found = open_whole(path, name)({"first": NEW[0], "second": NEW[1]})

    start = 0
    for label in STRUCTURES:
        expected = HEADS[label](joined(NEW))
        mine = found[:, start : start + expected.shape[1]]
        np.testing.assert_allclose(mine, expected, atol=1e-4, err_msg=label)
        np.testing.assert_array_equal(HEADS[label].answers(mine), HEADS[label].answers(expected), label)
        start += expected.shape[1]
    assert start == found.shape[1]
