"""Images in folders and lists of image files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath

from spile.data.images import SUFFIXES, Pixels, read_image
from spile.data.samples import Samples
from spile.data.source import Record
from spile.errors import DataError

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
"""What names of splits mean, in lower case."""


def open_folder(root: Path, *, max_pixels: int) -> Samples:
    """A folder of class folders, at any depth, in the order of their paths; a flat folder has no labels.

    Where all folders with images have names of `SPLITS` (train, val, test and the like), those are the
    samples' splits, and the class folders are looked for inside them. The id of a sample is its path under
    `root`.
    """
    found, others = _image_paths(root)
    if not found:
        raise DataError(
            f"no images under {str(root)!r}: found {_summary(others)}; "
            f"looked for {' '.join(sorted(SUFFIXES))}"
        )
    tops = {path.parts[0].lower() if len(path.parts) > 1 else "" for path in found}
    depth = 1 if tops <= SPLITS.keys() else 0
    records = [_record(path, depth) for path in found]
    return Samples(
        str(root), "image", records, lambda i: read_image(root / records[i].id, max_pixels=max_pixels)
    )


def open_files(paths: Sequence[str | Path], *, max_pixels: int) -> Samples:
    """The image files at `paths`; the id of a sample is its path as given."""
    files = [Path(path) for path in paths]
    records = [Record(path.as_posix()) for path in files]

    def read(position: int) -> Pixels:
        return read_image(files[position], max_pixels=max_pixels)

    return Samples(f"{len(files)} image files", "image", records, read)


def has_image_suffix(path: str | PurePath) -> bool:
    """Whether `path` ends the way image files do."""
    return Path(path).suffix.lower() in SUFFIXES


def _record(path: PurePosixPath, depth: int) -> Record:
    folders = path.parts[:-1]
    split = SPLITS[folders[0].lower()] if depth else None
    return Record(str(path), label=folders[depth] if len(folders) > depth else None, split=split)


def _image_paths(root: Path) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    files = sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in _walk(root))
    return [f for f in files if has_image_suffix(f)], [f for f in files if not has_image_suffix(f)]


def _walk(root: Path) -> Iterator[Path]:
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to where the walk has been
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        yield from (Path(folder, name) for name in names if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _summary(files: list[PurePosixPath]) -> str:
    counts = Counter(file.suffix or "no suffix" for file in files)
    listed = ", ".join(f"{count} x {suffix}" for suffix, count in counts.most_common(3))
    return f"{len(files)} other files ({listed})" if files else "no files at all"
