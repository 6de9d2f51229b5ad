"""`MapBank`: maps that are kept, so that guiding costs a look-up.

A map is kept in the frame of its sample's whole source image: a loader that crops and flips at random says
how (`spile.augmentation.Frame`), and the map is cut and flipped alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spile.augmentation.geometry import Axis, Frame, Grid
from spile.augmentation.maps import Maps, cut_from, maps_of
from spile.augmentation.settings import GuideLike
from spile.backend import backend_named
from spile.data import Samples, Stream, batches, open_source
from spile.data.images import kept_part
from spile.errors import (
    AugmentationError,
    CaptureError,
    DataError,
    FingerprintMismatch,
    StoreError,
    nearest,
)
from spile.preprocessing import ImagePreprocessing
from spile.progress import progress_bar
from spile.store.lance_io import find_dataset, load_lance, one_line_errors, uri_of

Array = npt.NDArray[Any]

_METADATA = b"spile.map_bank"

Missing = Literal["raise", "flat"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a kept map lies in its source image, and which part of that the guide saw."""

    height: int
    width: int
    row: float
    row_stride: float
    column: float
    column_stride: float
    top: float
    left: float
    tall: float
    wide: float

    @classmethod
    def of(cls, grid: Grid, frame: Frame) -> _Place:
        rows, columns = grid.rows, grid.columns
        part = frame.top, frame.left, frame.height, frame.width
        return cls(*frame.source, rows.first, rows.stride, columns.first, columns.stride, *part)

    def grid(self, shape: tuple[int, ...]) -> Grid:
        return Grid(
            Axis(shape[0], self.row_stride, self.row), Axis(shape[1], self.column_stride, self.column)
        )

    @property
    def seen(self) -> Frame:
        size = self.height, self.width
        return Frame(source=size, top=self.top, left=self.left, height=self.tall, width=self.wide, size=size)


class MapBank:
    """Maps by sample id, in half precision and the cells' own resolution; in memory, and on disk if asked.

    `guide` makes them; a bank on disk that another guide has made is refused with `FingerprintMismatch`.

    Args:
        guide: what makes the maps.
        path: of the Lance dataset; by default the bank is in memory alone.
        refresh: after how many epochs the maps are `due` again; ``None`` for never.
        run: names the training run, where the guide is of the very model that is trained. Its weights change,
            so such a bank is known by the model's layers and by this name in place of its weights: give every
            run a name of its own. Another architecture, layer, reduction or run is refused all the same.
        missing: what is done for a sample without a map: ``"raise"``, or ``"flat"``, a map that says nothing,
            under which regions are drawn at random. The first epoch of a bank that training fills needs it.
    """

    def __init__(
        self,
        guide: GuideLike,
        path: str | os.PathLike[str] | None = None,
        *,
        refresh: int | None = None,
        run: str | None = None,
        missing: Missing = "raise",
    ) -> None:
        if missing not in get_args(Missing):
            raise AugmentationError(f"missing={missing!r}: write 'raise' or 'flat'")
        if refresh is not None and refresh < 1:
            raise AugmentationError(f"refresh={refresh!r}: write a number of epochs, 1 or more")
        self.guide = guide
        self.framework = guide.framework
        self.refresh = refresh
        self.run = run
        self.missing = missing
        self.epoch: int | None = None
        """From which on the maps serve; ``None`` while there are none."""
        self._uri = None if path is None else uri_of(path)
        self._kept: dict[str, tuple[Array, _Place]] = {}
        if self._uri is not None and find_dataset(self._uri, None) is not None:
            self._load(self._uri)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, sample: object) -> bool:
        return str(sample) in self._kept

    @property
    def settled(self) -> bool:
        """Whether the maps stay as they are, so that copies of the bank, as workers have them, stay right."""
        return self.refresh is None and self.epoch is not None

    @property
    def preprocessing(self) -> ImagePreprocessing | None:
        """What the guide does to pixels of 0..255."""
        return self.guide.preprocessing

    @property
    def _identity(self) -> str:
        return self.guide.fingerprint if self.run is None else self.guide.fingerprint_in(self.run)

    def keeper(self, *, recognise: Recognise | None = None) -> Keeper:
        """What fills the bank from the training passes of the guide's own model; see `Keeper`."""
        return Keeper(self, recognise=recognise)

    def due(self, epoch: int) -> bool:
        """Whether the maps are to be made anew before `epoch`, counted from 0."""
        if self.epoch is None:
            return True
        return self.refresh is not None and epoch - self.epoch >= self.refresh

    def fill(self, data: Any, *, batch_size: int = 32, epoch: int = 0, progress: bool = False) -> MapBank:
        """Make the maps of all samples of `data`, whole images, in one pass of the guide, and save them.

        A sample that cannot be read has no map. Raises `DataError`, `AugmentationError`.
        """
        source = open_source(data)
        if isinstance(source, Stream) or source.kind != "image":
            raise DataError(f"{source.name} holds no images that can be read one by one")
        wanted = self.guide.preprocessing
        if not isinstance(wanted, ImagePreprocessing):
            raise AugmentationError(
                "filling a bank from data needs the guide's preprocessing: make the guide with preprocessing="
                "spile.ImagePreprocessing(...), or from a reference such as 'timm:resnet18'"
            )
        sizes: dict[int, tuple[int, int]] = {}

        def read(position: int) -> Any:
            image = source.read(position)
            sizes[position] = image.shape[:2]
            return image

        canvas = backend_named(self.framework).canvas()
        watched = Samples(source.name, source.kind, source.records, read)
        skipped = 0
        with progress_bar("maps", total=len(source.records), done=0, shown=progress) as report:
            for batch in batches(watched, wanted, batch_size=batch_size):
                if batch.records:
                    frames = [whole_frame(sizes.pop(position), wanted) for position in batch.positions]
                    maps = self.guide(canvas.from_pixels(batch.inputs))
                    self.update([record.id for record in batch.records], cut_from(maps, frames), epoch=epoch)
                skipped += len(batch.skipped)
                report(samples=batch.stop - batch.start, written=0, skipped=skipped)
        self.save()
        return self

    def update(self, ids: Sequence[Any], maps: Maps, *, epoch: int = 0) -> None:
        """Keep maps, e.g. of the training model's own pass: they serve from the next epoch on.

        They know how their pictures were cut (`spile.augmentation.cut_from` tells them). Maps of pictures
        that were cut at random know a part of the source only; beyond it they stay level.
        """
        if len(ids) != len(maps):
            raise AugmentationError(f"{len(ids)} ids for {len(maps)} maps: pass one a sample")
        have, made = self._shape(ids), maps.values.shape[1:]
        if self._kept and have != made and not set(self._kept) <= {str(one) for one in ids}:
            raise AugmentationError(
                f"maps of {made[0]} x {made[1]} cells do not go into a bank of {have[0]} x {have[1]}: make "
                "all of them at one size of image (a guide that filled it at resolution=0.5 sees half)"
            )
        for one, values, grid, frame in zip(ids, maps.values, maps.grids, maps.frames, strict=True):
            self._kept[str(one)] = (values.astype(np.float16), _Place.of(grid, frame))
        self.epoch = epoch if self.epoch is None else max(epoch, self.epoch)

    def maps(self, ids: Sequence[Any], frames: Sequence[Frame]) -> Maps:
        """The maps of samples whose pictures were cut as `frames` say.

        Raises `AugmentationError` for an id that is not kept, and for a frame of a source of another size.
        """
        values, grids = [], []
        shape = self._shape(ids)
        for one, frame in zip(ids, frames, strict=True):
            if str(one) not in self._kept and self.missing == "flat":
                values.append(np.zeros(shape, np.float32))
                grids.append(_even(frame.source, shape))
                continue
            if str(one) not in self._kept:
                close = nearest(str(one), list(self._kept)[:1000], n=1) or ["none at all"]
                raise AugmentationError(
                    f"no map is kept for {str(one)!r}; there are {len(self)}, e.g. {close[0]!r}: fill the "
                    "bank with the data that is trained on"
                )
            kept, place = self._kept[str(one)]
            if frame.source != (place.height, place.width):
                raise AugmentationError(
                    f"the map of {str(one)!r} is of a source of {place.height} x {place.width} pixels, and "
                    f"the frame is a cut of {frame.source[0]} x {frame.source[1]}: pass the frame that the "
                    "loader cut from that very image"
                )
            seen = place.seen.covers(frame) > 0
            values.append(kept.astype(np.float32) if seen else np.zeros(kept.shape, np.float32))
            grids.append(place.grid(kept.shape))
        return Maps(np.stack(values), tuple(grids), tuple(frames))

    def _shape(self, ids: Sequence[Any]) -> tuple[int, ...]:
        """Of the maps of these samples, or of any; that of a flat map matters to nobody."""
        known = (self._kept[str(one)] for one in ids if str(one) in self._kept)
        found = next(known, None) or next(iter(self._kept.values()), None)
        return (2, 2) if found is None else found[0].shape

    def save(self) -> None:
        """Write the bank as a new version of its Lance dataset; nothing to do for one in memory."""
        if self._uri is None or not self._kept:
            return
        shape = next(iter(self._kept.values()))[0].shape
        flat = np.concatenate([values.ravel() for values, _ in self._kept.values()])
        columns: dict[str, Any] = {
            "id": pa.array(list(self._kept)),
            "map": pa.FixedSizeListArray.from_arrays(pa.array(flat), int(np.prod(shape))),
        }
        places = np.array([astuple(place) for _, place in self._kept.values()], np.float64)
        columns |= {each.name: places[:, number] for number, each in enumerate(fields(_Place))}
        about = {"fingerprint": self._identity, "shape": shape, "epoch": self.epoch}
        table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about)})
        with one_line_errors("write", self._uri):
            load_lance().write_dataset(table, self._uri, mode="overwrite")

    def _load(self, uri: str) -> None:
        dataset = find_dataset(uri, None)
        about = None if dataset is None else (dataset.schema.metadata or {}).get(_METADATA)
        if dataset is None or about is None:
            raise StoreError(f"{uri} holds no maps: give a path that is not there yet, e.g. maps.lance")
        told = json.loads(about)
        if told["fingerprint"] != self._identity:
            raise FingerprintMismatch(
                f"the maps at {uri} were made by another guide (weights, or the run= of a model in training, "
                "layer, reduction, resolution or preprocessing differ): give another path, or the guide that "
                "made them"
            )
        with one_line_errors("read", uri):
            table = dataset.to_table()
        shape = tuple(told["shape"])
        values = table["map"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)
        names = [each.name for each in fields(_Place)]
        numbers = np.stack([table[name].to_numpy() for name in names], axis=1).tolist()
        for one, kept, row in zip(table["id"].to_pylist(), values, numbers, strict=True):
            self._kept[one] = (kept.astype(np.float16), _Place(int(row[0]), int(row[1]), *row[2:]))
        self.epoch = told["epoch"]


def whole_frame(size: tuple[int, int], preprocessing: ImagePreprocessing) -> Frame:
    """How a preprocessing cuts its picture out of a source of `size`."""
    (top, left, height, width), cut = kept_part(size, preprocessing)
    return Frame(source=size, top=top, left=left, height=height, width=width, size=cut)


def _even(source: tuple[int, int], shape: tuple[int, ...]) -> Grid:
    """Cells that share a source among them."""
    height, width = source
    return Grid(Axis.of_pixels(height).resized(shape[0]), Axis.of_pixels(width).resized(shape[1]))


Recognise = Callable[[Array], tuple[list[str], list[Frame | None]]]
"""From uint8 pictures (n, height, width, channels) to the samples they are of, see `Keeper.step`."""


class Keeper:
    """Keeps the maps that a model in training makes anyway; they serve from the next epoch on.

    Before every training batch say which samples come, ``keeper.step(ids, frames=frames, epoch=epoch)``, and
    after every epoch ``keeper.end(epoch)``. Maps are kept only in epochs after which the bank is `due`. They
    are those of the pictures as they were trained on, in training mode: crops, changed colours and the
    statistics of the batch are in them.
    """

    def __init__(self, bank: MapBank, *, recognise: Recognise | None = None) -> None:
        self.bank = bank
        self._recognise = recognise
        self._pending: tuple[list[str], list[Frame | None]] | None = None
        self._passed: list[tuple[list[str], list[Frame | None], Array, tuple[int, ...]]] = []
        self._made: list[tuple[list[str], Maps]] = []
        known = recognise is not None
        self._watched = backend_named(bank.framework).keep(bank.guide, self._take, pictures=known)

    def begin(self, epoch: int) -> None:
        """Decide whether the maps of this epoch are kept; `step` does so too."""
        self._watched.active = self.bank.due(epoch + 1)

    def step(self, ids: Sequence[Any], *, frames: Sequence[Frame | None], epoch: int) -> None:
        """Say which samples the training batch that comes is made of.

        `frames` say how each picture was cut out of its source; ``None`` for one that no longer shows all of
        that where it was, as it was mixed, moved or painted over: its sample keeps the map that it has.
        """
        if len(ids) != len(frames):
            raise AugmentationError(f"{len(frames)} frames for {len(ids)} ids: pass one a sample")
        self._settle()
        self.begin(epoch)
        self._pending = [str(one) for one in ids], list(frames)

    def end(self, epoch: int) -> None:
        """The epoch is over: put its maps into the bank, and save it.

        Raises `CaptureError` where maps were to be kept and there are none.
        """
        self._settle()
        made = self._watched.gathered(self._made)
        self._pending, self._made = None, []
        if self.bank.due(epoch + 1) and not made:
            raise CaptureError(
                f"epoch {epoch} gave no map: no training pass was of a picture that step (or the feed) had "
                "told of, whole and where it was. Mixes, crops and drops of a policy hide samples: fill the "
                "bank from data then. In Keras the model must get the feed's numbers of 0..255 as they are"
            )
        for ids, maps in made:
            self.bank.update(ids, maps, epoch=epoch + 1)
        if made and self._watched.leads:
            self.bank.save()

    def close(self) -> None:
        """Leave the model as it was."""
        self._watched.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, raw: Array, shape: tuple[int, ...], pictures: Array | None) -> None:
        """In the middle of a pass: the model cannot be asked for its grid before that is over."""
        if not self._watched.active:
            return
        told, self._pending = self._pending, None
        if self._recognise is not None and pictures is not None:
            told = self._recognise(pictures)
        if told is None:
            return
        if len(raw) != len(told[0]):
            raise CaptureError(f"the pass is of {len(raw)} samples, and step was told of {len(told[0])}")
        self._passed.append((*told, raw, shape))

    def _settle(self) -> None:
        passed, self._passed = self._passed, []
        for ids, frames, raw, shape in passed:
            rows = [row for row, frame in enumerate(frames) if frame is not None]
            cuts = [frame for frame in frames if frame is not None]
            if not rows:
                continue
            grid = self._watched.grid(shape, cuts[0].size)
            maps = maps_of(raw[rows].reshape(len(rows), *grid.shape), grid, cuts[0].size)
            self._made.append(([ids[row] for row in rows], cut_from(maps, cuts)))
