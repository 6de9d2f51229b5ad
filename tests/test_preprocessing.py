"""Preprocessing specs survive JSON and say no more than was asked."""

from __future__ import annotations

import dataclasses
import json

import pytest

from spile.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing, from_json

SPECS = [
    ImagePreprocessing(),
    ImagePreprocessing(resize=256, crop=(224, 224), interpolation="bicubic", crop_rounding="down"),
    ImagePreprocessing(scale=1.0, mean=(104.0, 117.0, 124.0), std=(1.0,) * 3, channel_order="BGR"),
    ImagePreprocessing(resize=(96, 64), crop=None, scale=1.0, mean=(0.5,), std=(0.25,), channels=1),
    TextPreprocessing(tokenizer="bert-base-uncased", max_length=64),
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_specs_survive_json_unchanged_and_hashable(spec: Preprocessing) -> None:
    again = from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)


def test_no_preprocessing_stays_none() -> None:
    assert from_json(None) is None


def test_another_size_keeps_everything_else_and_loses_no_border() -> None:
    asked = ImagePreprocessing(resize=256, crop=(224, 224), interpolation="bicubic", mean=(0.5, 0.5, 0.5))
    smaller = asked.at(64)
    assert (smaller.resize, smaller.crop) == (64, (64, 64))
    assert dataclasses.replace(smaller, resize=256, crop=(224, 224)) == asked


def test_specs_take_keywords_only_and_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        ImagePreprocessing(224)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        ImagePreprocessing().resize = 1  # type: ignore[misc]
