"""What an augmenter asks of a framework: the few things that are done to pixels. Implemented by
``spile.<framework>.augmentation``.

Images are a batch in the framework's own type and order of axes; masks are NumPy arrays (height, width) with
1 where a picture changes. All choices are made before, in NumPy, so both frameworks make the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt
from PIL import Image

from spile.augmentation.boxes import Box
from spile.errors import AugmentationError

Array = npt.NDArray[Any]

_PLACES = re.compile(r"(box|boxes|masks?|keypoints?|segmentations?)$", re.IGNORECASE)


class Operated(NamedTuple):
    """What an operation made of one sample."""

    image: Any
    masks: Any
    """(k, height, width), moved along with the pixels."""
    targets: Any
    moved: bool
    """Whether pixels changed places."""


class Canvas(Protocol):
    """Pixels of a batch in one framework."""

    framework: str

    def size(self, images: Any) -> tuple[int, int]:
        """Height and width of every image."""
        ...

    def count(self, images: Any) -> int:
        """How many."""
        ...

    def split(self, images: Any) -> list[Any]:
        """One image each."""
        ...

    def joined(self, images: Sequence[Any], like: Any) -> Any:
        """The batch again, of the type of `like`."""
        ...

    def opened(self, image: Any) -> tuple[Any, Callable[[Any], Any]]:
        """One image, perhaps of Pillow, as `split` gives them, and what makes it again what it was."""
        ...

    def has_places(self, target: Any, image: Any) -> bool:
        """Whether a target that is no dict is of places in the image, a mask say, and no label."""
        ...

    def shared_number(self) -> Any:
        """One whole number, 0, that worker processes of the framework's loader see change: ``number[0]``."""
        ...

    def steps(self, operation: Any) -> list[Any]:
        """The operations that a composed one consists of, so that each is taken for what it is."""
        ...

    def operate(self, operation: Any, image: Any, masks: Array, targets: Any, key: int) -> Operated:
        """One operation on one sample, its random numbers made of `key`.

        Raises `AugmentationError` for an operation of which it is not known whether it moves pixels.
        """
        ...

    def repainted(self, operation: Any, image: Any, key: int) -> Any:
        """One operation on the pixels of one image alone, whatever it does to them."""
        ...

    def blended(self, image: Any, other: Any, mask: Array) -> Any:
        """``image + (other - image) * mask``, of the image's type; exact where the mask is 0 or 1."""
        ...

    def filled(self, image: Any, fill: float | str) -> Any:
        """An image of one colour: ``"mean"`` of the image, or a number for all channels."""
        ...

    def cropped(self, image: Any, box: Box, size: tuple[int, int]) -> Any:
        """A box of an image, resized to `size`."""
        ...

    def cropped_targets(self, targets: Any, box: Box, size: tuple[int, int]) -> Any:
        """The targets of one sample after the same."""
        ...

    def placed_at(self, image: Any, patch: Any, box: Box) -> Any:
        """The image with a patch of the box's size in it."""
        ...

    def array(self, values: Any) -> Array:
        """Labels as a NumPy array on the host."""
        ...

    def beside(self, numbers: Array, images: Any) -> Any:
        """Numbers as a tensor where the images are."""
        ...

    def from_pixels(self, pixels: Array) -> Any:
        """Images of uint8 pixels (n, height, width, channels)."""
        ...

    def to_pixels(self, images: Any) -> Array:
        """The same back, of uint8 images."""
        ...

    def standard(self, strength: str) -> list[Any]:
        """Operations that move nothing: ``weak``, a little colour, or ``strong``, colour and blur."""
        ...

    def stacked(self, images: Sequence[Any]) -> Any:
        """A batch of single images."""
        ...


def not_images(who: str, takes: str, value: Any) -> AugmentationError:
    """For what is no batch of images."""
    shape = list(getattr(value, "shape", []))
    return AugmentationError(f"a {who} takes {takes}, not {type(value).__name__} {shape}")


def check_same_size(made: Any, image: Any) -> None:
    """Raise `AugmentationError` where an operation gave an image of another shape."""
    if tuple(made.shape) != tuple(image.shape):
        raise AugmentationError(
            f"an operation made {list(made.shape)} of an image of {list(image.shape)}: give operations that "
            "keep the size"
        )


def check_mode(image: Any) -> None:
    """Raise `AugmentationError` for a Pillow image whose numbers are not grey levels or colours alone."""
    if image.mode not in ("L", "RGB"):
        raise AugmentationError(
            f"an image of mode {image.mode!r}: pass one of mode 'L' or 'RGB', image.convert(\"RGB\")"
        )


def leaves(value: Any) -> Iterator[Any]:
    """What dicts, lists and tuples hold."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def is_picture(value: Any, size: tuple[int, int]) -> bool:
    """Whether a value is a Pillow image, or numbers for every pixel of an image of `size`."""
    shape = tuple(getattr(value, "shape", ()))
    return isinstance(value, Image.Image) or (len(shape) > 1 and size in (shape[-2:], shape[:2]))


def left_behind(targets: Any, size: tuple[int, int], moves: Callable[[Any], bool]) -> str | None:
    """The name of a target of places in an image of `size` that holds nothing that `moves` with it, or
    ``None``.

    Those are pictures, and what goes by the name of boxes, masks or keypoints, also in dicts and lists.
    """
    for name, value in targets.items() if isinstance(targets, Mapping) else (("", each) for each in targets):
        held = list(leaves(value))
        single = len(held) == 1 and held[0] is value
        if any(is_picture(each, size) and not moves(each) for each in held):
            return str(name)
        holds_numbers = len(getattr(value, "shape", ())) > 0 if single else bool(held)
        if _PLACES.search(str(name)) and holds_numbers and not any(map(moves, held)):
            return str(name)
        if not single and (inner := left_behind(value, size, moves)) is not None:
            return inner or str(name)
    return None
