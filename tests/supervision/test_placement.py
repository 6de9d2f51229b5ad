"""Where heads go by themselves, on observations of real architectures without their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torchvision
from torch import nn

from spile.errors import SupervisionError
from spile.observation import Observation
from spile.supervision.operations import Features
from spile.supervision.placement import automatic, final_features
from spile.torch.observing import observe

SHAPE = (1, 3, 64, 64)


def shares(observation: Observation, chosen: list[str]) -> list[float]:
    return [observation.by_path[path][-1].macs / observation.root.macs for path in chosen]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torchvision.models.resnet18(), ["layer1", "layer2", "layer3"]),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), None),
        (lambda: timm.create_model("convnext_atto"), None),
        (lambda: timm.create_model("mobilenetv3_small_050"), None),
    ],
    ids=["resnet18", "vit", "convnext", "mobilenetv3"],
)
def test_two_or_three_places_in_the_middle_and_never_the_last_block(
    make: Callable[[], nn.Module], expected: list[str] | None
) -> None:
    observation = observe(make().eval(), SHAPE)
    chosen = automatic(observation)
    assert expected is None or chosen == expected
    assert 2 <= len(chosen) <= 3
    found = shares(observation, chosen)
    assert found == sorted(found)
    assert all(0.1 < share < 0.95 for share in found)
    assert any(abs(share - 0.6) < 0.2 for share in found)


def test_a_network_without_blocks_says_how_to_name_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(SupervisionError, match=r"Name layers, taps=\['\.\.\.'\]; spile\.layers"):
        automatic(observe(model, SHAPE))


def test_what_a_network_ends_with_is_not_the_pooled_map() -> None:
    assert final_features(observe(torchvision.models.resnet18(), SHAPE)) == Features(
        kind="map", channels=512, size=(2, 2)
    )
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert final_features(observe(plain, SHAPE)) == Features(kind="map", channels=4, size=(31, 31))
    vectors = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    assert final_features(observe(vectors, (1, 6))) == Features(kind="vector", channels=2)
    tokens = final_features(observe(timm.create_model("vit_tiny_patch16_224", img_size=64), SHAPE))
    assert tokens == Features(kind="tokens", channels=192, size=(17,), prefix_tokens=1)
