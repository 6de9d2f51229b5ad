"""Heads that spile makes are loaded without being told to trust anything; forged trees are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn

import spile
from spile.errors import ModelError
from spile.probing import deployment, heads
from spile.probing.trusting import TREES, sound_trees

X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
LABELS: dict[str, Any] = {
    "two": np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)],
    "three": np.digitize(X[:, 0], [-0.4, 0.4]),
    "numbers": X[:, 0] * 2.0,
    "sets": (X[:, :2] > 0).astype(int),
}
KINDS: dict[str, Any] = {"two": "classes", "three": "classes", "numbers": "numbers", "sets": "multilabel"}
CASES = [
    (name, labels, calibrate)
    for name in heads.NAMES
    for labels, kind in KINDS.items()
    for calibrate in (False, True)
    if name != "ridge"
    and not (kind == "numbers" and name in heads._CLASSES_ONLY)
    and (kind == "classes" or not calibrate)
]


def save(folder: Path, head: Any) -> Path:
    net = nn.Sequential(nn.Identity(), nn.Linear(6, 2)).eval()
    example = torch.from_numpy(X[:2])
    tap = spile.tap(net, "0", example=example)
    deployment.save(
        folder, tap=tap, example=example, head=head, preprocessing=None, about={"point": "0"}, exported=True
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network, whose head the tests write."""
    return save(
        tmp_path_factory.mktemp("saved") / "model", heads.fit_head("lda", X, LABELS["two"], kind="classes")
    )


@pytest.mark.parametrize(("name", "labels", "calibrate"), CASES)
def test_named_heads_need_no_trust(folder: Path, name: str, labels: str, calibrate: bool) -> None:
    head = heads.fit_head(name, X, LABELS[labels], kind=KINDS[labels], calibrate=calibrate)
    deployment._save_head(folder, head)

    loaded = spile.load(folder)

    np.testing.assert_array_equal(loaded.head.predict(X), head.predict(X))


def boosted(labels: str = "three", **options: Any) -> Any:
    return HistGradientBoostingClassifier(max_iter=3, **options).fit(X, LABELS[labels])


@pytest.mark.parametrize(("field", "value"), [("left", 10_000), ("right", 0), ("feature_idx", 6)])
def test_trees_that_lead_elsewhere_are_refused(folder: Path, field: str, value: int) -> None:
    head = boosted()
    assert sound_trees([{"deep": (head,)}])
    tree = head._predictors[1][2]
    tree.nodes[field][0] = value
    deployment._save_head(folder, head)

    with pytest.raises(ModelError, match=r"lead outside of themselves.*trusted=\['sklearn.*TreePredictor'\]"):
        spile.load(folder)
    assert not sound_trees([{"deep": (head,)}])
    spile.load(folder, trusted=[TREES])


def test_boosting_that_does_not_look_at_the_width_of_its_input_is_refused() -> None:
    without = boosted()
    del without.n_features_in_

    assert not sound_trees(without)


def test_trees_by_category_are_refused() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (60, 6)).astype(float)
    head = HistGradientBoostingClassifier(max_iter=3, categorical_features=[0, 1], min_samples_leaf=3)

    assert not sound_trees(head.fit(codes, codes[:, 0] % 2))
