"""Backbones of keras-hub, from presets in local folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from spile.errors import MissingDependency, ModelError
from spile.models import example_for, load_model
from spile.preprocessing import ImagePreprocessing, TextPreprocessing

keras_hub = pytest.importorskip("keras_hub")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "a"]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    ).save_to_preset(str(folder))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    keras_hub.models.BertBackbone(
        vocabulary_size=len(WORDS),
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=64,
    ).save_to_preset(str(folder))
    return folder


def add_converter(folder: Path, **options: Any) -> None:
    keras_hub.layers.ResNetImageConverter(**options).save_to_preset(str(folder))


def add_tokenizer(folder: Path) -> None:
    keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary=WORDS), sequence_length=64
    ).save_to_preset(str(folder))


def same_weights(one: keras.Model, other: keras.Model) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_an_image_backbone(resnet: Path) -> None:
    add_converter(
        resnet,
        image_size=(48, 48),
        scale=[1 / 255 / 0.229, 1 / 255 / 0.224, 1 / 255 / 0.225],
        offset=[-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
    )
    loaded = load_model(f"keras_hub:{resnet}")
    assert same_weights(loaded.model, keras_hub.models.Backbone.from_preset(str(resnet)))
    assert loaded.preprocessing == ImagePreprocessing(resize=48, crop=(48, 48))
    assert (loaded.tokenize, loaded.channels_last, example_for(loaded)) == (None, True, (2, 48, 48, 3))
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3), dtype=np.uint8)
    theirs = keras_hub.layers.ImageConverter.from_preset(str(resnet))(image)
    ours = (image * loaded.preprocessing.scale - loaded.preprocessing.mean) / loaded.preprocessing.std
    np.testing.assert_allclose(ours, keras.ops.convert_to_numpy(theirs), atol=1e-5)
    sized = load_model(f"keras_hub:{resnet}", input_size=32)
    assert sized.model.input_shape == (None, 32, 32, 3)
    assert same_weights(sized.model, loaded.model)
    assert sized.preprocessing == ImagePreprocessing(resize=32, crop=(32, 32))


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (
            {"image_size": (48, 32), "crop_to_aspect_ratio": False, "interpolation": "bicubic"},
            ImagePreprocessing(
                resize=(48, 32),
                crop=(48, 32),
                interpolation="bicubic",
                scale=1.0,
                mean=(0.0,) * 3,
                std=(1.0,) * 3,
            ),
        ),
        (
            {"scale": 1 / 127.5, "offset": -1.0},
            ImagePreprocessing(scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3),
        ),
        ({"image_size": (48, 32)}, None),
        ({"image_size": (48, 48), "crop_to_aspect_ratio": False, "pad_to_aspect_ratio": True}, None),
        ({"image_size": (48, 48), "interpolation": "lanczos5"}, None),
    ],
    ids=["stretched", "no size", "cut to an oblong", "padded", "unknown interpolation"],
)
def test_what_image_converters_do(
    resnet: Path, options: dict[str, Any], spec: ImagePreprocessing | None
) -> None:
    add_converter(resnet, **options)
    assert load_model(f"keras_hub:{resnet}", pretrained=False).preprocessing == spec


def test_a_text_backbone_without_and_with_a_tokenizer(bert: Path) -> None:
    bare = load_model(f"keras_hub:{bert}")
    assert (bare.preprocessing, bare.tokenize) == (None, None)
    add_tokenizer(bert)
    loaded = load_model(f"keras_hub:{bert}")
    assert loaded.preprocessing == TextPreprocessing(tokenizer=f"keras_hub:{bert}", max_length=64)
    assert loaded.tokenize is not None
    tokens = loaded.tokenize(["the cat", "a mat sat on the cat"])
    assert set(tokens) == set(loaded.model.input)
    assert {(array.shape, array.dtype.name) for array in tokens.values()} == {((2, 16), "int32")}
    assert tokens["token_ids"][0].tolist() == [2, 5, 6, 3] + [0] * 12
    assert tokens["padding_mask"].sum(1).tolist() == [4, 8]
    assert loaded.tokenize(["cat " * 20])["token_ids"].shape == (1, 32)
    assert loaded.tokenize(["cat " * 99])["token_ids"].shape == (1, 64)
    hidden = loaded.model(tokens)["sequence_output"]
    assert tuple(hidden.shape) == (2, 16, 8)
    with pytest.raises(ModelError, match="has no image preprocessing"):
        load_model(f"keras_hub:{bert}", input_size=32)


def test_a_language_model_is_read_up_to_the_last_word(tmp_path: Path) -> None:
    letters = {letter: number for number, letter in enumerate(["<|endoftext|>", *"abcdefgh", "ab"])}
    keras_hub.models.GPT2Backbone(
        vocabulary_size=len(letters),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=32,
    ).save_to_preset(str(tmp_path))
    keras_hub.models.GPT2CausalLMPreprocessor(
        keras_hub.models.GPT2Tokenizer(vocabulary=letters, merges=["a b"]), sequence_length=32
    ).save_to_preset(str(tmp_path))
    loaded = load_model(f"keras_hub:{tmp_path}")
    assert loaded.tokenize is not None
    tokens = loaded.tokenize(["abc", "abcdefgh"])
    assert set(tokens) == {"token_ids", "padding_mask"}
    assert tokens["padding_mask"].sum(1).tolist() == [3, 8]  # a start token, and "ab" is one
    assert tokens["token_ids"].shape == (2, 16)


def test_weights(bert: Path, tmp_path: Path) -> None:
    own = load_model(f"keras_hub:{bert}").model
    random = load_model(f"keras_hub:{bert}", pretrained=False).model
    assert not same_weights(random, own)
    random.save_weights(tmp_path / "net.weights.h5")
    assert same_weights(load_model(f"keras_hub:{bert}", weights=tmp_path / "net.weights.h5").model, random)


def test_what_cannot_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"keras_hub:./absent: there is no such folder"):
        load_model("keras_hub:./absent")
    with pytest.raises(ModelError, match=r"keras_hub:no_such_preset cannot be built: Unknown preset"):
        load_model("keras_hub:no_such_preset")
    (tmp_path / "config.json").write_text(json.dumps({"class_name": "Nothing"}))
    with pytest.raises(ModelError, match="cannot be built"):
        load_model(f"keras_hub:{tmp_path}")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", refuse)
    with pytest.raises(
        ModelError, match=r"bert_tiny_en_uncased could not be fetched from www.kaggle.com: no net"
    ):
        load_model("keras_hub:bert_tiny_en_uncased")
    monkeypatch.setattr("spile.downloads.reachable", lambda url: False)
    with pytest.raises(ModelError, match=r"fetched from huggingface.co: no network .*type keras_hub:./bert"):
        load_model("keras_hub:hf://keras/bert")


def test_missing_keras_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(MissingDependency, match=r"needs the package 'keras_hub'.*spile\[keras-hub\]"):
        load_model("keras_hub:bert_tiny_en_uncased")
