"""Every layer of many architectures at once: bit-equal to the cloning reference, and none missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers as hf
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from spile.torch.taps import Tap

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

QUICK = ("torchvision:resnet18", "timm:vit_tiny_patch16_224", "hf:albert", "hf:gpt2")

TORCHVISION = {
    "alexnet": 64,
    "vgg11_bn": 32,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "squeezenet1_1": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mnasnet0_5": 32,
    "shufflenet_v2_x0_5": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "regnet_y_400mf": 32,
    "regnet_x_400mf": 32,
    "convnext_tiny": 32,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vit_b_16": 224,
    "maxvit_t": 224,
}
SEGMENTATION = {"fcn_resnet50": 32, "deeplabv3_mobilenet_v3_large": 32, "lraspp_mobilenet_v3_large": 32}

TIMM: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnet26d": {},
    "resnetv2_50x1_bit": {},
    "seresnet18": {"name": "legacy_seresnet18"},
    "ecaresnet26t": {},
    "botnet26t_256": {"size": 256},
    "halonet26t": {"size": 256},
    "efficientnet_lite0": {},
    "tf_efficientnetv2_b0": {},
    "mixnet_s": {},
    "ghostnet_100": {},
    "mobilenetv4_conv_small": {},
    "mobileone_s0": {},
    "repvgg_a0": {},
    "fastvit_t8": {"size": 64},
    "dla34": {},
    "hrnet_w18_small": {},
    "res2net50_14w_8s": {},
    "cspresnet50": {},
    "nfnet_f0": {"name": "dm_nfnet_f0", "size": 64},
    "xception41": {"size": 64},
    "inception_resnet_v2": {"size": 96},
    "pit_ti_224": {"size": 224},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 3},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 3},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 3},
    "cait_xxs24_224": {"img_size": 32, "depth": 3},
    "xcit_nano_12_p16_224": {"size": 32},
    "crossvit_tiny_240": {"size": 240},
    "levit_128s": {"size": 224},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "window_size": 7, "depths": (1, 1, 2, 1)},
    "swinv2_cr_tiny_ns_224": {"img_size": 64, "depths": (1, 1, 2, 1)},
    "twins_svt_small": {"size": 64},
    "pvt_v2_b0": {"size": 32},
    "mvitv2_tiny": {"size": 224},
    "maxvit_rmlp_pico_rw_256": {"size": 256},
    "coatnet_pico_rw_224": {"size": 224},
    "convnext_atto": {"size": 32},
    "convnextv2_atto": {"size": 32},
    "edgenext_xx_small": {"size": 64},
    "mobilevit_xxs": {"size": 64},
    "poolformer_s12": {"size": 32},
    "mixer_s32_224": {"size": 224},
    "gmlp_ti16_224": {"size": 224},
    "resmlp_12_224": {"size": 224},
    "sequencer2d_s": {"size": 224},
    "focalnet_tiny_srf": {"size": 64},
    "davit_tiny": {"size": 64},
    "efficientformer_l1": {"size": 224},
    "visformer_tiny": {"size": 224},
    "hiera_tiny_224": {"size": 224},
    "rdnet_tiny": {"size": 32},
    "inception_next_atto": {"size": 32},
    "tiny_vit_5m_224": {"size": 224},
    "repvit_m0_9": {"size": 32},
    "starnet_s1": {"size": 32},
}

TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
DECODER = {**TEXT, "num_key_value_heads": 1, "max_position_embeddings": 32}
IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
PYRAMID = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 2, 1]}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

Make = Callable[[], nn.Module]
HUGGING_FACE: dict[str, tuple[Make, str]] = {
    "bert": (lambda: hf.BertModel(hf.BertConfig(**TEXT)), "text"),
    "bert_classifier": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)), "text"),
    "roberta": (lambda: hf.RobertaModel(hf.RobertaConfig(**TEXT)), "text"),
    "distilbert": (
        lambda: hf.DistilBertModel(hf.DistilBertConfig(vocab_size=64, dim=16, hidden_dim=32, n_heads=2)),
        "text",
    ),
    "albert": (lambda: hf.AlbertModel(hf.AlbertConfig(**TEXT, embedding_size=8)), "text"),
    "electra": (lambda: hf.ElectraModel(hf.ElectraConfig(**TEXT, embedding_size=8)), "text"),
    "deberta_v2": (
        lambda: hf.DebertaV2Model(
            hf.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"])
        ),
        "text",
    ),
    "mpnet": (lambda: hf.MPNetModel(hf.MPNetConfig(**TEXT)), "text"),
    "modernbert": (lambda: hf.ModernBertModel(hf.ModernBertConfig(**{**TEXT, **SPECIAL})), "text"),
    "t5_encoder": (
        lambda: hf.T5EncoderModel(hf.T5Config(**T5)),
        "text",
    ),
    "t5": (
        lambda: hf.T5Model(hf.T5Config(**T5)),
        "text to text",
    ),
    "gpt2": (lambda: hf.GPT2Model(hf.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)), "text"),
    "llama": (lambda: hf.LlamaModel(hf.LlamaConfig(**DECODER)), "text"),
    "mistral": (lambda: hf.MistralModel(hf.MistralConfig(**DECODER, head_dim=8)), "text"),
    "qwen2": (lambda: hf.Qwen2Model(hf.Qwen2Config(**DECODER)), "text"),
    "mixtral": (lambda: hf.MixtralModel(hf.MixtralConfig(**DECODER, num_local_experts=2)), "text"),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**IMAGE, patch_size=8)), "image"),
    "deit": (lambda: hf.DeiTModel(hf.DeiTConfig(**IMAGE, patch_size=8)), "image"),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**IMAGE, patch_size=8)), "image"),
    "swin": (
        lambda: hf.SwinModel(hf.SwinConfig(**SWIN)),
        "image",
    ),
    "convnext": (lambda: hf.ConvNextModel(hf.ConvNextConfig(**PYRAMID)), "image"),
    "resnet": (lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8, **PYRAMID)), "image"),
    "segformer": (
        lambda: hf.SegformerModel(
            hf.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1, 2, 2, 2])
        ),
        "image",
    ),
    "clip_vision": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**IMAGE, patch_size=8)), "image"),
    "whisper_encoder": (
        lambda: hf.WhisperModel(
            hf.WhisperConfig(
                vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
                max_source_positions=16, decoder_start_token_id=1, **SPECIAL,
            )
        ).encoder,
        "sound",
    ),
    "wav2vec2": (
        lambda: hf.Wav2Vec2Model(
            hf.Wav2Vec2Config(**TEXT, conv_dim=(8, 8), conv_stride=(4, 4), conv_kernel=(8, 4),
                              num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
        ),
        "waveform",
    ),
}  # fmt: skip


def _names() -> Iterator[Any]:
    for prefix, known in (
        ("torchvision", TORCHVISION), ("segmentation", SEGMENTATION), ("timm", TIMM), ("hf", HUGGING_FACE)
    ):  # fmt: skip
        for name in known:
            text = f"{prefix}:{name}"
            yield pytest.param(text, marks=() if text in QUICK else pytest.mark.zoo)


def make(text: str) -> tuple[nn.Module, Any]:
    """A model with random weights, and one batch of two samples."""
    torch.manual_seed(0)
    prefix, _, name = text.partition(":")
    if prefix == "torchvision":
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return getattr(torchvision.models, name)(weights=None, **options), picture(TORCHVISION[name])
    if prefix == "segmentation":
        model = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None)
        return model, picture(SEGMENTATION[name])
    if prefix == "timm":
        options = dict(TIMM[name])
        size = options.pop("size", options.get("img_size", 32))
        return timm.create_model(options.pop("name", name), **options), picture(size)
    build, kind = HUGGING_FACE[name]
    ids = torch.randint(3, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return build(), {
        "text": {"input_ids": ids, "attention_mask": mask},
        "text to text": {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4]},
        "image": {"pixel_values": picture(32)},
        "sound": {"input_features": torch.randn(2, 8, 32)},
        "waveform": {"input_values": torch.randn(2, 400)},
    }[kind]


def picture(size: int) -> Tensor:
    return torch.randn(2, 3, size, size)


def tensors_in(value: Any) -> int:
    if isinstance(value, Tensor):
        return 1
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return sum(tensors_in(v) for v in value.values())
    return sum(tensors_in(v) for v in value) if isinstance(value, (tuple, list)) else 0


def count_of_outputs(model: nn.Module, batch: Any) -> int:
    """How many tensors come out of all layers but the model itself, by PyTorch's global hook."""
    seen: list[int] = []
    inside = set(model.modules()) - {model}
    handle = register_module_forward_hook(
        lambda m, a, out: seen.append(tensors_in(out) if m in inside else 0)
    )
    try:
        with torch.no_grad():
            model(**batch) if isinstance(batch, dict) else model(batch)
    finally:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize("name", list(_names()))
def test_every_layer_at_once(name: str) -> None:
    model, batch = make(name)
    model.eval()
    tap = Tap(model, "all", pool=None, example=batch)
    with torch.no_grad():
        found = tap.verify(batch)
    assert found.largest_difference == 0
    assert found.points == len(tap.points) == count_of_outputs(model, batch)
    assert tap.left_out == ()
    assert tap._may_stop, "only models whose control flow depends on values are run to the end"
