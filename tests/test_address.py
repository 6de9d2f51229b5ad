"""The language of places: parsing, printing, matching, and what its errors say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spile.address import Address, Places, literal, match, parse
from spile.errors import AddressError

few = settings(derandomize=True, max_examples=100, deadline=None)
many = settings(few, max_examples=400)

RESNET = Places(
    paths=(
        "conv1",
        "layer1",
        "layer1.0",
        "layer1.0.conv1",
        "layer1.1",
        "layer2",
        "layer2.0",
        "layer2.0.conv1",
        "fc",
    ),
    types={
        "conv1": ("Conv2d", "_ConvNd"),
        "layer1": ("Sequential",),
        "layer1.0": ("BasicBlock",),
        "layer1.0.conv1": ("Conv2d", "_ConvNd"),
        "layer1.1": ("BasicBlock",),
        "layer2": ("Sequential",),
        "layer2.0": ("BasicBlock",),
        "layer2.0.conv1": ("Conv2d", "_ConvNd"),
        "fc": ("Linear",),
    },
    aliases={"head.tied": "fc"},
    blocks=("layer1.0", "layer1.1", "layer2.0"),
    stages=("layer1", "layer2"),
    leaves=("conv1", "layer1.0.conv1", "layer2.0.conv1", "fc"),
    idle=("aux", "aux.fc"),
)


def places(*paths: str, **fields: tuple[str, ...]) -> Places:
    return Places(paths=paths, types=dict.fromkeys(paths, ("Layer",)), aliases={}, **fields)


def matched(text: str | int, among: Places = RESNET) -> tuple[str, ...]:
    return match(parse(text), among)


def refusal(text: object, among: Places = RESNET) -> str:
    with pytest.raises(AddressError) as caught:
        match(parse(text), among)  # type: ignore[arg-type]
    return str(caught.value)


# -------------------------------------------------------------------------------- parsing and printing

names = st.text("abcxyz019_-", min_size=1, max_size=6)
paths = st.lists(names, min_size=1, max_size=4).map(".".join)
plain = st.one_of(
    paths.filter(lambda path: not path.lstrip("-").isdecimal()),
    st.lists(st.sampled_from(["a", "*", "**", "conv?", "[ab]c", "[!0-9]*"]), min_size=1, max_size=4).map(
        ".".join
    ),
    st.integers(-(10**9) + 1, 10**9 - 1).map(str),
    st.sampled_from(["stages", "blocks", "leaves", "all"]),
)
prefixed = st.one_of(
    st.lists(st.sampled_from(["a", r"\.", "[0-9]+", "(b|c)", ".*", "(?:x:y)", "@", "#"]), min_size=1).map(
        lambda pieces: "re:" + "".join(pieces) + "$"
    ),
    names.map("type:".__add__),
)
addresses = st.builds(
    Address,
    pattern=plain | prefixed,
    side=st.sampled_from(["out", "in"]),
    call=st.none() | st.integers(0, 10**9 - 1),
    item=st.none() | st.lists(names, min_size=1, max_size=3).map(".".join),
)


@few
@given(addresses)
def test_an_address_prints_as_text_that_parses_back_to_it(address: Address) -> None:
    assert parse(str(address)) == address


@few
@given(st.sampled_from(["in", "out"]), st.none() | st.integers(0, 9), st.none() | names)
def test_the_model_itself_prints_and_parses_back(side: str, call: int | None, item: str | None) -> None:
    address = Address("", side, call, item)  # type: ignore[arg-type]
    assert parse(str(address)) == address


garbage = st.text(max_size=12) | st.text("ab01.*?[]!@#:-+ \n(|)re:typeinout", max_size=14)


@many
@given(garbage)
def test_garbage_raises_address_errors_or_parses_into_something_canonical(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of `re`, about character sets
        try:
            address = parse(text)
        except AddressError:
            return
        assert parse(str(address)) == address
        try:
            found = match(address, RESNET)
        except AddressError:
            return
    assert set(found) <= {*RESNET.paths, ""}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("layer1@out", "layer1"),
        ("layer1@in#00:0", "layer1@in#0:0"),
        ("+3", "3"),
        ("-0", "0"),
        ("-01@in", "-1@in"),
        ("@in", "@in"),
        ("@out", "@out"),
        ("@out:0", "@out:0"),
        (-1, "-1"),
        (np.int64(2), "2"),
        ("re:a@in", "re:a@in"),
        ("type:Conv2d@out#1", "type:Conv2d#1"),
    ],
)
def test_canonical_text(text: str | int, canonical: str) -> None:
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("layer3.0.conv1", Address("layer3.0.conv1")),
        ("layer4.*.conv2@in", Address("layer4.*.conv2", "in")),
        ("relu#1", Address("relu", call=1)),
        ("lstm@in#2:1.hidden", Address("lstm", "in", 2, "1.hidden")),
        ("re:(?:a|b):0", Address("re:(?:a|b)", item="0")),
        (r"re:layer\d@in#1:0", Address(r"re:layer\d", "in", 1, "0")),
        ("re:(?:a|b)", Address("re:(?:a|b)")),
        ("re:x[:]0", Address("re:x[:]0")),
        ("re:x[@]in", Address("re:x[@]in")),
        ("type:Conv2d#0", Address("type:Conv2d", call=0)),
    ],
)
def test_parts(text: str, parts: Address) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("layer1.0", "exact"),
        ("", "exact"),
        ("layer?", "glob"),
        ("**", "glob"),
        ("re:.*", "regex"),
        ("type:X", "type"),
        ("-1", "index"),
        ("stages", "stages"),
        ("blocks", "blocks"),
        ("blocks.0", "exact"),
    ],
)
def test_kind(text: str, kind: str) -> None:
    assert Address(text).kind == kind


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (True, "True is no address: give a string or a whole number"),
        (1.5, "1.5 is no address"),
        (None, "None is no address"),
        ("", "'' names no layer"),
        (":0", "':0' names no layer"),
        ("a@up", "unknown side 'up' in 'a@up': write @out (the default) or @in"),
        ("a@", "unknown side '' in 'a@'"),
        ("a#x", "call 'x' in 'a#x' is no count from 0: write a#0 for the first call"),
        ("a#-1", "call '-1' in 'a#-1' is no count"),
        ("a#٣", "call '٣' in 'a#٣' is no count"),
        ("a#" + "9" * 5000, "is no count"),
        ("a:", "item '' in 'a:' is no index or key: write a:0 or a:key"),
        ("a:b c", "item 'b c' in 'a:b c' is no index or key"),
        ("a@in@out", "'a@in@out' does not parse: an address is pattern[@out|@in][#call][:item]"),
        ("a:0#1", "'a:0#1' does not parse"),
        ("re:(", "'(' in 're:(' is no regular expression: missing ), unterminated subpattern"),
        ("re:a{99999999999}", "is no regular expression"),
        ("re:", "'re:' does not parse"),
        ("layer4**", "** in 'layer4**' must stand for whole parts: write layer4.** or **.conv1"),
    ],
)
def test_what_does_not_parse_says_why(text: object, says: str) -> None:
    assert says in refusal(text)


# -------------------------------------------------------------------------------------------- matching


def in_part(glob: str, text: str) -> bool:
    """Slow and plain: one part of a path against one part of a glob."""
    if not glob:
        return not text
    if glob[0] == "*":
        return any(in_part(glob[1:], text[taken:]) for taken in range(len(text) + 1))
    if glob[0] == "[" and "]" in glob[2:]:
        end = glob.index("]", 3 if glob[1] == "!" else 2)
        members = glob[1:end].removeprefix("!")
        allowed = set("ab") if members == "a-b" else set(members)
        return bool(text) and (text[0] in allowed) != (glob[1] == "!") and in_part(glob[end + 1 :], text[1:])
    return bool(text) and glob[0] in ("?", text[0]) and in_part(glob[1:], text[1:])


def across_parts(glob: str, path: str) -> bool:
    """Slow and plain: every ``**`` written out as 0, 1, 2, … parts ``*``."""

    def written_out() -> Iterator[list[str]]:
        choices = [[["*"] * n for n in range(6)] if part == "**" else [[part]] for part in glob.split(".")]
        for choice in product(*choices):
            yield [part for parts in choice for part in parts]

    parts = path.split(".")
    return any(len(g) == len(parts) and all(map(in_part, g, parts)) for g in written_out())


glob_part = st.lists(
    st.sampled_from(["a", "b", "?", "*", "[ab]", "[!a]", "[a-b]", "[", "]"]), min_size=1, max_size=3
)
globs = st.lists(
    glob_part.map("".join).filter(lambda part: "**" not in part) | st.just("**"), min_size=1, max_size=4
)
tiny_paths = st.lists(st.text("abc[", min_size=1, max_size=3), min_size=1, max_size=4).map(".".join)


@many
@given(globs.map(".".join), st.lists(tiny_paths, min_size=1, max_size=6, unique=True))
def test_globs_match_as_the_slow_reference_does(glob: str, candidates: list[str]) -> None:
    expected = tuple(path for path in candidates if across_parts(glob, path))
    if Address(glob).kind != "glob":
        return
    try:
        found = match(parse(glob), places(*candidates))
    except AddressError:
        found = ()
    assert found == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer1", ("layer1",)),
        ("layer*", ("layer1", "layer2")),
        ("layer?.0", ("layer1.0", "layer2.0")),
        ("layer1.**", ("layer1", "layer1.0", "layer1.0.conv1", "layer1.1")),
        ("**.conv1", ("conv1", "layer1.0.conv1", "layer2.0.conv1")),
        ("layer[!1].*", ("layer2.0",)),
        (r"re:layer\d", ("layer1", "layer2")),
        ("re:layer", None),
        ("type:Linear", ("fc",)),
        ("type:_ConvNd", ("conv1", "layer1.0.conv1", "layer2.0.conv1")),
        (-1, ("layer2.0",)),
        ("0", ("layer1.0",)),
        ("stages@in", ("layer1", "layer2")),
        ("blocks", ("layer1.0", "layer1.1", "layer2.0")),
        ("leaves", RESNET.leaves),
        ("all", RESNET.paths),
        ("@in", ("",)),
        ("head.tied", ("fc",)),
        ("head.*", ("fc",)),
        ("**", RESNET.paths),
    ],
)
def test_matching(text: str | int, expected: tuple[str, ...] | None) -> None:
    if expected is None:
        refusal(text)
    else:
        assert matched(text) == expected


def test_slashes_part_paths_too() -> None:
    keras = places("resnet50/conv1", "resnet50/conv2_block1_out", "top")
    assert matched("resnet50/*", keras) == ("resnet50/conv1", "resnet50/conv2_block1_out")
    assert matched("*", keras) == ("top",)


def test_many_double_stars_stay_quick() -> None:
    deep = places(*(".".join("abcdefghij"[i:] + "x" * 3) for i in range(4)))
    refusal(".".join(["**"] * 30 + ["y"]), deep)


# ------------------------------------------------------------------ names that mean something else too


def test_a_keyword_wins_over_a_layer_of_that_name_and_a_regex_reaches_the_layer() -> None:
    vit = places("patch_embed", "blocks", "blocks.0", "blocks.1", blocks=("blocks.0", "blocks.1"))
    assert matched("blocks", vit) == ("blocks.0", "blocks.1")
    assert matched("re:blocks", vit) == ("blocks",)
    assert literal("blocks") == "re:blocks"


def test_a_number_is_the_layer_of_that_name_else_the_block() -> None:
    sequential = places("0", "1", "2", blocks=("1",))
    assert matched("1", sequential) == matched(1, sequential) == ("1",)
    assert matched("2", sequential) == ("2",)
    assert matched(0, sequential) == ("0",)
    assert matched(-1, sequential) == ("1",)


@many
@given(
    st.text(min_size=1, max_size=8) | st.text("ab.*?[]@#:01-in", min_size=1, max_size=8) | plain,
    st.lists(paths, max_size=4),
)
@example("a:0", [])
@example("a@in", [])
@example("a#1", [])
@example("blocks", ["a"])
def test_the_literal_of_a_path_means_that_path_alone(path: str, others: list[str]) -> None:
    known = places(*dict.fromkeys([path, *others]), blocks=tuple(others), stages=tuple(others))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        text = str(Address(literal(path), "in", 1, "0"))
        assert parse(text) == Address(literal(path), "in", 1, "0")
        assert match(parse(text), known) == match(parse(literal(path)), known) == (path,)


# ------------------------------------------------------------------------------------- what errors say


def test_an_unknown_layer_is_answered_with_the_three_nearest() -> None:
    assert refusal("layer1.0.conv7") == (
        "no layer 'layer1.0.conv7'; nearest: 'layer1.0.conv1', 'layer2.0.conv1', 'layer1.0'"
    )


def test_a_pattern_without_a_match_is_answered_with_the_three_nearest() -> None:
    assert (
        refusal("layr2.*") == "layr2.* matches no layer that runs; nearest: 'layer2.0', 'layer2', 'layer1.1'"
    )
    assert refusal("type:Conv3d") == "no layer of type 'Conv3d' runs; nearest: 'type:Conv2d'"


def test_a_layer_that_never_runs_is_told_from_one_that_does_not_exist() -> None:
    message = refusal("aux.fc")
    assert message.startswith("the layer 'aux.fc' never runs as a layer in this model's forward pass")
    assert "nearest that run: 'fc'" in message
    assert refusal("aux.*").startswith("aux.* matches no layer that runs")


def test_a_number_out_of_range_says_the_range_and_the_nearest_blocks() -> None:
    assert refusal(3) == (
        "block 3 is out of range: the model has 3 blocks, 0..2 or -3..-1; "
        "nearest: 'layer1.0', 'layer1.1', 'layer2.0'"
    )
    six = places(*"abcdef", blocks=tuple("abcdef"))
    assert refusal(6, six).endswith("nearest: 'd', 'e', 'f'")
    assert refusal(-7, six).endswith("nearest: 'a', 'b', 'c'")


@pytest.mark.parametrize("word", ["stages", "blocks", "leaves"])
def test_a_model_without_structure_says_so(word: str) -> None:
    message = refusal(word, places("pool", "flat"))
    assert message.startswith(f"there are no {word}: the model repeats no layer and has no convolution")
    assert message.endswith("name layers instead, e.g. 'pool', 'flat'")


def test_a_model_of_one_layer_says_what_can_be_addressed() -> None:
    one_layer = "the model is one layer; its output is '@out', its input '@in'"
    assert refusal("all", places()) == f"there are no layers: {one_layer}"
    assert refusal(-1, places()) == f"there is no block -1: {one_layer}"
    assert matched("@out", places()) == ("",)
