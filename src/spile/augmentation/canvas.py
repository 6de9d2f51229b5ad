"""What an augmenter asks of a framework: the few things that are done to pixels. Implemented by
``spile.<framework>.augmentation``.

Images are a batch in the framework's own type and order of axes; masks are NumPy arrays (height, width) with
1 where a picture changes. All choices are made before, in NumPy, so both frameworks make the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from spile.augmentation.boxes import Box
from spile.errors import AugmentationError

Array = npt.NDArray[Any]


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
