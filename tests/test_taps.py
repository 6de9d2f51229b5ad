"""The layer table, and what `spile.tap` and `spile.layers` say about things that are no models."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
import torchvision
from rich.console import Console
from torch import Tensor, nn

import spile
from spile.errors import MissingDependency, ModelError
from spile.taps import LayerRow, LayerTable, layers


@pytest.fixture(scope="module")
def resnet50() -> LayerTable:
    return layers(torchvision.models.resnet50(), (1, 3, 224, 224))


def row(table: LayerTable, address: str) -> LayerRow:
    (found,) = [row for row in table if row.address == address]
    return found


def made(**fields: Any) -> LayerRow:
    known: dict[str, Any] = {
        "address": "a",
        "type": "T",
        "output": (1,),
        "dtype": "float32",
        "params": 0,
        "macs": 0,
    }
    return LayerRow(**{**known, "calls": 1, "stride": None, "block": False, "stage": False, **fields})


# ------------------------------------------------------------------------------------- what it holds


def test_a_resnet50_has_the_parameters_and_macs_that_its_paper_and_library_say(resnet50: LayerTable) -> None:
    assert (
        sum(row.params for row in resnet50 if row.type in ("Conv2d", "BatchNorm2d", "Linear")) == 25_557_032
    )
    assert row(resnet50, "fc").macs == pytest.approx(4.09e9, rel=1e-3)
    assert row(resnet50, "conv1").macs == 112 * 112 * 64 * 3 * 7 * 7
    assert row(resnet50, "fc").params == 2048 * 1000 + 1000


def test_a_resnet50s_stages_have_their_shapes_and_strides(resnet50: LayerTable) -> None:
    stages = [(row.address, row.output, row.stride) for row in resnet50 if row.stage]
    assert stages == [
        ("layer1", (256, 56, 56), 4),
        ("layer2", (512, 28, 28), 8),
        ("layer3", (1024, 14, 14), 16),
        ("layer4", (2048, 7, 7), 32),
    ]
    assert sum(row.block for row in resnet50) == 16


def test_the_layers_stand_in_forward_order_not_in_that_of_their_making() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.never, self.first = (
                nn.Linear(4, 2),
                nn.Linear(1, 1),
                nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    table = layers(Backwards(), (1, 3))
    assert [row.address for row in table] == ["first", "first.0", "first.1", "last"]
    assert [row.macs for row in table] == [12, 12, 12, 20]


def test_calls_dtypes_and_layers_without_a_stride(resnet50: LayerTable) -> None:
    assert row(resnet50, "layer1.0.relu").calls == 3
    assert {row.dtype for row in resnet50} == {"float32"}
    assert row(resnet50, "fc").stride is None
    assert row(resnet50, "fc").output == (1000,)


def test_shapes_are_of_one_sample_wherever_the_samples_axis_is() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.TransformerEncoderLayer(8, 2, 16)
            self.bias = nn.Embedding(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x.transpose(0, 1)).transpose(0, 1) + self.bias(torch.arange(5)).mean()

    table = layers(TokensFirst(), (1, 5, 8))
    assert row(table, "attn").output == (5, 8)
    assert row(table, "bias").output is None


def test_a_layer_whose_name_means_something_else_is_listed_by_an_address_that_works() -> None:
    model = nn.Sequential()
    model.add_module("blocks", nn.Linear(3, 3))
    (listed,) = layers(model, (1, 3))
    assert listed.address == "re:blocks"
    assert list(spile.tap(model, listed.address, example=(1, 3))(torch.zeros(1, 3))) == ["re:blocks"]


def test_it_is_a_sequence(resnet50: LayerTable) -> None:
    assert len(resnet50) == len(list(resnet50)) > 100
    assert resnet50[0].address == "conv1"
    assert isinstance(resnet50[:3], LayerTable)
    assert [row.address for row in resnet50[:3]] == ["conv1", "bn1", "relu"]
    assert resnet50[-1] in resnet50


def test_a_table_is_empty_for_a_model_of_one_layer() -> None:
    table = layers(nn.Linear(3, 2), (1, 3))
    assert len(table) == 0
    assert str(table) == "address"
    assert "<th>address</th>" in table._repr_html_()


# ----------------------------------------------------------------------------------- how it is shown


def printed(table: LayerTable, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 140])
def test_it_fits_a_terminal_and_keeps_every_address_whole(resnet50: LayerTable, width: int) -> None:
    lines = printed(resnet50, width)
    assert max(map(len, lines)) <= width
    heads = lines[0].split()
    assert heads == ["address", "type", "output", "params", "MACs", "calls", "stride", "unit"]
    assert [line.split()[0] for line in lines[1:-1]] == [row.address for row in resnet50]
    assert lines[5].split() == ["layer1", "Sequential", "256×56×56", "216", "k", "786", "M", "4", "stage"]
    assert lines[6].split() == ["layer1.0", "Bottleneck", "256×56×56", "75", "k", "349", "M", "4", "block"]
    assert lines[-1].strip() == "MACs: a sample, to the end of the layer; all float32"


def test_long_types_are_cut_before_long_addresses_fold_and_numbers_are_never_cut() -> None:
    long = made(
        address="encoder." * 12 + "fc", type="ARatherLongNameOfAClass", macs=123_456_789, params=9_999
    )
    lines = printed(LayerTable([long]), 60)
    assert max(map(len, lines)) <= 60
    assert "ARatherLo…" in lines[1]
    assert "10 k" in lines[1]
    assert "123 M" in lines[1]
    assert "".join(line.split()[0] for line in lines[1:-1]) == long.address


def test_print_uses_the_same_table_and_no_colours(resnet50: LayerTable) -> None:
    assert str(resnet50) == repr(resnet50)
    assert "\x1b" not in str(resnet50)
    assert str(resnet50[:1]).splitlines()[1].split() == [
        "conv1",
        "Conv2d",
        "64×112×112",
        "9.41",
        "k",
        "118",
        "M",
        "2",
    ]


def test_columns_that_say_nothing_are_left_out_and_dtypes_shown_where_they_differ() -> None:
    same = LayerTable([made(address="a"), made(address="b")])
    assert printed(same, 80)[0].split() == ["address", "type", "output", "MACs"]
    mixed = LayerTable([made(address="a"), made(address="b", dtype="int64")])
    assert printed(mixed, 80)[0].split() == ["address", "type", "output", "dtype", "MACs"]
    assert "all" not in printed(mixed, 80)[-1]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1"),
        (999, "999"),
        (1000, "1 k"),
        (999_499, "999 k"),
        (999_999, "1 M"),
        (25_557_032, "25.6 M"),
        (4.1e9, "4.1 G"),
    ],
)
def test_numbers_are_short(number: int, text: str) -> None:
    assert printed(LayerTable([made(macs=int(number))]), 80)[1].split(maxsplit=3)[3].strip() == text


class Cells(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_notebook_gets_a_table_and_markup_in_names_is_escaped(resnet50: LayerTable) -> None:
    html = Cells(resnet50._repr_html_())
    assert html.tags.count("tr") == len(resnet50) + 1
    assert {"layer4.2.conv3", "Bottleneck", "2048×7×7", "4.09 G"} <= set(html.texts)
    hostile = LayerTable([made(address="<script>x</script>", type="A&B")])._repr_html_()
    assert "<script>" not in hostile
    assert "A&amp;B" in hostile
    assert "[bold]" in printed(LayerTable([made(address="[bold]a[/]")]), 80)[1]


def test_to_json_is_plain_and_complete(resnet50: LayerTable) -> None:
    listed = json.loads(json.dumps(resnet50.to_json()))
    assert len(listed) == len(resnet50)
    assert listed[4] == {
        "address": "layer1",
        "type": "Sequential",
        "output": [256, 56, 56],
        "dtype": "float32",
        "params": 215_808,
        "macs": row(resnet50, "layer1").macs,
        "calls": 1,
        "stride": 4,
        "block": False,
        "stage": True,
    }


def test_to_pandas_has_a_row_a_layer(resnet50: LayerTable) -> None:
    frame = resnet50.to_pandas()
    assert list(frame["address"]) == [row.address for row in resnet50]
    assert frame.set_index("address").loc["fc", "params"] == 2_049_000


def test_without_pandas_to_pandas_says_what_to_install(
    resnet50: LayerTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependency) as caught:
        resnet50.to_pandas()
    assert "pip install 'spile[data]'" in str(caught.value)


# ---------------------------------------------------------------------------------- what is no model


@pytest.mark.parametrize("thing", [3, None, nn.Linear, torch.zeros(2), {"model": 1}])
def test_what_is_no_model_is_refused_by_name(thing: Any) -> None:
    for use in (lambda: spile.tap(thing, "layer1"), lambda: spile.layers(thing, (1, 3))):
        with pytest.raises(
            ModelError, match=f"^{type(thing).__name__} is no model of a framework that is loaded"
        ):
            use()


def test_a_word_is_taken_for_a_reference() -> None:
    with pytest.raises(ModelError, match="'resnet50' is not a model reference"):
        spile.tap("resnet50", "layer1")


def test_layers_without_an_example_says_what_to_pass() -> None:
    with pytest.raises(ModelError, match=r"example=\(1, 3, 224, 224\)"):
        spile.layers(nn.Sequential(nn.Linear(3, 2)))
