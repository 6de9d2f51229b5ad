"""Models, image processors and tokenizers of Hugging Face Transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spile import downloads
from spile.errors import ModelError
from spile.loading import Built, Options, Tokenize, first_line, library
from spile.preprocessing import ImagePreprocessing, Interpolation, Preprocessing, TextPreprocessing
from spile.torch.weights import assign_weights, read_weights

_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In Pillow's numbering."""


def from_hub(name: str, options: Options) -> Built:
    """A model of the Hugging Face hub or of a local folder, in float32.

    Weights come from safetensors files only, and no code that a repository brings along is run.
    """
    transformers = library("transformers", extra="hf", purpose=f"loading hf:{name}")
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and name.startswith((".", "/", "~", "\\")):
        raise ModelError(f"hf:{name}: there is no such folder")
    source = str(folder.resolve()) if local else name
    access: AbstractContextManager[None] = nullcontext()
    if not local:
        access = downloads.hub(f"hf:{name}", advice=f"Copy its folder here and type hf:./{folder.name}")
    with access, _no_progress_bars(transformers):
        try:
            model = _hub_model(transformers, source, options)
            spec = _hub_preprocessing(transformers, source, model, options)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and not local:
                raise
            version = transformers.__version__
            raise ModelError(
                f"hf:{name} cannot be built by transformers {version}: {first_line(error)}"
            ) from error
        tokenize = tokenizer_of(transformers, spec) if isinstance(spec, TextPreprocessing) else None
    return Built(model=model.eval(), preprocessing=spec, tokenize=tokenize)


def _hub_model(transformers: Any, source: str, options: Options) -> nn.Module:
    safe = {"trust_remote_code": False}
    model: nn.Module
    if options.pretrained and options.weights is None:
        # Layers that the checkpoint lacks start at random, but the same each time, as fingerprints need.
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(0)
            model = transformers.AutoModel.from_pretrained(
                source, use_safetensors=True, dtype=torch.float32, **safe
            )
        finally:
            torch.set_rng_state(state)
        return model
    config = transformers.AutoConfig.from_pretrained(source, **safe)
    model = transformers.AutoModel.from_config(config, dtype=torch.float32, **safe)
    if options.weights is not None:
        assign_weights(model, read_weights(options.weights), origin=str(options.weights))
    return model


def _hub_preprocessing(
    transformers: Any, source: str, model: nn.Module, options: Options
) -> Preprocessing | None:
    """By what the model takes; ``None`` where the folder says nothing of it."""
    try:
        if model.main_input_name == "pixel_values":
            processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
            spec = _processor_preprocessing(processor)
            return spec.at(options.input_size) if options.input_size is not None else spec
        if model.main_input_name == "input_ids":
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
            longest = min(TextPreprocessing.max_length, tokenizer.model_max_length, positions)
            return TextPreprocessing(tokenizer=source, max_length=longest)
    except OSError:
        return None
    return None


def _processor_preprocessing(processor: Any) -> ImagePreprocessing:
    """What the processor's default backend does, resizing with Pillow as its ``backend="pil"`` does."""
    resize, crop = _processor_geometry(processor)
    normalises = processor.do_normalize
    return ImagePreprocessing(
        resize=resize,
        crop=crop,
        interpolation=_INTERPOLATIONS[processor.resample],
        scale=processor.rescale_factor if processor.do_rescale else 1.0,
        mean=tuple(processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalises else (1.0, 1.0, 1.0),
        crop_rounding="down",
    )


def _processor_geometry(processor: Any) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    size = dict(processor.size) if processor.do_resize else {}
    crop = (processor.crop_size["height"], processor.crop_size["width"]) if processor.do_center_crop else None
    edge = size.get("shortest_edge")
    if _is_standard(processor) and not processor.do_pad:
        if set(size) <= {"shortest_edge"}:
            return edge, crop
        if set(size) == {"height", "width"}:
            return (size["height"], size["width"]), crop
    elif type(processor).__name__.startswith("ConvNextImageProcessor") and crop is None and edge is not None:
        return (int(edge / processor.crop_pct), (edge, edge)) if edge < 384 else ((edge, edge), None)
    raise ModelError(
        f"{type(processor).__name__} (size {size}) prepares images in a way spile does not reproduce. "
        "Return the model and an ImagePreprocessing from a function: file.py:FACTORY"
    )


def _is_standard(processor: Any) -> bool:
    """Whether its steps are the ones that most processors share."""
    from transformers.image_processing_backends import PilBackend, TorchvisionBackend

    base = TorchvisionBackend if isinstance(processor, TorchvisionBackend) else PilBackend
    steps = ("_preprocess", "resize", "center_crop", "rescale", "normalize")
    return all(getattr(type(processor), step) is getattr(base, step) for step in steps)


def tokenizer_of(transformers: Any, spec: TextPreprocessing) -> Tokenize:
    """The function that tokenizes, pads and truncates as `spec` says."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec.tokenizer, trust_remote_code=False)
    if tokenizer.pad_token is None:  # masked out, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return partial(_tokens, tokenizer, spec.max_length)


def _tokens(tokenizer: Any, max_length: int | None, texts: list[str]) -> dict[str, Any]:
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="np"))


@contextmanager
def _no_progress_bars(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
