"""Images of every sort to RGB pixels, and RGB pixels to the size a model wants."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from spile.data.source import BadSample
from spile.preprocessing import ImagePreprocessing

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused: the size above which Pillow itself suspects a decompression bomb."""

SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm"),
        *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    }
)
"""File name endings that are taken for images, in lower case."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    image: str | Path | bytes | Image.Image | NDArray[Any], *, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Decode one image, the way a person sees it, to RGB uint8 of shape (height, width, 3).

    `image` is a path, the bytes of a file, a Pillow image, or uint8 pixels (height, width[, 1, 3 or 4]). EXIF
    rotation is applied; the first frame of an animation is taken; transparency is laid on white; CMYK,
    palettes and greyscale become RGB; 16-bit greyscale is scaled from 0..65535 to 0..255.

    Raises `BadSample` where there is nothing to decode, the file is broken or truncated, it has more than
    `max_pixels` pixels (Pillow's own limit, twice `PIL.Image.MAX_IMAGE_PIXELS`, holds too), or its numbers
    have no fixed range.
    """
    _mute_pillow()
    try:
        if isinstance(image, np.ndarray):
            return _from_array(image)
        if isinstance(image, Image.Image):
            return _decode(image, max_pixels)
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return _decode(opened, max_pixels)
    except BadSample:
        raise
    except Exception as error:  # whatever a decoder stumbles over is a verdict on this one image
        raise BadSample(_reason(error, image)) from error


def apply(image: Pixels, preprocessing: ImagePreprocessing) -> Pixels:
    """Resize and centre-crop uint8 pixels (h, w, 3) with Pillow; returns uint8 (height, width, channels).

    Equal bit for bit to torchvision's ``Resize`` and ``CenterCrop`` on Pillow images. Scaling, mean and
    standard deviation are left to the model's side. Raises `BadSample` where resizing would make a giant of a
    thin strip.
    """
    picture = Image.fromarray(image)
    if preprocessing.channels == 1:
        picture = picture.convert("L")
    if preprocessing.resize is not None:
        size = _resized(picture.size, preprocessing.resize)
        if size[0] * size[1] > MAX_PIXELS:
            raise BadSample(
                f"aspect too extreme: {picture.width}x{picture.height} resized is {size[0]}x{size[1]}"
            )
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    if preprocessing.crop is not None:
        picture = picture.crop(_centre_box(picture.size, preprocessing.crop, preprocessing.crop_rounding))
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def kept_part(
    size: tuple[int, int], preprocessing: ImagePreprocessing
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """What `apply` keeps of an image of `size` (height, width).

    The part (top, left, height, width) in pixels of the image, beyond it where it is padded; and the height
    and width of the result.
    """
    width, height = wide, high = size[1], size[0]
    if preprocessing.resize is not None:
        wide, high = _resized((width, height), preprocessing.resize)
    if preprocessing.crop is None:
        return (0, 0, height, width), (high, wide)
    left, top, right, bottom = _centre_box((wide, high), preprocessing.crop, preprocessing.crop_rounding)
    down, across = height / high, width / wide
    return (top * down, left * across, (bottom - top) * down, (right - left) * across), preprocessing.crop


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """The (width, height) after resizing; an integer is the shorter side, the longer one is rounded down."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _centre_box(size: tuple[int, int], crop: tuple[int, int], rounding: str) -> tuple[int, int, int, int]:
    """The (left, top, right, bottom) of a centre crop; outside the image, Pillow fills with zeros."""
    left, top = (_offset(have, want, rounding) for have, want in zip(size, reversed(crop), strict=True))
    return left, top, left + crop[1], top + crop[0]


def _offset(have: int, want: int, rounding: str) -> int:
    if have < want:
        return -((want - have) // 2)
    return round((have - want) / 2) if rounding == "even" else (have - want) // 2


def _decode(image: Image.Image, max_pixels: int) -> Pixels:
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample(f"too large: {width}x{height} is more than {max_pixels} pixels")
    if width * height == 0:
        raise BadSample(f"no pixels: {width}x{height}")
    image.load()
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a corrupt EXIF block says nothing about the pixels
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode == "F":
        raise BadSample("floating-point pixels have no fixed range; convert the image to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_to_rgb(_from_16_bits(np.asarray(image)))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, seen)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_16_bits(grey: NDArray[Any]) -> Pixels:
    if grey.min() < 0 or grey.max() > 65535:
        raise BadSample(f"greyscale values {grey.min()}..{grey.max()} are outside 0..65535")
    return ((grey.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _from_array(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.size == 0:
        raise BadSample(f"expected uint8 pixels, got {pixels.dtype} of shape {pixels.shape}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2:
        return _grey_to_rgb(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _to_rgb(Image.fromarray(pixels))
    raise BadSample(f"expected (height, width[, 1, 3 or 4]) pixels, got shape {pixels.shape}")


def _grey_to_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _reason(error: Exception, image: Any) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, UnidentifiedImageError):
        size = len(image) if isinstance(image, bytes) else Path(image).stat().st_size
        return "not an image that Pillow can read" if size else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"broken image: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _mute_pillow() -> None:
    # Pillow warns about odd but readable files. Decoding runs in threads, where `warnings.catch_warnings`
    # would race with the caller's own, so the filter stays; it covers only what Pillow's own modules say.
    if not any(_is_ours(entry) for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW)


_PILLOW = r"PIL\."


def _is_ours(entry: tuple[Any, ...]) -> bool:
    return entry[0] == "ignore" and getattr(entry[3], "pattern", None) == _PILLOW
