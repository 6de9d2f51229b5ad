"""What supervised models give, and what is asked of `supervise` before any framework is."""

from __future__ import annotations

from typing import Any

import pytest

from spile.errors import SupervisionError
from spile.supervising import _factor
from spile.supervision import Certificate, Loss

HOLDS: dict[str, Any] = dict.fromkeys(
    ("same_object", "same_keys", "same_outputs", "same_macs", "same_graph"), True
)


def test_a_certificate_holds_when_every_check_does() -> None:
    assert Certificate(**HOLDS).holds
    assert Certificate(**HOLDS | {"same_graph": None}).holds  # not exportable is no failure


@pytest.mark.parametrize("check", HOLDS)
def test_a_certificate_fails_with_any_check(check: str) -> None:
    certificate = Certificate(**HOLDS | {check: False})
    assert not certificate.holds
    assert str(certificate).count("NO") == 1


def test_a_certificate_shows_its_evidence() -> None:
    text = str(Certificate(**HOLDS | {"same_graph": None}, notes=("opset 18",)))
    assert text.splitlines() == [
        "same object        yes",
        "same keys          yes",
        "bit-equal outputs  yes",
        "same MACs          yes",
        "same graph         not checked",
        "opset 18",
    ]


def test_plain_numbers_of_a_loss() -> None:
    loss = Loss(total=1.5, terms={"main/labels": 1}, stats={"layer2/weight": 0.25})
    assert loss.scalars() == {"loss": 1.5, "main/labels": 1.0, "layer2/weight": 0.25}
    assert all(type(value) is float for value in loss.scalars().values())


@pytest.mark.parametrize(("gradient", "factor"), [("full", 1.0), ("stop", 0.0), (0.1, 0.1), (0, 0.0)])
def test_gradients_into_the_base(gradient: float | str, factor: float) -> None:
    assert _factor(gradient) == factor


@pytest.mark.parametrize("gradient", ["half", -1, True, None])
def test_gradients_that_are_none(gradient: Any) -> None:
    with pytest.raises(SupervisionError, match="write 'full', 'stop', or a factor such as 0.1"):
        _factor(gradient)
