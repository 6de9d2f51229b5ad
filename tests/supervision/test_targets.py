"""What heads are trained towards, as specs."""

from __future__ import annotations

from typing import Any

import pytest

from spile.errors import SupervisionError
from spile.supervision import Labels, PseudoLabels, SelfDistill, SmoothedLabels, Target, Teacher
from spile.supervision.targets import checked_task, targets_of, term_names

NETWORK = object()


def test_labels_where_nothing_is_said() -> None:
    assert targets_of(None, ["a", "b"]) == {name: (Labels(),) for name in ("main", "a", "b")}


def test_given_targets_are_for_the_heads_and_the_output_keeps_its_labels() -> None:
    distilled = SelfDistill(temperature=2.0)
    assert targets_of([Labels(weight=0.5), distilled], ["a", "b"]) == {
        "main": (Labels(),),
        "a": (Labels(weight=0.5), distilled),
        "b": (Labels(weight=0.5), distilled),
    }
    assert targets_of(distilled, ["a"])["a"] == (distilled,)


def test_by_head_with_a_star_for_the_others() -> None:
    found = targets_of({"main": PseudoLabels(), "b": SelfDistill(), "*": Labels(smoothing=0.1)}, ["a", "b"])
    assert found == {"main": (PseudoLabels(),), "a": (Labels(smoothing=0.1),), "b": (SelfDistill(),)}
    assert targets_of({"b": SelfDistill()}, ["a", "b"])["a"] == (Labels(),)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"layr2": Labels()}, "which is no head: did you mean 'layer2'"),
        ("labels", "write one or several of Labels, PseudoLabels, SelfDistill, Teacher, SmoothedLabels"),
        ([], "write one or several"),
        ({"main": SelfDistill()}, "cannot be its own teacher"),
    ],
)
def test_targets_that_do_not_fit(targets: Any, said: str) -> None:
    with pytest.raises(SupervisionError, match=said):
        targets_of(targets, ["layer2"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Labels(weight=-1), "weight=-1: write a number of 0 or more"),
        (lambda: Labels(smoothing=1.5), "smoothing=1.5: write a number of 0 to 1"),
        (lambda: PseudoLabels(source="mian"), "did you mean 'main'"),  # type: ignore[arg-type]
        (lambda: PseudoLabels(threshold=2), "threshold=2: write a number of 0 to 1, or 'adaptive'"),
        (lambda: PseudoLabels(decay=True), "decay=True"),
        (lambda: SelfDistill(temperature=0), "temperature=0: write a number above 0"),
        (lambda: SelfDistill(hint=-0.1), "hint=-0.1"),
        (lambda: Teacher(model=NETWORK, kind="hint"), "features need the teacher's layer"),
        (lambda: Teacher(model=NETWORK, at="layer3"), "logits none"),
        (lambda: SmoothedLabels(samples=0), "samples=0: write the number of training rows"),
    ],
)
def test_options_out_of_range(make: Any, said: str) -> None:
    with pytest.raises(SupervisionError, match=said):
        make()


def test_two_teachers_of_one_weight_are_two() -> None:
    """They would share what is kept of them, and one of the two networks would never be asked."""
    one, other = Teacher(model=NETWORK), Teacher(model=object())
    assert one != other
    assert len({one, other}) == 2
    assert one in {one}


def test_names_of_terms() -> None:
    hint, attention = (Teacher(model=NETWORK, kind=kind, at="a") for kind in ("hint", "attention"))
    assert list(term_names([Labels(), SelfDistill(), hint, attention, Labels(), PseudoLabels()])) == [
        "labels",
        "self_distill",
        "teacher_hint",
        "teacher_attention",
        "labels_2",
        "pseudo_labels",
    ]


@pytest.mark.parametrize(
    "target", [PseudoLabels(), SelfDistill(), SmoothedLabels(samples=3), Teacher(model=NETWORK)]
)
def test_class_probabilities_are_for_classification(target: Target) -> None:
    targets = targets_of(target, ["a"])
    assert checked_task("classification", targets) == "classification"
    with pytest.raises(SupervisionError, match=f"{type(target).__name__} compare class probabilities"):
        checked_task("regression", targets)


def test_features_can_be_compared_in_any_task() -> None:
    hint = Teacher(model=NETWORK, kind="hint", at="a")
    assert checked_task("segmentation", targets_of([Labels(), hint], ["a"])) == "segmentation"


def test_unknown_task() -> None:
    with pytest.raises(SupervisionError, match="unknown task 'clasification': did you mean 'classification'"):
        checked_task("clasification", {})  # type: ignore[arg-type]
