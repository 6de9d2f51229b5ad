"""The augmenter: a policy, where its maps come from, and random numbers. Pure but for the pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.augmentation.canvas import Canvas
from spile.augmentation.geometry import Frame
from spile.augmentation.labels import class_numbers, class_weights
from spile.augmentation.maps import Maps, Which, checked_which, chosen_maps
from spile.augmentation.mixes import Mix
from spile.augmentation.policies import Changed, Policy
from spile.augmentation.randomness import Draw
from spile.augmentation.samples import Sample
from spile.augmentation.settings import Augmented, BankLike, GuideLike
from spile.errors import AugmentationError

Array = npt.NDArray[Any]


class Augmenter:
    """Changes batches as a policy says, where a guide's or a bank's maps say; see `spile.augment`."""

    def __init__(
        self,
        policy: Policy,
        source: GuideLike | BankLike,
        canvas: Canvas,
        *,
        seed: int = 0,
        maps: str = "guided",
        classes: int | None = None,
    ) -> None:
        self.policy = policy
        self.source = source
        self.canvas = canvas
        self.seed = seed
        self.which: Which = checked_which(maps)
        self.classes = classes
        self._epoch = canvas.shared_number()

    @property
    def epoch(self) -> int:
        """From 0; `set_epoch` it before each, or pass it with every batch. Worker processes see it."""
        return int(self._epoch[0])

    @property
    def mixes(self) -> bool:
        """Whether labels become weights of all classes."""
        return isinstance(self.policy, Mix)

    def set_epoch(self, epoch: int) -> None:
        """From now on batches are of this epoch."""
        self._epoch[0] = epoch

    def collate(self, items: Sequence[Sequence[Any]]) -> tuple[Any, Any]:
        """Images and labels of samples (image, label, id[, frame]), for a ``DataLoader``."""
        images, labels, ids, *rest = zip(*items, strict=True)
        batch = self.canvas.stacked(images)
        numbers = self.canvas.beside(np.asarray(labels), batch)
        found = self(batch, numbers, ids=ids, frames=rest[0] if rest else None)
        return found.images, found.labels

    def transform(self, image: Any, target: Any = None, *, id: Any = None, frame: Frame | None = None) -> Any:
        """One sample, for a dataset: ``transform=augment.transform``, or ``transforms=`` with targets.

        Args:
            image: a PIL image, or one as a batch holds them; comes back as it was given.
            target: a dict of boxes, masks and keypoints, one of those alone, or a label, which stays as it
                is. With one the image and the target come back, else the image alone.
            id: what names the sample. A dataset does not say, so by default the pixels do: then equal images
                are changed alike within an epoch.
            frame: how the image was cut out of its source; needed with kept maps, and an id too.

        Raises `AugmentationError`, for a policy that mixes samples too.
        """
        if self.mixes:
            raise AugmentationError(
                f"{type(self.policy).__name__} takes another sample too: use collate, or spile.feed"
            )
        picture, back = self.canvas.opened(image)
        name = self.canvas.array(picture).tobytes() if id is None else str(id)
        alone = not isinstance(target, Mapping)
        moves = target is not None and (not alone or self.canvas.has_places(target, picture))
        found = self(
            self.canvas.stacked([picture]),
            ids=[hashlib.blake2b(name, digest_size=16).hexdigest() if isinstance(name, bytes) else name],
            targets=[{"": target} if alone else target] if moves else None,
            frames=None if frame is None else [frame],
        )
        changed = back(self.canvas.split(found.images)[0])
        if target is None:
            return changed
        if not moves:
            return changed, target
        return changed, found.targets[0][""] if alone else found.targets[0]

    def __call__(
        self,
        images: Any,
        labels: Any = None,
        *,
        ids: Sequence[Any],
        epoch: int | None = None,
        targets: Sequence[Any] | None = None,
        frames: Sequence[Frame] | None = None,
        maps: Maps | None = None,
    ) -> Augmented:
        """Augment one batch.

        Args:
            images: (n, channels, height, width) in PyTorch, (n, height, width, channels) in Keras; uint8, or
                floats as the guide was told.
            labels: (n,) or (n, 1) class numbers, or (n, classes) weights; a mix needs them.
            ids: (n,) what names each sample, the same in every epoch: all random numbers are made of it.
            epoch: from 0; by default that of `set_epoch`.
            targets: of each sample a dict of boxes, masks and keypoints that move along.
            frames: of each sample how it was cut out of its source; a bank needs them.
            maps: already made for this batch; by default from the guide or the bank.

        Raises `AugmentationError`.
        """
        return self.traced(images, labels, ids=ids, epoch=epoch, targets=targets, frames=frames, maps=maps)[0]

    def traced(
        self,
        images: Any,
        labels: Any = None,
        *,
        ids: Sequence[Any],
        epoch: int | None = None,
        targets: Sequence[Any] | None = None,
        frames: Sequence[Frame] | None = None,
        maps: Maps | None = None,
    ) -> tuple[Augmented, list[bool]]:
        """The same, and of each image whether all of its sample is still seen where it was.

        A map of an image that was mixed, cropped, moved or painted over is not one of its sample.
        """
        samples = self.samples(
            images, labels, ids=ids, epoch=epoch, targets=targets, frames=frames, maps=maps
        )
        chosen = [sample.generator("apply").random() < self.policy.p for sample in samples]
        if isinstance(self.policy, Mix):
            if targets is not None:
                raise AugmentationError(
                    f"{type(self.policy).__name__} mixes classes; boxes, masks and keypoints cannot be "
                    "mixed: pass no targets"
                )
            return self._mixed(self.policy, samples, chosen, images, labels)
        changed = [
            Changed(*self.policy.changed(sample)) if take else Changed(sample.image, sample.targets, True)
            for sample, take in zip(samples, chosen, strict=True)
        ]
        pixels = self.canvas.joined([each.image for each in changed], images)
        moved = None if targets is None else [each.targets for each in changed]
        return Augmented(pixels, labels, moved), [each.in_place for each in changed]

    def samples(
        self,
        images: Any,
        labels: Any = None,
        *,
        ids: Sequence[Any],
        epoch: int | None = None,
        targets: Sequence[Any] | None = None,
        frames: Sequence[Frame] | None = None,
        maps: Maps | None = None,
    ) -> list[Sample]:
        """The images of a batch with their maps, before anything is changed; arguments as of a call."""
        size, count = self.canvas.size(images), self.canvas.count(images)
        names = [str(one) for one in ids]
        for what, given in (("ids", ids), ("targets", targets), ("frames", frames)):
            if given is not None and len(given) != count:
                raise AugmentationError(f"{len(given)} {what} for {count} images: pass one a sample")
        draw = Draw(self.seed, self.epoch if epoch is None else epoch)
        found = self._maps(images, labels, names, frames) if maps is None else maps
        found = chosen_maps(found, self.which, names, draw)
        wrong = next((frame.size for frame in found.frames if frame.size != size), None)
        if wrong is not None:
            raise AugmentationError(
                f"a map is for a picture of {wrong[0]} x {wrong[1]} pixels, and the images have {size[0]} x "
                f"{size[1]}: pass the frames that the images were cut with"
            )
        pictures = self.canvas.split(images)
        return [
            Sample(
                id=names[row],
                image=pictures[row],
                values=found.values[row],
                grid=found.grids[row],
                frame=found.frames[row],
                targets=None if targets is None else targets[row],
                canvas=self.canvas,
                draw=draw,
            )
            for row in range(count)
        ]

    def _maps(self, images: Any, labels: Any, ids: list[str], frames: Sequence[Frame] | None) -> Maps:
        if not callable(self.source):
            if frames is None:
                raise AugmentationError(
                    "kept maps belong to whole source images: pass frames=, how each image was cut out of "
                    "its source; spile.augmentation.Frame.whole((height, width)) where it was not"
                )
            return self.source.maps(ids, frames)
        classes = None if labels is None else class_numbers(self.canvas.array(labels))
        return self.source(images, classes if classes is not None and classes.ndim == 1 else None)

    def _mixed(
        self, policy: Mix, samples: list[Sample], chosen: list[bool], images: Any, labels: Any
    ) -> tuple[Augmented, list[bool]]:
        weights = self._weights(labels, len(samples))
        if not samples:
            return Augmented(images, self.canvas.beside(weights.astype(np.float32), images), None), []
        partners = samples[0].draw.partners([sample.id for sample in samples], "partner")
        mixed, counted = [], []
        for position, (sample, partner, take) in enumerate(zip(samples, partners, chosen, strict=True)):
            image, counts = sample.image, weights[position]
            if take and partner != position:
                image, (own, other) = policy.mixed(sample, samples[partner])
                counts = own * weights[position] + other * weights[partner]
            mixed.append(image)
            counted.append(counts)
        numbers = np.stack(counted).astype(np.float32)
        found = Augmented(self.canvas.joined(mixed, images), self.canvas.beside(numbers, images), None)
        alone = [
            not take or partner == i for i, (take, partner) in enumerate(zip(chosen, partners, strict=True))
        ]
        return found, alone

    def _weights(self, labels: Any, count: int) -> Array:
        """(n, classes)."""
        name = type(self.policy).__name__
        found = None if labels is None else self.canvas.array(labels)
        if found is None or len(found) != count:
            raise AugmentationError(f"{name} mixes labels: pass {count} of them, one a sample")
        return class_weights(
            found,
            self.classes,
            missing=f"{name} needs to know how many classes there are: write classes=10 (of spile.augment), "
            "or pass labels as (samples, classes) weights",
        )
