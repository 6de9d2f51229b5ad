"""Blocks of flat networks by names and by merges, on graphs written down as text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from math import prod

import pytest

from spile import flat
from spile.observation import Call, Item, Layer, Observation
from spile.structure import blocks, last_features, places

WEIGHTED = ("Conv2D", "Dense", "MultiHeadAttention")
TYPES = {
    "conv": "Conv2D",
    "dense": "Dense",
    "bn": "BatchNormalization",
    "ln": "LayerNormalization",
    "relu": "Activation",
    "add": "Add",
    "concat": "Concatenate",
    "pool": "MaxPooling2D",
    "attention": "MultiHeadAttention",
}


def graph(*lines: str, side: int = 16, unseen: Sequence[str] = ()) -> Observation:
    """One node a line: ``name Class side width <- inputs``; the class, side and width may be left out.

    Without a class it is that of the last word of the name, without inputs the line before is read, and side
    and width stay. Names in `unseen` are operations that are no layers, so only their tensors show.
    """
    layers = {"": Layer("", (), ("Functional", "Model"), False, False, 1)}
    clock, ids = count(), count(1)
    tensors = {"x": Item(None, (2, side, side, 3), "float32", next(ids), "BYXC")}
    before, calls, start = "x", [], next(clock)
    for line in lines:
        head, _, read = line.partition("<-")
        name, *rest = head.split()
        kind = (
            rest.pop(0) if rest and not rest[0].isdigit() else TYPES[name.rstrip("0123456789").split("_")[-1]]
        )
        _, side_, _, width = tensors[before].shape
        side_, width = (int(n) for n in rest) if rest else (side_, width)
        inputs = tuple(tensors[n] for n in read.split() or [before])
        tensors[name] = Item(None, (2, side_, side_, width), "float32", next(ids), "BYXC")
        before = name
        if name not in unseen:
            weights = prod((width, width)) if kind in WEIGHTED else 0
            layers[name] = Layer(name, (), _classes(kind), kind != "MultiHeadAttention", False, weights)
            calls.append(Call(name, 0, next(clock), next(clock), inputs, (tensors[name],), 0, 0, 0, 0))
            if kind == "MultiHeadAttention":
                inner = f"{name}/query"
                layers[inner] = Layer(inner, (), ("EinsumDense",), True, False, weights)
                end = calls.pop()
                calls.append(Call(inner, 0, end.start, end.end, inputs, (), 0, 0, 0, 0))
                calls.append(Call(name, 0, end.start, end.end, inputs, end.outputs, 0, 0, 0, 0))
    calls.append(Call("", 0, start, next(clock), (tensors["x"],), (tensors[before],), 0, 0, 0, 0))
    return Observation(layers=layers, calls=tuple(calls), separator="/", prefix_tokens=None)


def _classes(kind: str) -> tuple[str, ...]:
    return (kind, "BaseConv") if kind == "Conv2D" else (kind,)


def residual(n: int, before: str, *, side: int = 16, width: int = 8) -> list[str]:
    """A residual block with names that say nothing."""
    return [f"conv2d_{n} Conv2D {side} {width} <- {before}", f"add_{n} Add <- {before} conv2d_{n}"]


def test_blocks_end_at_merges_where_names_say_nothing() -> None:
    seen = graph("conv2d Conv2D 16 8", *residual(1, "conv2d"), *residual(2, "add_1"))
    assert flat.blocks(seen) == ("add_1", "add_2")


def test_blocks_go_on_past_what_follows_most_of_the_merges() -> None:
    seen = graph(
        "conv2d Conv2D 16 8",
        *residual(1, "conv2d"),
        "activation_1 Activation",
        *residual(2, "activation_1"),
        "activation_2 Activation",
        *residual(3, "activation_2"),
        "dense Dense",
    )
    assert flat.blocks(seen) == ("activation_1", "activation_2", "add_3")


def test_a_merge_inside_a_block_is_no_end() -> None:
    lines = ["conv2d Conv2D 16 8"]
    for n, before in ((1, "conv2d"), (2, "out_b")):
        end = "ab"[n - 1]
        lines += [
            f"left_{end} Conv2D <- {'out_a' if n == 2 else before}",
            f"right_{end} Conv2D <- left_{end}",
            f"inner_{end} Add <- left_{end} right_{end}",
            f"out_{end} Add <- {'out_a' if n == 2 else before} inner_{end}",
        ]
    assert flat.blocks(graph(*lines)) == ("out_a", "out_b")


def test_a_merge_that_only_another_merge_reads_is_no_end() -> None:
    lines = ["conv2d Conv2D 16 8"]
    for end, before in (("a", "conv2d"), ("b", "join_a")):
        lines += [
            f"one_{end} Conv2D <- {before}",
            f"two_{end} Conv2D <- {before}",
            f"sum_{end} Add <- one_{end} two_{end}",
            f"three_{end} Conv2D <- {before}",
            f"also_{end} Add <- three_{end} {before}",
            f"join_{end} Concatenate 16 16 <- sum_{end} also_{end}",
        ]
    assert flat.blocks(graph(*lines)) == ("join_a", "join_b")


def test_the_merges_of_a_u_net_are_no_blocks_its_layers_are() -> None:
    seen = graph(
        "conv_1 Conv2D 16 8",
        "pool_1 MaxPooling2D 8 8",
        "conv_2 Conv2D 8 16",
        "pool_2 MaxPooling2D 4 16",
        "up_1 UpSampling2D 8 16",
        "concatenate Concatenate 8 32 <- up_1 conv_2",
        "up_2 UpSampling2D 16 32",
        "concatenate_1 Concatenate 16 40 <- up_2 conv_1",
        "sigmoid_conv Conv2D 16 1",
    )
    assert flat.blocks(seen) == ()


def test_a_gate_is_no_merge() -> None:
    lines = ["conv2d Conv2D 16 8"]
    for n, before in ((1, "conv2d"), (2, "multiply_1")):
        lines += [
            f"gap_{n} GlobalAveragePooling2D 1 8 <- {before}",
            f"multiply_{n} Multiply 16 8 <- {before} gap_{n}",
        ]
    assert flat.blocks(graph(*lines)) == ()


def test_names_tell_blocks_without_merges_and_their_unnumbered_kin() -> None:
    inner = ("depthwise Conv2D", "depthwise_bn", "project Conv2D", "project_bn")
    names = ("stage", "stage_1", "stage_2")
    seen = graph("stem Conv2D 16 8", *[f"{name}_{end}" for name in names for end in inner], "head Dense")
    assert flat.blocks(seen) == ("stage_project_bn", "stage_1_project_bn", "stage_2_project_bn")


def test_groups_that_change_their_size_and_hold_groups_are_stages() -> None:
    lines = [
        f"conv{stage}_block{n}_{end} {16 // stage} {8 * stage}"
        for stage in (1, 2, 4)
        for n in (1, 2)
        for end in ("conv", "relu")
    ]
    assert flat.blocks(graph(*lines)) == tuple(
        f"conv{stage}_block{n}_relu" for stage in (1, 2, 4) for n in (1, 2)
    )
    plain = graph(*[f"block{n}_conv{i} {16 // n} {8 * n}" for n in (1, 2, 4) for i in (1, 2)])
    assert flat.blocks(plain) == ()
    assert places(plain).stages == ("block1_conv2", "block2_conv2", "block4_conv2")


def test_equal_numbers_in_a_row_are_one_block() -> None:
    seen = graph(
        *[f"{kind}_{n}{end}" for n in (1, 2) for kind in ("dw_conv", "pw_conv") for end in (" Conv2D", "_bn")]
    )
    assert flat.blocks(seen) == ("pw_conv_1_bn", "pw_conv_2_bn")


def test_numbers_of_branches_side_by_side_are_no_blocks() -> None:
    lines = ["stem Conv2D 16 8"]
    lines += ["branch_1_conv <- stem", "branch_2_conv <- stem", "branch_1_bn <- branch_1_conv"]
    lines += ["branch_2_bn <- branch_2_conv", "out Add <- branch_1_bn branch_2_bn"]
    assert flat.blocks(graph(*lines)) == ()


def test_a_block_ends_where_its_merge_does_also_when_the_merge_has_no_name() -> None:
    lines = ["stem Conv2D 16 8"]
    for n, before in ((1, "stem"), (2, "add_1"), (3, "add_2")):
        lines += [f"block{n}_conv <- {before}", f"block{n}_bn", f"add_{n} Add <- {before} block{n}_bn"]
    assert flat.blocks(graph(*lines)) == ("add_1", "add_2", "add_3")


def test_a_sum_that_is_no_layer_leaves_the_last_layer_of_the_block() -> None:
    lines = ["stem Conv2D 16 8"]
    for n, before in ((1, "stem"), (2, "sum_1")):
        lines += [f"block{n}_ln <- {before}", f"block{n}_dense", f"sum_{n} Add <- {before} block{n}_dense"]
    seen = graph(*lines, "head Dense <- sum_2", unseen=("sum_1", "sum_2"))
    assert flat.blocks(seen) == ("block1_dense", "block2_dense")
    assert last_features(seen) == "head@in"


def test_merges_between_named_groups_are_blocks_too() -> None:
    lines = ["stem Conv2D 16 8", "side Conv2D <- stem", "mixed Concatenate 16 16 <- stem side"]
    lines += [f"block{n}_{end}" for n in (1, 2, 3) for end in ("conv", "relu")]
    assert flat.blocks(graph(*lines)) == ("mixed", "block1_relu", "block2_relu", "block3_relu")


def test_automatic_names_are_no_hierarchy() -> None:
    lines = ["stem Conv2D 16 8"]
    for n, before in ((1, "stem"), (2, "add_1"), (3, "add_2")):
        lines += [f"conv{n}_conv <- {before}", f"conv{n}_bn", f"conv2d_{n} Conv2D <- {before}"]
        lines += [f"add_{n} Add <- conv{n}_bn conv2d_{n}"]
    lines += ["conv4_conv", "conv4_bn"]
    assert flat.blocks(graph(*lines)) == ("add_1", "add_2", "add_3", "conv4_bn")


def test_a_merge_of_vectors_ends_no_block_of_maps() -> None:
    lines = ["conv2d Conv2D 16 8", *residual(1, "conv2d"), *residual(2, "add_1")]
    lines += ["gap GlobalAveragePooling2D 1 8", "gmp GlobalMaxPooling2D 1 8 <- add_2"]
    assert flat.blocks(graph(*lines, "both Concatenate 1 16 <- gap gmp")) == ("add_1", "add_2")


def test_a_merge_in_the_middle_of_a_named_group_is_no_end() -> None:
    lines, before = ["stem Conv2D 16 8"], "stem"
    for n in (1, 2, 3):
        lines += [
            f"layer{n}_mixing_conv <- {before}",
            f"layer{n}_mixing_add <- {before} layer{n}_mixing_conv",
        ]
        lines += [f"layer{n}_mlp_dense", f"layer{n}_mlp_add <- layer{n}_mixing_add layer{n}_mlp_dense"]
        before = f"layer{n}_mlp_add"
    assert flat.blocks(graph(*lines)) == ("layer1_mlp_add", "layer2_mlp_add", "layer3_mlp_add")


def test_attention_and_perceptron_are_one_block_and_go_before_the_attention_layers() -> None:
    lines, before = ["dense Dense 16 8"], "dense"
    for n in (1, 2):
        lines += [
            f"multi_head_attention_{n} MultiHeadAttention",
            f"add_{n}0 Add <- {before} multi_head_attention_{n}",
        ]
        lines += [f"dense_{n} Dense", f"add_{n}1 Add <- add_{n}0 dense_{n}"]
        before = f"add_{n}1"
    seen = graph(*lines)
    assert flat.blocks(seen) == blocks(seen) == ("add_11", "add_21")
    assert flat.lie_inside(seen, ["multi_head_attention_1"], ["add_11", "add_21"])
    assert not flat.lie_inside(seen, ["multi_head_attention_1", "add_21"], ["add_11", "add_21"])
    assert not flat.lie_inside(seen, ["multi_head_attention_1"], [])


def test_a_width_that_grows_by_joining_is_one_stage() -> None:
    lines, before = ["conv2d Conv2D 16 8"], "conv2d"
    for n in (1, 2, 3):
        lines += [f"conv2d_{n} Conv2D 16 4", f"concat_{n} Concatenate 16 {8 + 4 * n} <- {before} conv2d_{n}"]
        before = f"concat_{n}"
    seen = graph(*lines)
    assert flat.alike(seen, "concat_1", "concat_2")
    assert not flat.alike(seen, "conv2d", "conv2d_1")
    assert not flat.alike(graph("a Conv2D 16 8", "b Conv2D 16 16"), "a", "b")
    assert flat.alike(graph("a Conv2D 16 8", "b Conv2D 15 8"), "a", "b")


def test_a_layer_that_gives_what_it_was_given_does_not_loop() -> None:
    seen = graph("block1_conv 16 8", "block1_relu", "block2_conv", "block2_relu")
    calls = tuple(c if c.path != "block2_relu" else _identity(c) for c in seen.calls)
    seen = Observation(layers=seen.layers, calls=calls, separator="/", prefix_tokens=None)
    assert flat.blocks(seen) == ("block1_relu", "block2_relu")


def _identity(call: Call) -> Call:
    return Call(call.path, 0, call.start, call.end, call.inputs, call.inputs, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("end", "last"),
    [("Activation", "scores@in"), ("Softmax", "scores@in"), ("Dropout", "conv_a")],
)
def test_the_classifier_is_found_before_a_softmax(end: str, last: str) -> None:
    seen = graph("conv_a Conv2D 8 4", "gap GlobalAveragePooling2D 1 4", "scores Dense", f"ending {end}")
    assert last_features(seen) == last


def test_a_large_graph_is_quick() -> None:
    lines = ["conv2d Conv2D 16 8", *residual(0, "conv2d")]
    for n in range(1, 600):
        lines += residual(n, f"add_{n - 1}")
    seen = graph(*lines)
    started = time.perf_counter()
    assert len(places(seen).blocks) == 600
    assert time.perf_counter() - started < 1


def test_weighted_layers_count_where_most_hold_their_activation() -> None:
    fused = graph("conv_a Conv2D 16 8", "conv_b Conv2D 16 8", "conv_c Conv2D 16 1", "sigmoid Activation")
    assert blocks(fused) == ("conv_a", "conv_b", "conv_c")
    assert blocks(graph("conv_a Conv2D 16 8", "relu_a Activation", "conv_b Conv2D", "relu_b Activation")) == (
        "relu_a",
        "relu_b",
    )


def test_a_pooler_is_no_classifier_but_a_last_layer_of_one_width_is() -> None:
    assert last_features(graph("dense_a Dense 1 8", "dense_b Dense 1 8")) == "dense_b@in"
    maps = ["conv_a Conv2D 16 8", "relu_a Activation", "conv_b Conv2D", "relu_b Activation"]
    seen = graph(*maps, "gap GlobalAveragePooling2D 1 8", "pooler Dense")
    assert last_features(seen) == "pooler@in"
    root = replace(seen.root, outputs=(*seen.by_path["relu_b"][0].outputs, *seen.root.outputs))
    assert last_features(replace(seen, calls=(*seen.calls[:-1], root))) == "relu_b"
