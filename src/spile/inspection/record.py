"""What a diagnosis leaves for its report: ``run.json`` and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import spile
from spile.data import Source, Stream
from spile.errors import DataError
from spile.inspection.alignment import Similarity
from spile.inspection.drifting import Drift
from spile.inspection.mislabelled import LabelErrors
from spile.probing.pictures import thumbnail
from spile.probing.preparing import make_folder
from spile.probing.record import about, write_json
from spile.store import Duplicates, Store

if TYPE_CHECKING:
    from spile.inspection.diagnosing import Diagnosis

_WRONG, _PAIRS, _STRANGE = 24, 12, 12


def write_record(
    folder: Path,
    found: Diagnosis,
    store: Store,
    *,
    source: Source | Stream | None,
    before: Store | None,
    title: str | None,
    command: str | None,
) -> None:
    """Write ``run.json`` and the pictures, in place of an earlier diagnosis'.

    `source` is what the store was made from, for the pictures; `before` is the store that drift was held
    against. Raises `DataError` where the source is another.
    """
    make_folder(folder)
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    (folder / "pictures").mkdir()
    samples = _Samples(store, source, folder / "pictures")
    recorded = store.manifest.recorded
    data = recorded.get("data", store.path or "memory")
    made: Mapping[str, str] = store.manifest.fingerprinted.get("versions", {})
    model = recorded.get("model")
    record = {
        **about(title or f"{data}: samples and layers", command),
        "model": None if model is None else {"reference": model},
        "data": {
            "name": data,
            "samples": len(store) + store.skipped.num_rows,
            "classes": _classes(store),
        },
        "skipped": store.skipped.select(["id", "reason"]).slice(0, 50).to_pylist(),
        "skipped_total": store.skipped.num_rows,
        "versions": {**{k: v for k, v in made.items() if k != "machine"}, "spile": spile.__version__},
        "fingerprint": store.fingerprint,
        "findings": {
            "samples": len(store),
            "grids": _grids(found),
            "layers": _layers(found, store),
            "wrong_labels": None if found.label_errors is None else _wrong(found.label_errors, samples),
            "duplicates": None
            if found.duplicates is None
            else _copies(found.duplicates, found.leaked, store, samples),
            "drift": None
            if found.drift is None or before is None
            else _drift(found.drift, store, before, samples),
            "notes": found.notes,
        },
    }
    write_json(folder / "run.json", record)


class _Samples:
    """Rows of the store as the report shows them, with a picture where the source has one."""

    def __init__(self, store: Store, source: Source | Stream | None, folder: Path) -> None:
        self._store, self._source, self._folder = store, source, folder
        if isinstance(source, Source):
            _require_made_from(store, source)

    def of(self, row: int) -> dict[str, Any]:
        """One sample."""
        store, picture = self._store, None
        if self._source is not None:
            picture = thumbnail(self._source, int(store.positions[row]), self._folder)
        label = None if store.labels is None else store.labels[row]
        return {"id": store.ids[row], "label": label, "picture": picture}


def _require_made_from(store: Store, source: Source) -> None:
    """Raise `DataError` where pictures would be those of other samples."""
    last = int(store.positions[-1]) if len(store) else -1
    if last >= len(source.records) or (last >= 0 and source.records[last].id != store.ids[-1]):
        found = source.records[last].id if last < len(source.records) else "absent"
        raise DataError(
            f"the store was made from other data than {source.name}: sample {store.ids[-1]!r} is {found!r} "
            "there"
        )


def _classes(store: Store) -> list[Any]:
    labels = store.labels
    if labels is None or labels.dtype.kind == "f":
        return []
    return sorted({label for label in labels.tolist() if label is not None}, key=str)


def _grids(found: Diagnosis) -> list[dict[str, Any]]:
    made = []
    for name, alike in (
        ("Similarity of layers", found.similarity),
        ("Similarity to the other model", found.beside),
    ):
        if alike is not None:
            made.append(
                {
                    "title": name,
                    "rows": alike.rows,
                    "columns": alike.columns,
                    "values": alike.values,
                    "words": _how(alike),
                }
            )
    return made


def _how(alike: Similarity) -> str:
    spread = ""
    if alike.stderr is not None and np.isfinite(alike.stderr).any():
        spread = f", largest standard error {np.nanmax(alike.stderr):.2g}"
    batches = f"{alike.batches} random batches" if alike.batches > 1 else "one batch"
    return (
        f"Linear centred kernel alignment, unbiased, {alike.samples:,} samples in {batches}{spread}. 1: "
        "alike but for a rotation and a scale."
    )


def _layers(found: Diagnosis, store: Store) -> list[dict[str, Any]]:
    hinted = {hint.point: hint for hint in found.hints}
    rows = []
    for rank in found.ranks:
        hint = hinted.get(rank.point)
        rows.append(
            {
                "point": rank.point,
                "order": _order(store, rank.point),
                "dims": rank.dims,
                "effective_rank": rank.rank,
                "logme": None if hint is None else hint.logme,
                "h_score": None if hint is None else hint.h_score,
            }
        )
    return rows


def _order(store: Store, point: str) -> Any:
    info = store.points[point].info
    return None if info.get("baseline") == "raw" else info.get("order")


def _wrong(errors: LabelErrors, samples: _Samples) -> dict[str, Any]:
    worst = [
        {"sample": samples.of(row), "suggested": suggested, "confidence": confidence}
        for row, suggested, confidence in zip(
            errors.rows[:_WRONG], errors.suggested, errors.confidence, strict=False
        )
    ]
    return {"point": errors.point, "total": len(errors), "looked_at": errors.looked_at, "worst": worst}


def _copies(copies: Duplicates, leaked: int | None, store: Store, samples: _Samples) -> dict[str, Any]:
    splits = store.splits
    pairs = copies.pairs.rows
    order = np.arange(len(pairs))
    if splits is not None:  # those across splits do harm, so they come first
        names = np.asarray([str(split) for split in splits])
        order = np.argsort(names[pairs[:, 0]] == names[pairs[:, 1]], kind="stable")
    shown = [
        {
            "a": samples.of(pairs[i, 0]),
            "b": samples.of(pairs[i, 1]),
            "split_a": None if splits is None else splits[pairs[i, 0]],
            "split_b": None if splits is None else splits[pairs[i, 1]],
            "distance": copies.pairs.distances[i],
        }
        for i in order[:_PAIRS]
    ]
    counted = {} if splits is None else copies.between(splits)
    return {
        "point": copies.point,
        "total": len(copies),
        "samples": len(np.unique(pairs)),
        "leaked": leaked,
        "radius": copies.pairs.radius,
        "splits": [{"a": a, "b": b, "pairs": count} for (a, b), count in counted.items()],
        "shown": shown,
    }


def _drift(drift: Drift, store: Store, before: Store, samples: _Samples) -> dict[str, Any]:
    strongest = drift.strongest
    strange = drift.rows[np.argsort(-strongest.strangeness, kind="stable")[:_STRANGE]]
    return {
        "earlier": before.manifest.recorded.get("data", before.path or "memory"),
        "before": drift.before,
        "after": len(drift.rows),
        "permutations": drift.permutations,
        "p_value": drift.p_value,
        "strongest": strongest.point,
        "table": [
            {
                "point": row.point,
                "order": _order(store, row.point),
                "coefficient": row.coefficient,
                "expected": row.expected,
                "p_value": row.p_value,
            }
            for row in drift.table
        ],
        "strangest": [samples.of(row) for row in strange],
    }
