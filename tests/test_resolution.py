"""From addresses to points, on dry passes written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import count
from typing import Any

import pytest

from spile.errors import AddressError, PoolError
from spile.observation import Call, Item, Layer, Observation
from spile.resolution import Point, resolve

Shapes = tuple[int, ...] | Mapping[str, tuple[int, ...]] | list[Item]

MAP, VECTOR, TOKENS = (2, 8, 4, 4), (2, 8), (2, 5, 8)
CONV = ("Conv2d", "_ConvNd")
LAYOUTS = {1: "B", 2: "BC", 3: "BTC", 4: "BCYX"}

_identities = count()


def items(shapes: Shapes) -> tuple[Item, ...]:
    """A shape is one tensor, a mapping a dict or tuple of them; layouts by rank."""
    if isinstance(shapes, list):
        return tuple(shapes)
    keyed = shapes.items() if isinstance(shapes, Mapping) else [(None, shapes)]
    return tuple(Item(k, s, "float32", next(_identities), LAYOUTS[len(s)]) for k, s in keyed)


def seen(
    *ran: tuple[str, Shapes] | tuple[str, Shapes, Shapes],
    idle: tuple[str, ...] = (),
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    prefix_tokens: int | None = 0,
) -> Observation:
    """A dry pass of a flat model: (path, outputs[, inputs]) in forward order; ten MACs, three parameters."""
    calls: list[Call] = []
    runs: Counter[str] = Counter()
    for i, (path, outputs, *inputs) in enumerate([*ran, ("", VECTOR, {"pixels": (2, 3, 8, 8)})]):
        calls.append(
            Call(
                path=path,
                index=runs[path],
                start=2 * i if path else -1,
                end=2 * i + 1,
                inputs=items(inputs[0] if inputs else MAP),
                outputs=items(outputs),
                macs_before=10 * i,
                macs=10 * i + 10,
                params_before=3 * i,
                params=3 * i + 3,
            )
        )
        runs[path] += 1
    names = dict.fromkeys([*(call.path for call in calls), *idle])
    layers = {
        name: Layer(
            name,
            (aliases or {}).get(name, ()),
            CONV if "conv" in name else ("Layer",),
            bool(name),
            False,
            3,
        )
        for name in names
    }
    return Observation(layers=layers, calls=tuple(calls), separator=".", prefix_tokens=prefix_tokens)


SHARED = seen(("conv1", MAP), ("relu", MAP), ("conv2", MAP), ("relu", MAP), ("fc", VECTOR), idle=("aux",))
SEVERAL = seen(("conv1", MAP), ("attn", {"0": TOKENS, "1": (2, 4, 5)}), ("fc", VECTOR))


def points(wanted: Any, seen_pass: Observation, pool: Any = "auto") -> dict[str, Point]:
    return {point.name: point for point in resolve(wanted, pool, seen_pass)[0]}


def refusal(wanted: Any, seen_pass: Observation, pool: Any = "auto") -> str:
    with pytest.raises(AddressError) as caught:
        resolve(wanted, pool, seen_pass)
    return str(caught.value)


# --------------------------------------------------------------------------------------- exact paths


def test_an_exact_path_is_one_point() -> None:
    point = points("conv2", SHARED)["conv2"]
    assert (point.path, point.side, point.call, point.only_call, point.item) == (
        "conv2",
        "out",
        0,
        True,
        None,
    )
    assert (str(point.pool), point.layout, point.shape, point.type) == ("avg", "BCYX", (8, 4, 4), "Conv2d")
    assert point.address == "conv2"


def test_an_exact_path_that_runs_several_times_is_an_error_that_lists_its_calls() -> None:
    assert refusal("relu", SHARED) == "'relu' runs 2 times; say which call: relu#0, relu#1"
    assert refusal("relu@in", SHARED).endswith("relu@in#0, relu@in#1")
    assert refusal("relu#2", SHARED) == "'relu' has no call 2; there is relu#0, relu#1"
    assert refusal("conv1#1", SHARED) == "'conv1' has no call 1; there is conv1#0"


def test_a_call_can_be_named() -> None:
    point = points("relu#1", SHARED)["relu#1"]
    assert (point.call, point.only_call, point.address) == (1, False, "relu#1")
    assert points("conv1#0", SHARED)["conv1#0"].only_call is False


def test_an_exact_path_whose_output_is_not_one_tensor_is_an_error_that_lists_its_items() -> None:
    assert (
        refusal("attn", SEVERAL) == "the output of 'attn' is not one tensor; say which item: attn:0, attn:1"
    )
    assert refusal("attn:x", SEVERAL) == "the output of 'attn' has no item 'x'; there is attn:0, attn:1"
    assert refusal("conv1:0", SEVERAL) == "the output of 'conv1' has no item '0'; there is conv1"
    assert points("attn:1", SEVERAL)["attn:1"].shape == (4, 5)


def test_calls_and_items_are_listed_with_what_was_asked_for() -> None:
    both = seen(("lstm", {"0": TOKENS, "1.0": VECTOR}), ("lstm", {"0": TOKENS, "1.0": VECTOR}))
    assert refusal("lstm:1.0", both).endswith("lstm#0:1.0, lstm#1:1.0")
    assert refusal("lstm#1", both).endswith("lstm#1:0, lstm#1:1.0")
    assert list(points("lstm*", both)) == ["lstm#0:0", "lstm#0:1.0", "lstm#1:0", "lstm#1:1.0"]
    assert list(points("lstm*:1.0", both)) == ["lstm#0:1.0", "lstm#1:1.0"]


def test_a_tuple_of_one_tensor_is_one_tensor_and_its_address_says_where_it_was() -> None:
    block = seen(("h", {"0": TOKENS}))
    (point,) = points("h", block).values()
    assert (point.name, point.item, point.address) == ("h", "0", "h:0")
    assert points(point.address, block)["h:0"].path == "h"


def test_an_output_without_a_tensor_is_an_error() -> None:
    assert refusal("hook", seen(("hook", []), ("fc", VECTOR))) == "the output of 'hook' holds no tensor"


def test_an_exact_path_that_never_runs_is_an_error() -> None:
    assert refusal("aux", SHARED).startswith(
        "the layer 'aux' never runs as a layer in this model's forward pass"
    )


def test_inputs() -> None:
    point = points("fc@in", SHARED)["fc@in"]
    assert (point.side, point.shape, point.address) == ("in", (8, 4, 4), "fc@in")
    assert points("@in", SHARED)["@in"].address == "@in:pixels"


# ------------------------------------------------------------------------------------------ patterns


def test_a_pattern_expands_to_every_call_and_item_and_leaves_out_what_does_not_run() -> None:
    everything = seen(
        ("conv1", MAP), ("relu", MAP), ("attn", {"0": TOKENS, "1": (2, 4, 5)}), ("relu", MAP), idle=("aux",)
    )
    assert list(points("all", everything)) == ["conv1", "relu#0", "relu#1", "attn:0", "attn:1"]
    assert list(points("re:r.*|a.*", everything)) == ["relu#0", "relu#1", "attn:0", "attn:1"]
    assert list(points("type:Conv2d", everything)) == ["conv1"]


def test_a_pattern_with_a_call_takes_the_layers_that_have_it() -> None:
    assert list(points("**#1", SHARED)) == ["relu#1"]
    assert refusal("**#7", SHARED) == "no layer that '**' matches has a call 7 on this side"
    assert (
        refusal("**#1:x", SHARED)
        == "no layer that '**' matches has a call 1 and has an item 'x' on this side"
    )
    assert (
        refusal("hook?", seen(("hook1", []))) == "no layer that 'hook?' matches holds a tensor on this side"
    )


def test_a_pattern_leaves_out_places_without_a_samples_axis_and_says_so() -> None:
    bias = [Item(None, (5, 5), "float32", 0, None)]
    odd = [Item(None, (2, 3, 4, 5, 6), "float32", 0, "B????")]
    seen_pass = seen(("conv1", MAP), ("bias", bias), ("odd", odd))
    kept, left_out = resolve("**", "auto", seen_pass)
    assert [point.name for point in kept] == ["conv1"]
    assert [place.address for place in left_out] == ["bias", "odd"]
    assert left_out[0].reason.startswith("bias (shape [5, 5]) has no axis for the samples")
    assert left_out[1].reason.startswith(
        "odd (shape [2, 3, 4, 5, 6]) has axes 'B????', which 'auto' does not cover"
    )
    message = refusal("b*", seen_pass)
    assert message.startswith(
        "b* has no point to keep: bias (bias (shape [5, 5]) has no axis for the samples"
    )


def test_an_exact_path_and_a_pool_asked_for_by_name_are_never_left_out_in_silence() -> None:
    seen_pass = seen(("conv1", MAP), ("tokens", TOKENS), ("bias", [Item(None, (5, 5), "float32", 0, None)]))
    with pytest.raises(PoolError, match=r"bias .* has no axis for the samples"):
        resolve("bias", "auto", seen_pass)
    with pytest.raises(PoolError, match=r"tokens .* pool 'avg' is for maps"):
        resolve("**", "avg", seen_pass)


def test_numbers_stand_for_blocks() -> None:
    assert list(points([0, -1], SHARED)) == ["conv1", "conv2"]


# ---------------------------------------------------------------------------- several, renamed, tied


def test_points_come_in_the_order_asked_for_and_inside_a_pattern_in_forward_order() -> None:
    assert list(points(["fc", "conv*", "relu#0"], SHARED)) == ["fc", "conv1", "conv2", "relu#0"]


def test_a_point_asked_for_twice_is_taken_once() -> None:
    assert list(points(["conv1", "conv*", "conv1@out"], SHARED)) == ["conv1", "conv2"]


def test_a_dict_renames() -> None:
    named = points({"early": "conv1", "late": "fc@in"}, SHARED)
    assert {name: point.address for name, point in named.items()} == {"early": "conv1", "late": "fc@in"}
    assert list(points({"one": "conv1", "two": "conv1"}, SHARED)) == ["one", "two"]
    assert points({"only": "fc*"}, SHARED)["only"].path == "fc"


def test_a_name_needs_exactly_one_point() -> None:
    assert refusal({"x": "conv*"}, SHARED) == "the name 'x' needs one point, but conv* has 2: conv1, conv2"


def test_a_tied_layer_answers_to_all_its_names() -> None:
    tied = seen(("encoder", VECTOR), ("fc", VECTOR), aliases={"encoder": ("decoder", "head.decoder")})
    for name in ("encoder", "decoder", "head.decoder"):
        point = points(name, tied)[name]
        assert (point.path, point.address) == ("encoder", "encoder")
    assert list(points("head.*", tied)) == ["encoder"]


@pytest.mark.parametrize("nothing", [[], {}, ()])
def test_at_least_one_address(nothing: Any) -> None:
    assert refusal(nothing, SHARED) == "no address given: name at least one place, e.g. 'stages'"


@pytest.mark.parametrize("wrong", [None, 1.5, ["conv1", None], {"x": 1.5}])
def test_what_is_no_address_is_an_address_error(wrong: Any) -> None:
    assert "is no address" in refusal(wrong, SHARED)


def test_long_lists_are_cut_short() -> None:
    assert refusal({"x": "**"}, seen(*((f"layer{i}", MAP) for i in range(12)))).endswith("layer7 and 4 more")


# ----------------------------------------------------------------------------------- pools of points


def test_one_pool_for_all_or_one_each() -> None:
    assert str(points("conv1", SHARED, "max")["conv1"].pool) == "max"
    each = points(["conv1", "conv2", "fc"], SHARED, {"conv1": "max", "conv2": None})
    assert {name: str(point.pool) for name, point in each.items()} == {
        "conv1": "max",
        "conv2": "none",
        "fc": "flatten",
    }


def test_a_pool_is_found_by_own_name_first_then_by_address_in_any_spelling() -> None:
    by_address = points(["conv1@out", "relu#1"], SHARED, {"conv1@out": "max", "relu@out#01": "gem"})
    assert [str(point.pool) for point in by_address.values()] == ["max", "gem"]
    by_name = points({"a": "conv1", "b": "conv1"}, SHARED, {"a": "max", "conv1": "gem"})
    assert [str(point.pool) for point in by_name.values()] == ["max", "gem"]
    assert str(points([-1], SHARED, {-1: "max"})["conv2"].pool) == "max"


def test_a_pool_for_something_not_asked_for_is_an_error() -> None:
    with pytest.raises(PoolError) as caught:
        resolve(["conv1", "fc"], {"conv2": "avg"}, SHARED)
    assert str(caught.value) == (
        "a pool is given for 'conv2', which is not asked for: asked for are conv1, fc"
    )


def test_the_class_token_is_looked_for_at_the_layer_itself_first() -> None:
    first = [Item(None, TOKENS, "float32", 0, "BTC", prefix_tokens=0)]
    vit = seen(("early", first), ("late", TOKENS), prefix_tokens=1)
    assert str(points("late", vit, "cls")["late"].pool) == "cls"
    with pytest.raises(PoolError, match=r"early .* has no class token"):
        resolve("early", "cls", vit)


# ----------------------------------------------------------------------------------------- addresses


def test_order_cost_and_parameters_are_those_at_the_side_that_is_kept() -> None:
    before, after = points("conv2@in", SHARED)["conv2@in"], points("conv2", SHARED)["conv2"]
    assert (before.order, before.macs, before.params) == (4, 20, 6)
    assert (after.order, after.macs, after.params) == (5, 30, 9)


def test_every_points_address_resolves_to_that_point_again() -> None:
    names = ["0", "1", "blocks", "blocks.0", "a:b", "x@in", "y#1", "tail", "tail"]
    awkward = seen(*((name, MAP) for name in names), ("attn", {"0": TOKENS, "h": TOKENS}))
    for wanted in ("all", "all@in", "@in"):
        found = points(wanted, awkward)
        again = points([point.address for point in found.values()], awkward)
        assert [(p.path, p.side, p.call, p.item) for p in again.values()] == [
            (p.path, p.side, p.call, p.item) for p in found.values()
        ]
    assert points("re:blocks", awkward)["re:blocks"].path == "blocks"
