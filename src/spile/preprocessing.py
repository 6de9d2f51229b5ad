"""What a model wants done to its raw inputs. Pure specifications: `spile.data` applies them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """Image to model input: resize, centre-crop, then ``(pixel * scale - mean) / std`` per channel.

    `resize` is in pixels: an integer scales the shorter side to it and keeps the aspect;
    ``(height, width)`` scales both; ``None`` keeps the size. `crop` is the ``(height, width)`` of the centre
    crop (zero-padded where the image is smaller), ``None`` for no crop. Resizing and cropping happen on uint8
    pixels with Pillow, which is what timm, torchvision and Hugging Face do to PIL images.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: Literal[1, 3] = 3
    channel_order: Literal["RGB", "BGR"] = "RGB"
    """The order in which the model takes the channels of colour images; `mean` and `std` are in it too."""
    crop_rounding: Literal["even", "down"] = "even"
    """Where an odd margin is cut: half to even (timm, torchvision), or down (Hugging Face)."""

    def at(self, size: int) -> ImagePreprocessing:
        """The same for square inputs of `size` pixels: the shorter side is scaled to it, nothing is lost."""
        return replace(self, resize=size, crop=(size, size))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict that `from_json` reads back."""
        return {"kind": "image", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class TextPreprocessing:
    """Text to token ids with the tokenizer found at `tokenizer` (a Hugging Face name or a local directory).

    A batch is padded to its longest text and truncated to `max_length` tokens.
    """

    tokenizer: str
    max_length: int = 256

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict that `from_json` reads back."""
        return {"kind": "text", **asdict(self)}


Preprocessing = ImagePreprocessing | TextPreprocessing


def from_json(spec: dict[str, Any] | None) -> Preprocessing | None:
    """Read back what `to_json` wrote; ``None`` stays ``None`` (inputs are taken as ready)."""
    if spec is None:
        return None
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != "kind"
    }
    return TextPreprocessing(**fields) if spec["kind"] == "text" else ImagePreprocessing(**fields)
