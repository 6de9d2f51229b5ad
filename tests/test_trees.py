"""Nested values, of any framework."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

from spile.trees import children, given, leaves, pick


@dataclass
class Output:
    logits: Any
    hidden: Any = None


def is_text(value: Any) -> bool:
    """Strings stand for tensors here."""
    return isinstance(value, str)


def test_leaves_have_dotted_keys() -> None:
    value = {"a": ["x", None, ("y", 3)], "b": Output("z", {"deep": "w"}), 5: "v"}
    keys = {"a.0": "x", "a.2.0": "y", "b.logits": "z", "b.hidden.deep": "w", "5": "v"}
    assert dict(leaves(value, is_text)) == keys


def test_a_tensor_by_itself_has_no_key() -> None:
    assert list(leaves("x", is_text)) == [("", "x")]
    assert list(leaves(None, is_text)) == []


@pytest.mark.parametrize("value", [{"a": ("x",)}, MappingProxyType({"a": ["x"]}), Output("y", ["x"])])
def test_what_leaves_names_pick_finds(value: Any) -> None:
    for key, leaf in leaves(value, is_text):
        assert pick(value, key) == leaf


@pytest.mark.parametrize("key", ["2", "0.0", "1.left"])
def test_a_key_that_leads_nowhere(key: str) -> None:
    with pytest.raises(LookupError, match=key):
        pick(["x", {"right": "y"}], key)


def test_dataclasses_themselves_hold_nothing() -> None:
    assert list(children(Output)) == []
    assert list(children("text")) == []


def test_the_input_of_a_layer() -> None:
    assert given(("x",), {}, is_text) == "x"
    assert given(("x",), {"flag": True}, is_text) == "x"
    assert given((["x", "y"],), {}, is_text) == ["x", "y"]
    assert given(("x",), {"other": "y"}, is_text) == {"0": "x", "other": "y"}
    assert given(("x", "y"), {"z": 1}, is_text) == {"0": "x", "1": "y", "z": 1}
    assert given((), {"x": "x"}, is_text) == {"x": "x"}


def test_keys_may_have_dots_of_their_own() -> None:
    value = {"layer1.0": {"relu.x": 1, "relu": {"x": 2}}, "layer1": {"1": 3}}
    assert pick(value, "layer1.0.relu.x") == 1
    assert pick(value, "layer1.1") == 3
    with pytest.raises(LookupError):
        pick(value, "layer1.0.gelu")
