"""Blocks and stages, against lists written down from the papers and the libraries' sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from spile.errors import AddressError
from spile.observation import Call, Item, Layer, Observation
from spile.resolution import resolve
from spile.structure import last_features, places
from spile.torch.observing import observe

IMAGE = (1, 3, 224, 224)
SMALL_IMAGE = (1, 3, 64, 64)


def observed(model: nn.Module, example: Any) -> Observation:
    return observe(model.eval(), example)


def texts() -> Tensor:
    return torch.ones(1, 8, dtype=torch.long)


def rows(template: str, *depths: int, first: int = 0, step: int = 1, start: int = 0) -> list[str]:
    """``rows("layer{}.{}", 2, 2)``: layer0.0, layer0.1, layer1.0, layer1.1."""
    return [
        template.format(first + step * row, start + i, row=first + step * row)
        for row, depth in enumerate(depths)
        for i in range(depth)
    ]


def numbered(template: str, numbers: Iterable[int]) -> list[str]:
    return [template.format(n) for n in numbers]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    blocks: list[str]
    stages: list[str]
    last: str
    example: Callable[[], Any] = lambda: IMAGE
    quick: bool = False


def torchvision_case(
    name: str,
    blocks: list[str],
    stages: list[str],
    last: str,
    *,
    arguments: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    def make() -> nn.Module:
        with torch.device("meta" if name.startswith(("vgg", "alexnet")) else "cpu"):  # need not be drawn
            return torchvision.models.get_model(name, weights=None, **arguments or {})

    return Case(f"torchvision:{name}", make, blocks, stages, last, **options)


def timm_case(name: str, blocks: list[str], stages: list[str], last: str, **options: Any) -> Case:
    def make() -> nn.Module:
        with torch.device("meta" if name.startswith("vgg") else "cpu"):
            return timm.create_model(name)

    return Case(f"timm:{name}", make, blocks, stages, last, **options)


def hf_case(
    kind: str,
    blocks: list[str],
    stages: list[str],
    last: str,
    *,
    text: bool,
    quick: bool = False,
    **config: Any,
) -> Case:
    def make() -> nn.Module:
        ids = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if text else {}
        family = next(f for f in (kind, kind.removesuffix("Encoder")) if hasattr(transformers, f"{f}Config"))
        return getattr(transformers, f"{kind}Model")(
            getattr(transformers, f"{family}Config")(**ids, **config)
        )

    return Case(
        f"hf:{kind}", make, blocks, stages, last, example=texts if text else lambda: SMALL_IMAGE, quick=quick
    )


BERT = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
PYRAMID = {"hidden_sizes": [8, 16, 32, 64], "depths": [2, 2, 3, 2]}
SWIN = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [2, 2, 4, 2],
    "num_heads": [1, 2, 4, 8],
    "window_size": 2,
}

RESNET_STAGES = numbered("layer{}", range(1, 5))
VGG16_RELUS = numbered("features.{}", (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29))
VGG16_LAST_RELUS = numbered("features.{}", (3, 8, 15, 22, 29))
DENSE_LAYERS = rows("features.denseblock{}.denselayer{}", 6, 12, 24, 16, first=1, start=1)
DENSE_BLOCKS = numbered("features.denseblock{}", range(1, 5))
B0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
INCEPTION_V3 = [
    "Mixed_5b",
    "Mixed_5c",
    "Mixed_5d",
    "Mixed_6a",
    "Mixed_6b",
    "Mixed_6c",
    "Mixed_6d",
    "Mixed_6e",
    "Mixed_7a",
    "Mixed_7b",
    "Mixed_7c",
]
INCEPTION_V3_STAGES = [f"Mixed_{name}" for name in ["5b", "5d", "6e", "7a", "7c"]]

CASES = [
    torchvision_case("resnet18", rows("layer{}.{}", 2, 2, 2, 2, first=1), RESNET_STAGES, "fc@in", quick=True),
    torchvision_case("resnet50", rows("layer{}.{}", 3, 4, 6, 3, first=1), RESNET_STAGES, "fc@in"),
    torchvision_case("vgg16", VGG16_RELUS, VGG16_LAST_RELUS, "classifier.6@in", quick=True),
    torchvision_case(
        "vgg11_bn",
        numbered("features.{}", (2, 6, 10, 13, 17, 20, 24, 27)),
        numbered("features.{}", (2, 6, 13, 20, 27)),
        "classifier.6@in",
    ),
    torchvision_case(
        "alexnet",
        numbered("features.{}", (1, 4, 7, 9, 11)),
        numbered("features.{}", (1, 4, 7, 11)),
        "classifier.6@in",
    ),
    torchvision_case(
        "efficientnet_b0",
        rows("features.{}.{}", *B0_DEPTHS, first=1),
        numbered("features.{}", range(1, 8)),
        "classifier.1@in",
        quick=True,
    ),
    torchvision_case(
        "efficientnet_v2_s",
        rows("features.{}.{}", 2, 4, 4, 6, 9, 15, first=1),
        numbered("features.{}", range(1, 7)),
        "classifier.1@in",
    ),
    torchvision_case(
        "convnext_tiny",
        rows("features.{}.{}", 3, 3, 9, 3, first=1, step=2),
        numbered("features.{}", (1, 3, 5, 7)),
        "classifier.2@in",
    ),
    torchvision_case(
        "swin_t",
        rows("features.{}.{}", 2, 2, 6, 2, first=1, step=2),
        numbered("features.{}", (1, 3, 5, 7)),
        "head@in",
    ),
    torchvision_case(
        "vit_b_16",
        numbered("encoder.layers.encoder_layer_{}", range(12)),
        numbered("encoder.layers.encoder_layer_{}", (2, 5, 8, 11)),
        "heads.head@in",
    ),
    torchvision_case(
        "mobilenet_v2",
        numbered("features.{}", range(1, 18)),
        numbered("features.{}", (1, 3, 6, 10, 13, 16, 17)),
        "classifier.1@in",
    ),
    torchvision_case(
        "mobilenet_v3_small",
        numbered("features.{}", range(1, 12)),
        numbered("features.{}", (1, 3, 6, 8, 11)),
        "classifier.3@in",
    ),
    torchvision_case("densenet121", DENSE_LAYERS, DENSE_BLOCKS, "classifier@in"),
    torchvision_case(
        "regnet_y_400mf",
        rows("trunk_output.block{row}.block{0}-{1}", 1, 3, 6, 6, first=1),
        numbered("trunk_output.block{}", range(1, 5)),
        "fc@in",
    ),
    torchvision_case(
        "googlenet",
        [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")],
        [f"inception{name}" for name in ("3a", "3b", "4c", "4d", "4e", "5a", "5b")],
        "fc@in",
        quick=True,
        arguments={"init_weights": False},
    ),
    torchvision_case(
        "inception_v3",
        INCEPTION_V3,
        INCEPTION_V3_STAGES,
        "fc@in",
        arguments={"init_weights": False},
        example=lambda: (1, 3, 299, 299),
    ),
    torchvision_case(
        "squeezenet1_0",
        numbered("features.{}", (3, 4, 5, 7, 8, 9, 10, 12)),
        numbered("features.{}", (4, 5, 7, 9, 10, 12)),
        "features.12",
    ),
    torchvision_case(
        "shufflenet_v2_x0_5",
        rows("stage{}.{}", 4, 8, 4, first=2),
        numbered("stage{}", (2, 3, 4)),
        "fc@in",
    ),
    timm_case("resnet18", rows("layer{}.{}", 2, 2, 2, 2, first=1), RESNET_STAGES, "fc@in"),
    timm_case(
        "resnetv2_50", rows("stages.{}.blocks.{}", 3, 4, 6, 3), numbered("stages.{}", range(4)), "head.fc@in"
    ),
    timm_case("vgg16", VGG16_RELUS, VGG16_LAST_RELUS, "head.fc@in"),
    timm_case(
        "tf_efficientnet_lite0",
        rows("blocks.{}.{}", *B0_DEPTHS),
        numbered("blocks.{}", range(7)),
        "classifier@in",
        quick=True,
    ),
    timm_case(
        "efficientnet_b0", rows("blocks.{}.{}", *B0_DEPTHS), numbered("blocks.{}", range(7)), "classifier@in"
    ),
    timm_case(
        "convnext_atto",
        rows("stages.{}.blocks.{}", 2, 2, 6, 2),
        numbered("stages.{}", range(4)),
        "head.fc@in",
        quick=True,
    ),
    timm_case(
        "swin_tiny_patch4_window7_224",
        rows("layers.{}.blocks.{}", 2, 2, 6, 2),
        numbered("layers.{}", range(4)),
        "head.fc@in",
    ),
    timm_case(
        "vit_tiny_patch16_224",
        numbered("blocks.{}", range(12)),
        numbered("blocks.{}", (2, 5, 8, 11)),
        "head@in",
        quick=True,
    ),
    timm_case(
        "mobilenetv2_100",
        rows("blocks.{}.{}", 1, 2, 3, 4, 3, 3, 1),
        numbered("blocks.{}", range(7)),
        "classifier@in",
    ),
    timm_case(
        "mobilenetv3_small_100",
        rows("blocks.{}.{}", 1, 2, 3, 2, 3, 1),
        numbered("blocks.{}", range(6)),
        "classifier@in",
    ),
    timm_case("densenet121", DENSE_LAYERS, DENSE_BLOCKS, "classifier@in"),
    timm_case(
        "regnety_004",
        rows("s{}.b{}", 1, 3, 6, 6, first=1, start=1),
        numbered("s{}", range(1, 5)),
        "head.fc@in",
    ),
    timm_case("inception_v3", INCEPTION_V3, INCEPTION_V3_STAGES, "fc@in", example=lambda: (1, 3, 299, 299)),
    timm_case(
        "maxvit_tiny_rw_224",
        rows("stages.{}.blocks.{}", 2, 2, 5, 2),
        numbered("stages.{}", range(4)),
        "head.fc@in",
    ),
    timm_case(
        "pvt_v2_b0", rows("stages.{}.blocks.{}", 2, 2, 2, 2), numbered("stages.{}", range(4)), "head@in"
    ),
    timm_case(
        "xcit_nano_12_p16_224",  # two class-attention blocks see one token more: no new stage
        [*numbered("blocks.{}", range(12)), *numbered("cls_attn_blocks.{}", range(2))],
        ["blocks.3", "blocks.6", "blocks.10", "cls_attn_blocks.1"],
        "head@in",
    ),
    timm_case("dla34", numbered("level{}", range(2, 6)), numbered("level{}", range(2, 6)), "fc@in"),
    hf_case(
        "Bert",
        numbered("encoder.layer.{}", range(6)),
        numbered("encoder.layer.{}", (1, 2, 4, 5)),
        "encoder.layer.5",
        text=True,
        quick=True,
        **BERT,
    ),
    hf_case(
        "GPT2",
        numbered("h.{}", range(5)),
        numbered("h.{}", (1, 2, 3, 4)),
        "h.4",
        text=True,
        quick=True,
        n_embd=16,
        n_layer=5,
        n_head=2,
    ),
    hf_case(
        "T5Encoder",
        numbered("encoder.block.{}", range(3)),
        numbered("encoder.block.{}", range(3)),
        "encoder.block.2:0",
        text=True,
        d_model=16,
        d_ff=32,
        num_layers=3,
        num_heads=2,
        d_kv=8,
    ),
    hf_case(
        "DistilBert",
        numbered("transformer.layer.{}", range(8)),
        numbered("transformer.layer.{}", (1, 3, 5, 7)),
        "transformer.layer.7",
        text=True,
        dim=16,
        n_layers=8,
        n_heads=2,
        hidden_dim=32,
    ),
    hf_case(  # one layer, run six times: its calls are the depth
        "Albert",
        ["encoder.albert_layer_groups.0"],
        ["encoder.albert_layer_groups.0"],
        "encoder.albert_layer_groups.0#5",
        text=True,
        quick=True,
        embedding_size=8,
        **BERT,
    ),
    hf_case(
        "ViT",
        numbered("layers.{}", range(6)),
        numbered("layers.{}", (1, 2, 4, 5)),
        "layers.5",
        text=False,
        image_size=64,
        **BERT,
    ),
    hf_case(
        "Swin",
        rows("encoder.layers.{}.blocks.{}", 2, 2, 4, 2),
        [f"encoder.layers.{i}.blocks.{j}" for i, j in ((0, 1), (1, 1), (2, 3), (3, 1))],
        "encoder.layers.3.blocks.1:0",
        text=False,
        **SWIN,
    ),
    hf_case(
        "ConvNext",
        rows("encoder.stages.{}.layers.{}", 2, 2, 3, 2),
        numbered("encoder.stages.{}", range(4)),
        "encoder.stages.3.layers.1",
        text=False,
        **PYRAMID,
    ),
    hf_case(
        "ResNet",
        rows("encoder.stages.{}.layers.{}", 2, 2, 3, 2),
        numbered("encoder.stages.{}", range(4)),
        "encoder.stages.3.layers.1",
        text=False,
        embedding_size=8,
        **PYRAMID,
    ),
    hf_case(
        "Segformer",
        rows("stages.{}.blocks.{}", 2, 2, 2, 2),
        numbered("stages.{}", range(4)),
        "stages.3.blocks.1",
        text=False,
        hidden_sizes=[8, 16, 32, 64],
        num_attention_heads=[1, 2, 4, 8],
    ),
]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.quick else pytest.mark.zoo) for c in CASES]
)
def test_blocks_and_stages_of_known_architectures(case: Case) -> None:
    seen = observed(case.make(), case.example())
    found = places(seen)
    assert found.blocks == tuple(case.blocks)
    assert found.stages == tuple(case.stages)
    assert last_features(seen) == case.last
    points, _ = resolve(["stages", case.last], "auto", seen)
    if "albert" not in case.stages[0]:
        assert len(points) <= len(case.stages) + 1, "a stage is one tensor"


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "tf_efficientnet_lite0",
        "mobilenetv3_small_100",
        "convnext_atto",
        "densenet121",
        "regnetx_002",
        "ghostnet_100",
    ],
)
def test_the_stages_have_the_strides_that_timm_says_its_features_have(name: str) -> None:
    reductions = set(timm.create_model(name, features_only=True).feature_info.reduction())
    seen = observed(timm.create_model(name), IMAGE)
    heights = [seen.by_path[path][-1].outputs[0].shape[2] for path in places(seen).stages]
    strides = {round(224 / height) for height in heights}
    assert strides <= reductions
    assert {reduction for reduction in reductions if reduction >= 4} <= strides


# ----------------------------------------------------------------------------- networks of one's own


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.skip = nn.Conv2d(before, after, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.skip(x))


class Chain(nn.Module):
    """Runs its children one after the other; no container."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class Branches(nn.Module):
    """Two branches of composites that no list holds."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.narrow = Chain(conv=nn.Conv2d(before, after, 1), relu=nn.ReLU())
        self.wide = Chain(conv=nn.Conv2d(before, after, 3, padding=1), relu=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.wide(x)], 1)


class DoubleConv(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.both = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.middle = DoubleConv(3, 8), DoubleConv(8, 16), DoubleConv(16, 32)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.dec2, self.dec1 = DoubleConv(48, 16), DoubleConv(24, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.enc1(x)
        two = self.enc2(self.pool(one))
        x = self.up(self.middle(self.pool(two)))
        x = self.dec2(torch.cat([x, two], 1))
        return self.out(self.dec1(torch.cat([self.up(x), one], 1)))


class SharedReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3, 2)
        self.relu, self.fc = nn.ReLU(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.relu(conv(x))
        return self.fc(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.fc = (
            nn.Embedding(9, 4),
            nn.LSTM(4, 8, batch_first=True),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embedding(x))[0][:, -1])


def resnet10() -> nn.Module:
    """One block a stage: nothing repeats in one list."""
    widths = (8, 8, 16, 32)
    layers = {f"layer{i}": nn.Sequential(Residual(widths[i - 1], widths[i], 2)) for i in (1, 2, 3)}
    return Chain(
        stem=nn.Conv2d(3, 8, 3),
        **layers,
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(32, 4),
    )


def blocks_as_attributes() -> nn.Module:
    children = {f"block{i}": Residual(3 if i == 1 else 8, 8, 2 if i == 3 else 1) for i in range(1, 5)}
    return Chain(**children, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(8, 4))


def inception() -> nn.Module:
    return Chain(
        a=Branches(3, 4), b=Branches(8, 4), pool=nn.MaxPool2d(2), c=Branches(8, 8), d=Branches(16, 8)
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def cnn_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3),
        nn.ReLU(),
        nn.Conv1d(8, 8, 3),
        nn.ReLU(),
        nn.MaxPool1d(4),
        nn.Conv1d(8, 16, 3),
        nn.ReLU(),
    )


def autoencoder() -> nn.Module:
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    decoder = nn.Sequential(
        nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2), nn.Sigmoid()
    )
    return Chain(encoder=encoder, decoder=decoder)


@pytest.mark.parametrize(
    ("make", "example", "blocks", "stages", "last"),
    [
        (lambda: nn.Linear(8, 3), (1, 8), [], [], "@in"),
        (lambda: nn.Sequential(nn.Linear(8, 3)), (1, 8), ["0"], ["0"], "0@in"),
        (mlp, (1, 8), ["1", "3"], ["1", "3"], "4@in"),
        (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), (1, 2, 4), ["1"], ["1"], "1"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Softmax(1)), (1, 2, 4), [], [], "1"),
        (lambda: nn.Identity(), (1, 8), [], [], "@out"),
        (cnn_1d, (1, 2, 32), ["1", "3", "6"], ["3", "6"], "6"),
        (Recurrent, torch.ones(1, 6, dtype=torch.long), ["lstm"], ["lstm"], "fc@in"),
        (
            UNet,
            SMALL_IMAGE,
            ["enc1", "enc2", "middle", "dec2", "dec1"],
            ["enc1", "enc2", "middle", "dec2", "dec1"],
            "out@in",
        ),
        (
            autoencoder,
            (1, 1, 32, 32),
            ["encoder.1", "encoder.3", "decoder.1", "decoder.3"],
            ["encoder.1", "encoder.3", "decoder.1", "decoder.3"],
            "decoder.3",
        ),
        (SharedReLU, SMALL_IMAGE, ["conv1", "conv2", "conv3"], ["conv2", "conv3"], "fc@in"),
        (inception, SMALL_IMAGE, ["a", "b", "c", "d"], ["b", "d"], "d"),
        (
            resnet10,
            SMALL_IMAGE,
            ["layer1.0", "layer2.0", "layer3.0"],
            ["layer1", "layer2", "layer3"],
            "fc@in",
        ),
        (blocks_as_attributes, SMALL_IMAGE, numbered("block{}", range(1, 5)), ["block2", "block4"], "fc@in"),
        (
            lambda: nn.Sequential(Residual(3, 8), Residual(8, 8), Residual(8, 16)),
            SMALL_IMAGE,
            ["0", "1", "2"],
            ["1", "2"],
            "2",
        ),
    ],
    ids=[
        "linear",
        "sequential of one",
        "mlp",
        "no parameters",
        "neither",
        "identity",
        "1-d",
        "lstm",
        "u-net",
        "autoencoder",
        "shared activation",
        "inception",
        "resnet10",
        "attributes",
        "sequential of blocks",
    ],
)
def test_networks_of_ones_own(
    make: Callable[[], nn.Module], example: Any, blocks: list[str], stages: list[str], last: str
) -> None:
    seen = observed(make(), example)
    found = places(seen)
    assert found.blocks == tuple(blocks)
    assert found.stages == tuple(stages)
    assert last_features(seen) == last


def test_no_stages_is_an_address_error_that_says_why() -> None:
    with pytest.raises(
        AddressError, match="there are no stages: the model repeats no layer and has no convolution"
    ):
        resolve("stages", "auto", observed(nn.Sequential(nn.Flatten(), nn.Softmax(1)), (1, 2, 4)))
    with pytest.raises(
        AddressError, match="there are no stages: the model is one layer; its output is '@out'"
    ):
        resolve("stages", "auto", observed(nn.Linear(8, 3), (1, 8)))


def test_a_wrapped_network_has_the_same_structure_under_the_wrappers_name() -> None:
    seen = observed(Chain(backbone=resnet10(), head=nn.Linear(4, 2)), SMALL_IMAGE)
    assert places(seen).stages == ("backbone.layer1", "backbone.layer2", "backbone.layer3")
    assert last_features(seen) == "head@in"


def test_places_tell_leaves_idle_layers_and_aliases() -> None:
    model = mlp()
    model.tied, model.aux = model[0], nn.Linear(1, 1)  # type: ignore[assignment]
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))  # type: ignore[method-assign]
    found = places(observed(model, (1, 8)))
    assert found.paths == found.leaves == ("0", "1", "2", "3", "4")
    assert (found.idle, dict(found.aliases)) == (("aux",), {"tied": "0"})
    assert found.types["0"] == ("Linear",)


def test_places_of_a_large_network_are_quick() -> None:
    paths = [f"blocks.{i}{inside}" for i in range(1000) for inside in (".fc.0", ".fc", "")]
    layers = {
        p: Layer(p, (), ("Block",) if p[-1].isdigit() else ("Inner",), p.endswith("0"), False, 1)
        for p in paths
    }
    layers |= {p: Layer(p, (), ("ModuleList",), False, True, 1) for p in ("", "blocks")}
    item = (Item(None, (2, 4), "float32", 0, "BC"),)
    calls = tuple(Call(p, 0, i, i, item, item, 0, 0, 0, 0) for i, p in enumerate([*paths, ""]))
    seen = Observation(layers=layers, calls=calls, separator=".", prefix_tokens=0)
    started = time.perf_counter()
    assert len(places(seen).blocks) == 1000
    assert time.perf_counter() - started < 1, "a tap asks several times"
