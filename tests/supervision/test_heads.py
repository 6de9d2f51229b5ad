"""What heads consist of: operations and their sizes, without a framework."""

from __future__ import annotations

import pytest

from spile.errors import SupervisionError
from spile.supervision.heads import (
    FREE,
    MLP,
    NAMES,
    Bottleneck,
    Flatten,
    HeadSpec,
    Linear,
    Pixels,
    Token,
    check_size,
    heads_of,
    spec_of,
)
from spile.supervision.operations import (
    Activation,
    Conv,
    Dense,
    Features,
    GroupNorm,
    LayerNorm,
    Operation,
    Pooling,
    macs,
    parameters,
)

EARLY = Features(kind="map", channels=64, size=(56, 56))
FINAL = Features(kind="map", channels=512, size=(7, 7))
TOKENS = Features(kind="tokens", channels=384, size=(197,), prefix_tokens=1)
VECTOR = Features(kind="vector", channels=100)


def operations(
    head: HeadSpec, features: Features, *, final: Features = FINAL, base_params: int = 11_000_000
) -> tuple[Operation, ...]:
    return head.operations(features, outputs=10, final=final, base_params=base_params)


def test_linear() -> None:
    assert operations(Linear(), EARLY) == (Pooling("avg"), Dense(64, 10))
    assert operations(Linear(), TOKENS) == (Pooling("mean"), Dense(384, 10))
    assert operations(Linear(), VECTOR) == (Pooling("flatten"), Dense(100, 10))
    assert operations(Linear(pool="grid:2"), EARLY) == (Pooling("grid:2"), Dense(256, 10))
    assert operations(Linear(pool="cls+mean"), TOKENS) == (Pooling("cls+mean"), Dense(768, 10))
    with pytest.raises(SupervisionError, match="'linear' needs a pool that leaves a vector, not 'none'"):
        operations(Linear(pool="none"), EARLY)


def test_mlp() -> None:
    assert operations(MLP(width=32), EARLY) == (
        Pooling("avg"),
        Dense(64, 32),
        LayerNorm(32),
        Activation("gelu"),
        Dense(32, 10),
    )
    with pytest.raises(SupervisionError, match="width=0 of a head: write a number of channels"):
        operations(MLP(width=0), EARLY)


def test_token_reads_the_class_token_where_there_is_one() -> None:
    assert operations(Token(), TOKENS) == (LayerNorm(384), Pooling("cls"), Dense(384, 10))
    without = Features(kind="tokens", channels=384, size=(196,))
    assert operations(Token(), without)[1] == Pooling("mean")
    with pytest.raises(SupervisionError, match="'token' reads tokens, and here is a map"):
        operations(Token(), EARLY)


def test_bottleneck_goes_to_the_final_stride_and_width_in_even_steps() -> None:
    made = operations(Bottleneck(), EARLY)
    assert [(o.inputs, o.outputs, o.stride, o.groups) for o in made if isinstance(o, Conv)] == [
        (64, 64, 2, 64),
        (64, 128, 1, 1),
        (128, 128, 2, 128),
        (128, 256, 1, 1),
        (256, 256, 2, 256),
        (256, 512, 1, 1),
    ]
    assert made[-2:] == (Pooling("avg"), Dense(512, 10))
    wide = Features(kind="map", channels=2048, size=(7, 7))
    assert operations(Bottleneck(), EARLY, final=wide, base_params=10**9)[-1] == Dense(512, 10)


def test_bottleneck_at_the_final_stride_is_one_convolution() -> None:
    made = operations(Bottleneck(width=32), FINAL)
    assert made == (Conv(512, 32), GroupNorm(32, 8), Activation(), Pooling("avg"), Dense(32, 10))


def test_bottleneck_elsewhere() -> None:
    assert operations(Bottleneck(), TOKENS) == operations(Token(), TOKENS)
    assert operations(Bottleneck(), VECTOR) == operations(Linear(), VECTOR)


def test_a_bottleneck_on_an_early_map_costs_little_of_a_resnet18() -> None:
    assert macs(operations(Bottleneck(), EARLY), EARLY) < 0.015 * 1.81e9


@pytest.mark.parametrize("width", [2, 4, 6, 8, 12, 16, 100])
def test_norms_have_two_numbers_a_group_even_on_one_cell(width: int) -> None:
    (norm,) = [o for o in operations(Bottleneck(width=width), FINAL) if isinstance(o, GroupNorm)]
    assert width % norm.groups == 0
    assert width // norm.groups >= 2


@pytest.mark.parametrize("head", [Bottleneck(), MLP()], ids=str)
@pytest.mark.parametrize("base_params", [20_000, 300_000, 3_000_000])
def test_heads_size_themselves_by_the_network(head: HeadSpec, base_params: int) -> None:
    made = operations(head, Features(kind="map", channels=512, size=(28, 28)), base_params=base_params)
    dense = made[-1]
    assert isinstance(dense, Dense)
    assert parameters(made) <= max(0.1 * base_params, 16 * 600) or dense.inputs == 16


def test_pixels_and_flatten() -> None:
    assert operations(Pixels(), EARLY) == (Conv(64, 10, bias=True),)
    assert operations(Flatten(), EARLY) == (Pooling("flatten"), Dense(64 * 56 * 56, 10))
    with pytest.raises(SupervisionError, match="'dense' reads maps, and here is a vector"):
        operations(Pixels(), VECTOR)


def test_a_head_over_a_tenth_of_the_base_and_over_a_million_is_refused() -> None:
    def check(params: int, base: int, *, allowed: bool = False) -> None:
        check_size(params, place="layer1", head=Flatten(), base_params=base, allowed=allowed)

    check(FREE, 10)
    check(2 * FREE, 20 * FREE)
    check(800 * FREE, 10, allowed=True)
    with pytest.raises(SupervisionError) as caught:
        check(2 * FREE + 1, 20 * FREE)
    assert str(caught.value) == (
        "the head 'flatten' at 'layer1' has 2,000,001 parameters, 10% of the network's 20,000,000: use "
        "head='bottleneck' or 'linear', tap a deeper layer, or allow it by name, allow_large=['layer1']"
    )


def test_names() -> None:
    assert {name: str(spec) for name, spec in NAMES.items()} == {name: name for name in NAMES}
    assert spec_of("mlp") == MLP()
    assert spec_of(len) is len
    with pytest.raises(SupervisionError, match=r"unknown head 'botleneck': did you mean 'bottleneck'\?"):
        spec_of("botleneck")


def test_heads_by_address() -> None:
    assert heads_of("linear", ["a", "b"]) == {"a": Linear(), "b": Linear()}
    assert heads_of({"a": "linear"}, ["a", "b"]) == {"a": Linear(), "b": Bottleneck()}
    assert heads_of({"b": "mlp", "*": "linear"}, ["a", "b"]) == {"a": Linear(), "b": MLP()}
    with pytest.raises(SupervisionError, match=r"head= names 'layer33', .* did you mean 'layer3'\?"):
        heads_of({"layer33": "linear"}, ["layer2", "layer3"])
