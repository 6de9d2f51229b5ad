"""`feed`: labelled images, cropped and augmented batch by batch, as the framework's own kind of loader.

Batch k of an epoch is a function of (seed, epoch, k) alone: whichever worker or process makes it, in whatever
order, after whatever was interrupted, it is the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spile.augmentation.augmenter import Augmenter
from spile.augmentation.cropping import Crop
from spile.augmentation.geometry import Frame
from spile.augmentation.randomness import Draw
from spile.augmentation.settings import Augmented
from spile.backend import backend_named
from spile.banking import MapBank, whole_frame
from spile.data import BadSample, Source, Stream, open_source
from spile.errors import AugmentationError, DataError
from spile.preprocessing import ImagePreprocessing

Array = npt.NDArray[Any]


def feed(
    augmenter: Augmenter,
    data: Any,
    *,
    batch_size: int = 32,
    crop: Crop | None = None,
    shuffle: bool = True,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
    origins: bool = False,
) -> Any:
    """A ``DataLoader`` (PyTorch) or a ``keras.utils.PyDataset`` of augmented (images, labels).

    Images are uint8, labels class numbers or, after a mix, (n, classes) weights. ``set_epoch`` it before each
    epoch of a PyTorch loop; Keras' `fit` does that by itself.

    Args:
        augmenter: what `spile.augment` made.
        data: labelled images: a folder, a manifest, arrays, a demo set.
        batch_size: samples a batch; the last one may be smaller.
        crop: random crops and flips; by default the whole image as the guide takes it.
        shuffle: a new order every epoch.
        workers: processes (PyTorch) or threads (Keras) that make batches; the batches do not depend on it.
        rank: of this process; it gets every so-and-so-many'th batch. All ranks get equally many: where the
            batches do not share out evenly, the last ones get the first of the epoch once more.
        ranks: how many processes there are.
        origins: batches of PyTorch are (images, labels, `Origins`), as a `Keeper` needs them.

    Raises `DataError`, `AugmentationError`.
    """
    made = Feed(augmenter, data, batch_size=batch_size, crop=crop, shuffle=shuffle, rank=rank, ranks=ranks)
    if origins and augmenter.canvas.framework != "torch":
        raise AugmentationError(
            "origins=True is for PyTorch; for `fit`: callbacks=[spile.keras.keeping.KeepMaps(bank, batches)]"
        )
    made.origins = origins
    return backend_named(augmenter.canvas.framework).feed(made, workers)


class Origins:
    """Where the images of a batch come from."""

    __slots__ = ("frames", "ids")  # no tuple or dataclass: Lightning rebuilds those when it moves a batch

    def __init__(self, ids: list[str], frames: list[Frame | None]) -> None:
        self.ids = ids
        self.frames = frames
        """How each was cut out of its source; ``None`` for one that no longer shows its sample as it lies."""


class Feed:
    """Batches by number and epoch."""

    origins = False
    """Whether a loader also tells where images come from."""

    def __init__(
        self,
        augmenter: Augmenter,
        data: Any,
        *,
        batch_size: int,
        crop: Crop | None = None,
        shuffle: bool = True,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        source = open_source(data)
        if isinstance(source, Stream) or source.kind != "image":
            raise DataError(f"{source.name} holds no images that can be read one by one")
        if batch_size < 1 or not 0 <= rank < ranks:
            raise AugmentationError(
                f"batch_size={batch_size}, rank={rank}, ranks={ranks}: write a batch size of 1 or more, and "
                "a rank from 0 to below the number of ranks"
            )
        self.source: Source = source
        self.augmenter = augmenter
        self.crop = crop
        self.shuffle = shuffle
        self.batch_size = batch_size
        self._rank, self._ranks = rank, ranks
        labels = [record.label for record in source.records]
        if any(label is None for label in labels):
            raise DataError(f"{source.name}: a sample has no label, and a feed is for training")
        self.classes = tuple(sorted(set(labels), key=lambda one: (isinstance(one, str), one)))
        numbers = {label: number for number, label in enumerate(self.classes)}
        self._codes = np.array([numbers[label] for label in labels], np.int64)
        if augmenter.classes is None:
            augmenter.classes = len(self.classes)

    def __len__(self) -> int:
        """Batches an epoch, for this rank as for any other."""
        return -(-self._total // self._ranks)

    @property
    def _total(self) -> int:
        return -(-len(self._codes) // self.batch_size)

    def batch(self, number: int, epoch: int) -> Augmented:
        """Batch `number` of this rank."""
        return self.traced(number, epoch)[0]

    def traced(self, number: int, epoch: int) -> tuple[Augmented, Origins]:
        """The same, and where its images come from."""
        draw = Draw(self.augmenter.seed, epoch)
        place = (number * self._ranks + self._rank) % self._total * self.batch_size
        rows = self._order(draw)[place : place + self.batch_size]
        ids = [self.source.records[int(row)].id for row in rows]
        read = [self._picture(int(row), one, draw) for row, one in zip(rows, ids, strict=True)]
        canvas = self.augmenter.canvas
        images = canvas.from_pixels(np.stack([pixels for pixels, _ in read]))
        cuts = [frame for _, frame in read]
        frames = cuts if isinstance(self.augmenter.source, MapBank) else None
        labels = canvas.beside(self._codes[rows], images)
        found, in_place = self.augmenter.traced(images, labels, ids=ids, epoch=epoch, frames=frames)
        kept = [frame if whole else None for frame, whole in zip(cuts, in_place, strict=True)]
        return found, Origins(ids, kept)

    def _order(self, draw: Draw) -> Array:
        rows = np.arange(len(self._codes))
        return draw.generator("", "order").permutation(rows) if self.shuffle else rows

    def _picture(self, row: int, one: str, draw: Draw) -> tuple[Array, Frame]:
        """uint8 (height, width, channels), and how it was cut."""
        try:
            image = self.source.read(row)
        except BadSample as bad:
            raise DataError(f"{self.source.name}: {one!r} cannot be trained on: {bad}") from bad
        size = image.shape[0], image.shape[1]
        if self.crop is not None:
            frame = self.crop.frame(size, draw, one)
        else:
            wanted = getattr(self.augmenter.source, "preprocessing", None)
            frame = whole_frame(size, wanted) if isinstance(wanted, ImagePreprocessing) else Frame.whole(size)
        return cut(image, frame), frame


def cut(image: Array, frame: Frame) -> Array:
    """The picture that a frame cuts out of uint8 pixels (height, width, channels), by Pillow."""
    from PIL import Image

    box = frame.left, frame.top, frame.left + frame.width, frame.top + frame.height
    picture = Image.fromarray(np.squeeze(image))
    inside = box[0] >= 0 and box[1] >= 0 and box[2] <= picture.width and box[3] <= picture.height
    if not inside:
        left, top, right, bottom = (round(edge) for edge in box)
        picture = picture.crop((left, top, right, bottom))
        box = 0, 0, picture.width, picture.height
    made = picture.resize((frame.size[1], frame.size[0]), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if frame.flipped else made)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
