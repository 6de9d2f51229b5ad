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
    `root`, with a backslash before what is not UTF-8 in it.
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
        _text(root), "image", records, lambda i: read_image(root / found[i], max_pixels=max_pixels)
    )


def open_files(paths: Sequence[str | Path], *, max_pixels: int) -> Samples:
    """The image files at `paths`; the id of a sample is its path as given."""
    files = [Path(path) for path in paths]
    records = [Record(_text(path)) for path in files]

    def read(position: int) -> Pixels:
        return read_image(files[position], max_pixels=max_pixels)

    return Samples(f"{len(files)} image files", "image", records, read)


def has_image_suffix(path: str | PurePath) -> bool:
    """Whether `path` ends the way image files do."""
    return Path(path).suffix.lower() in SUFFIXES


def _record(path: PurePosixPath, depth: int) -> Record:
    folders = path.parts[:-1]
    split = SPLITS[folders[0].lower()] if depth else None
    label = _text(PurePath(folders[depth])) if len(folders) > depth else None
    return Record(_text(path), label, split)


def _text(path: PurePath) -> str:
    """The path as text that can be written everywhere: Linux takes names that are not UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _image_paths(root: Path) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    files = sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in _walk(root))
    return [f for f in files if has_image_suffix(f)], [f for f in files if not has_image_suffix(f)]


def _walk(root: Path) -> Iterator[Path]:
    # Where each folder still to be walked and those above it really are: two links may lead to one place.
    above = {root: {os.path.realpath(root)}}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        known = above.pop(Path(folder))
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        for name in list(subfolders):
            inside = Path(folder, name)
            real = os.path.realpath(inside)
            if real in known:  # a link back to where the walk comes from
                subfolders.remove(name)
            else:
                above[inside] = {*known, real}
        yield from (Path(folder, name) for name in names if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _summary(files: list[PurePosixPath]) -> str:
    counts = Counter(file.suffix or "no suffix" for file in files)
    listed = ", ".join(f"{count} x {suffix}" for suffix, count in counts.most_common(3))
    return f"{len(files)} other files ({listed})" if files else "no files at all"
