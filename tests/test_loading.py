"""What all ways of loading a model share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spile.errors import MissingDependency, ModelError
from spile.loading import Built, Options, did_you_mean, first_line, library, resized
from spile.preprocessing import ImagePreprocessing, TextPreprocessing


def test_resized() -> None:
    spec = ImagePreprocessing(resize=256, crop=(224, 224))
    assert resized(spec, Options(), "net") == spec
    assert resized(spec, Options(input_size=64), "net") == spec.at(64)
    assert resized(None, Options(), "net") is None
    for other in (None, TextPreprocessing(tokenizer="t")):
        with pytest.raises(
            ModelError, match="net has no image preprocessing, so input_size=64 has no meaning"
        ):
            resized(other, Options(input_size=64), "net")


def test_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library("json", extra="e", purpose="p") is sys.modules["json"]
    with pytest.raises(
        MissingDependency, match=r"p needs the package 'no_such'. Type: pip install 'spile\[e\]'"
    ):
        library("no_such", extra="e", purpose="p")
    (tmp_path / "half_there.py").write_text("import no_such\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such") as caught:
        library("half_there", extra="e", purpose="p")
    assert not isinstance(caught.value, MissingDependency)


def test_wording() -> None:
    assert did_you_mean("x:", "resnet5", ["resnet50", "vgg"]) == "Nearest: x:resnet50"
    assert did_you_mean("x:", "resnet5", []) == "There are none"
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_what_is_built_takes_channels_first_unless_told() -> None:
    assert not Built(model=None).channels_last
