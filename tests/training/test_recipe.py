from __future__ import annotations

from typing import Any

import pytest

from spile.errors import TrainingError
from spile.supervision import Constant, Labels, PseudoLabels
from spile.training import Recipe, Supervision
from spile.training.recipe import checked_options


@pytest.mark.parametrize(
    "option, words",
    [
        ({"epochs": 0}, r"epochs=0: write a whole number of 1 or more"),
        ({"batch_size": 2.5}, r"batch_size=2.5"),
        ({"accumulate": True}, r"accumulate=True"),
        ({"optimizer": "adanw"}, r"optimizer='adanw': did you mean 'adamw'\?"),
        ({"precision": "fp16"}, r"precision='fp16'.*'float16'"),
        ({"schedule": "step"}, r"schedule='step'.*Allowed: 'cosine', 'constant'"),
        ({"rate": 0}, r"rate=0: write a learning rate above 0"),
        ({"warmup": 1}, r"warmup=1: write a share"),
        ({"max_bad": 5}, r"max_bad=5: write a share from 0 to 1"),
        ({"decay": -1}, r"decay=-1"),
        ({"supervise": ["layer2"]}, r"spile.Supervision\(taps="),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        Recipe(model="timm:resnet18", data="x", **option)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TrainingError, match="no option 'epoch': did you mean 'epochs'"):
        checked_options({"epoch": 3})


def test_equal_recipes_read_the_same_and_others_do_not() -> None:
    def recipe(**options: Any) -> dict[str, str]:
        return Recipe(**{"model": "timm:resnet18", "data": "x"} | options).described()

    assert recipe() == recipe()
    assert recipe(supervise=Supervision()) == recipe(supervise=Supervision())
    assert recipe(supervise=Supervision()) != recipe(supervise=Supervision(weight=Constant(0.3)))
    assert recipe() != recipe(epochs=3)


def test_only_pseudo_labels_use_rows_without_a_label() -> None:
    def uses(targets: Any) -> bool:
        return Recipe(model="m", data="x", supervise=Supervision(targets=targets)).uses_unlabelled

    assert uses(PseudoLabels())
    assert uses({"layer2": [Labels(), PseudoLabels()]})
    assert not uses(None)
    assert not uses([Labels()])
    assert not Recipe(model="m", data="x").uses_unlabelled


def test_the_rate_rises_then_falls() -> None:
    factor = Recipe(model="m", data="x", warmup=0.2).optimizing.factor
    assert [round(factor(p), 3) for p in (0, 0.1, 0.2, 0.6, 1)] == [0, 0.5, 1, 0.5, 0]
    assert Recipe(model="m", data="x", schedule="constant").optimizing.factor(0.9) == 1
