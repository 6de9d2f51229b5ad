from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spile.errors import MissingDependency, ModelError
from spile.models import LoadedModel, ModelReference, example_for, load_model, parse
from spile.preprocessing import ImagePreprocessing


@pytest.mark.parametrize(
    ("text", "scheme", "name", "factory"),
    [
        ("timm:resnet50", "timm", "resnet50", None),
        ("timm:resnet50.a1_in1k", "timm", "resnet50.a1_in1k", None),
        ("torchvision:resnet18", "torchvision", "resnet18", None),
        ("hf:facebook/dinov2-small", "hf", "facebook/dinov2-small", None),
        ("hf:./local/dir", "hf", "./local/dir", None),
        (r"hf:C:\models\bert", "hf", r"C:\models\bert", None),
        ("demo:efficientnet_lite0", "demo", "efficientnet_lite0", None),
        ("file.py:make_model", "file", "file.py", "make_model"),
        ("a dir/with.dots/net.py:make", "file", "a dir/with.dots/net.py", "make"),
        (r"C:\models\net.py:make", "file", r"C:\models\net.py", "make"),
        ("runs/model.pt2", "pt2", "runs/model.pt2", None),
        (r"C:\runs\model.pt2", "pt2", r"C:\runs\model.pt2", None),
        ("keras:ResNet50", "keras", "ResNet50", None),
        ("runs/model.keras", "keras_file", "runs/model.keras", None),
        (r"C:\runs\model.h5", "keras_file", r"C:\runs\model.h5", None),
        ("model.hdf5", "keras_file", "model.hdf5", None),
        ("keras_hub:bert_tiny_en_uncased", "keras_hub", "bert_tiny_en_uncased", None),
        ("keras_hub:hf://keras/bert", "keras_hub", "hf://keras/bert", None),
        ("keras_hub:./local/dir", "keras_hub", "./local/dir", None),
        ("demo:efficientnet_lite0_keras", "demo", "efficientnet_lite0_keras", None),
    ],
)
def test_parse_and_str_are_inverse(text: str, scheme: str, name: str, factory: str | None) -> None:
    reference = parse(text)
    assert (reference.scheme, reference.name, reference.factory) == (scheme, name, factory)
    assert str(reference) == text


@given(st.text())
def test_parse_refuses_or_gives_the_text_back(text: str) -> None:
    try:
        reference = parse(text)
    except ModelError as error:
        assert repr(text) in str(error)
    else:
        assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("resnet50", "timm:NAME"),
        ("", "timm:NAME"),
        ("tim:resnet50", "timm:resnet50"),
        ("torchvison:resnet18", "torchvision:resnet18"),
        ("timm:", "names no model"),
        ("net.py", "net.py:FACTORY"),
        ("best.safetensors", "timm:NAME --weights best.safetensors"),
        (r"C:\models\best.pth", "--weights C:"),
        ("best.weights.h5", "keras:NAME --weights best.weights.h5"),
        ("kers_hub:bert", "keras_hub:bert"),
        ("keras:runs/model.h5", "Type: runs/model.h5"),
        ("keras:", "keras_hub:PRESET"),
    ],
)
def test_what_is_no_reference_is_told_what_to_type(text: str, advice: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse(text)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "reference", ["keras:ResNet50", "keras_hub:bert", "model.keras", "m.h5", "demo:efficientnet_lite0_keras"]
)
def test_missing_keras_is_named_with_its_extra(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(MissingDependency, match=r"needs the package 'keras'.*pip install 'spile\[keras\]'"):
        load_model(reference)


@pytest.mark.parametrize(("channels_last", "shape"), [(False, (2, 3, 8, 6)), (True, (2, 8, 6, 3))])
def test_the_example_has_the_layout_of_the_model(channels_last: bool, shape: tuple[int, ...]) -> None:
    loaded = LoadedModel(None, "", ImagePreprocessing(crop=(8, 6)), None, None, channels_last=channels_last)
    assert example_for(loaded) == shape
    assert example_for(replace(loaded, preprocessing=None)) is None


def test_the_folder_of_a_saved_model_is_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for text in ("run", "run/model", str(tmp_path / "run")):
        assert parse(text) == ModelReference(scheme="run", name=text)
        assert str(parse(text)) == text
        with pytest.raises(ModelError, match="has format None"):
            load_model(text)
    with pytest.raises(ModelError, match="folder of a run of spile train"):
        parse("walk")


def test_input_size_must_be_positive() -> None:
    with pytest.raises(ModelError, match="input_size is 0"):
        load_model(ModelReference(scheme="timm", name="resnet18"), input_size=0)


@pytest.mark.parametrize(("reference", "module"), [("timm:resnet18", "timm"), ("hf:./x", "transformers")])
def test_a_missing_library_is_named_with_its_extra(
    reference: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spile.torch.models  # noqa: F401 - loaded before the library is hidden

    monkeypatch.setitem(sys.modules, module, None)
    extra = {"timm": "timm", "transformers": "hf"}[module]
    with pytest.raises(MissingDependency, match=rf"{module}.*pip install 'spile\[{extra}\]'"):
        load_model(reference)


def test_missing_torch_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from spile.errors import MissingDependency\n"
        "from spile.models import load_model\n"
        "try: load_model('timm:resnet18')\n"
        "except MissingDependency as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loading timm:resnet18 needs the package 'torch'" in ran.stdout
    assert "spile[torch]" in ran.stdout


def test_importing_and_parsing_load_no_framework_and_leave_the_environment() -> None:
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "from spile.models import parse; parse('timm:resnet50')\n"
        "print(sorted({'torch', 'timm', 'torchvision', 'transformers', 'keras'} & set(sys.modules)))\n"
        "import spile.torch.models\n"
        "libraries = {'timm', 'torchvision', 'transformers'} & set(sys.modules)\n"
        "print(sorted(libraries), dict(os.environ) == before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split("\n")[:2] == ["[]", "[] True"]
