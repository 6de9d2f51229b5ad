"""What a run leaves for its report: ``run.json``, the tables behind it, and pictures."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import spile
from spile.data import BadSample, Source, Stream
from spile.data.images import apply
from spile.models import LoadedModel
from spile.observation import Call
from spile.preprocessing import ImagePreprocessing
from spile.probing import pictures
from spile.probing.features import joined
from spile.probing.measuring import CurvePoint, HeldOut
from spile.probing.metrics import named
from spile.probing.precisions import PrecisionChange
from spile.probing.result import ProbeResult, ProbeRow
from spile.probing.ridge import RidgeFit
from spile.probing.rows import Split, labels_of
from spile.resolution import Point
from spile.store import Store

Array = npt.NDArray[Any]

_QUERIES, _NEAREST, _MISTAKES, _MAPS, _SKIPPED = 6, 6, 12, 3, 50
_MAP_SIDE = 224


@dataclass(frozen=True, kw_only=True)
class Verified:
    """The saved model, loaded back and held against the one that was measured."""

    point: str
    max_abs_difference: float
    """Of the features of a few samples."""
    labels_identical: bool | None
    """``None`` for regression."""


def write_record(
    folder: Path,
    *,
    loaded: LoadedModel,
    points: Sequence[Point],
    whole: Call,
    source: Source | Stream,
    store: Store,
    results: Sequence[ProbeResult],
    splits: Sequence[Split],
    held_out: Sequence[HeldOut],
    head: Any,
    shots: int | None,
    curve: Sequence[CurvePoint],
    title: str | None,
    command: str | None,
    verified: Verified,
    precision: PrecisionChange | None,
    timings: Sequence[Mapping[str, Any]],
    show: Sequence[tuple[str, Any]],
) -> None:
    """Write ``run.json``, ``probe.json`` and the pictures, in place of an earlier run's.

    The first result and split are the run's own, `whole` is the model's dry pass, `points` are what was
    extracted, `show` are further images for the activation maps, as ``(title, pixels)``.
    """
    result, split, measured = results[0], splits[0], held_out[0]
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    (folder / "pictures").mkdir()
    name = store.manifest.recorded["model"]
    record = {
        "schema": 1,
        "title": title or f"{name} on {source.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "model": {
            "reference": name,
            "name": type(loaded.model).__name__,
            "params": whole.params,
            "macs": whole.macs,
            "input": _input(whole),
        },
        "data": {
            "name": source.name,
            "samples": len(store) + store.skipped.num_rows,
            "classes": result.classes or (),
            "train_rows": len(split.train),
            "test_rows": len(split.test),
            "labels_per_class": shots,
        },
        "metric": result.metric,
        "table": [_row(row, result, measured.scores, store) for row in result.table],
        "chosen": _chosen(result, head, measured, split),
        "seeds": [_seed(n, r, s) for n, (r, s) in enumerate(zip(results, held_out, strict=False))]
        if len(results) > 1
        else [],
        "curve": [_curve_point(point) for point in curve],
        **_samples(store, result, head, split, source, folder / "pictures"),
        "maps": _maps(loaded, points, source, store, split, show, folder / "pictures"),
        "timings": timings,
        "skipped": store.skipped.select(["id", "reason"]).slice(0, _SKIPPED).to_pylist(),
        "skipped_total": store.skipped.num_rows,
        "verification": asdict(verified),
        "precision": None if precision is None else asdict(precision),
        "versions": _versions(store),
        "fingerprint": store.fingerprint,
        "environment": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }
    write_json(folder / "run.json", record)
    write_json(folder / "probe.json", [r.to_json() for r in results])


def _row(row: ProbeRow, result: ProbeResult, held_out: Mapping[str, float], store: Store) -> dict[str, Any]:
    raw = row.baseline == "raw"
    stored = store.points.get(row.point)
    return {
        "point": row.point,
        "address": row.address,
        "pool": row.pool,
        "type": stored.info.get("type") if stored and not raw else None,
        "score": row.score,
        "stderr": row.stderr,
        "test_score": held_out.get(row.point),
        "dims": row.dims,
        "macs": None if raw else row.macs,
        "params": None if raw else row.params,
        "alpha": row.alpha,
        "order": None if raw else row.order,
        "baseline": row.baseline,
        "chosen": row.point == result.best.point,
        "pareto": row in result.pareto,
        "note": row.note or ("the best penalty lies at the edge of the grid" if row.at_edge else None),
    }


def _chosen(result: ProbeResult, head: Any, held_out: HeldOut, split: Split) -> dict[str, Any]:
    best, score = result.best, held_out.model
    counted = score is not None and result.metric == "accuracy"
    return {
        "point": best.point,
        "score": best.score,
        "stderr": best.stderr,
        "nested": result.nested.score if result.nested else None,
        "test_score": score,
        "test_correct": round(score * len(split.test)) if counted and score is not None else None,
        "test_total": len(split.test) if counted else None,
        "estimator": "ridge" if isinstance(head, RidgeFit) else named(head),
    }


def _seed(number: int, result: ProbeResult, held_out: HeldOut) -> dict[str, Any]:
    baselines = {row.baseline: held_out.scores.get(row.point) for row in result.table if row.baseline}
    return {
        "seed": number,
        "point": result.best.point,
        "test_score": held_out.model,
        "last": baselines.get("last"),
        "raw": baselines.get("tfidf", baselines.get("raw")),  # the input without the network
    }


def _curve_point(point: CurvePoint) -> dict[str, Any]:
    stated = asdict(point)
    words, half = stated.pop("tfidf"), stated.pop("tfidf_interval")
    return {**stated, "raw": words, "raw_interval": half} if words is not None else stated


def _samples(
    store: Store, result: ProbeResult, head: Any, split: Split, source: Source | Stream, folder: Path
) -> dict[str, Any]:
    """Confusion, worst mistakes and nearest neighbours on the rows that only measure."""
    if not len(split.test):
        return {}
    neighbors = _neighbors(store, result.points[-1], split, source, folder)
    if result.classes is None or result.several:  # a confusion is of one class with another
        return {"neighbors": neighbors}
    parts = [store[p].take(split.test).reshape(len(split.test), -1) for p in result.points]
    features = joined(parts, unit_rows=result.unit_rows)
    true, predicted = labels_of(store, split.test), np.asarray(head.predict(features))
    sure = head.predict_proba(features).max(axis=1) if hasattr(head, "predict_proba") else None
    labels = np.union1d(np.asarray(result.classes), true)
    matrix = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix, (np.searchsorted(labels, true), np.searchsorted(labels, predicted)), 1)
    wrong = np.flatnonzero(true != predicted)
    if sure is not None:
        wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    mistakes = [
        {
            **_sample(store, source, split.test[i], folder),
            "predicted": predicted[i],
            "confidence": None if sure is None else sure[i],
        }
        for i in wrong[:_MISTAKES]
    ]
    confusion = {"labels": labels, "matrix": matrix, "split": "test"}
    return {"confusion": confusion, "mistakes": mistakes, "neighbors": neighbors}


def _neighbors(
    store: Store, point: str, split: Split, source: Source | Stream, folder: Path
) -> list[dict[str, Any]]:
    """The samples nearest to a few test samples, spread over the test rows; the sample itself left out."""
    if store.points[point].variable:
        return []
    queries = _spread(split.test, _QUERIES)
    found = store.neighbors(point, store[point].take(queries), k=min(_NEAREST + 1, len(store)))
    rows = []
    for query, near, distances in zip(queries, found.rows, found.distances, strict=True):
        others = [(row, d) for row, d in zip(near, distances, strict=True) if row != query][:_NEAREST]
        rows.append(
            {
                "query": _sample(store, source, query, folder),
                "neighbors": [{**_sample(store, source, row, folder), "distance": d} for row, d in others],
                "point": point,
            }
        )
    return rows


def _spread(rows: Array, count: int) -> Array:
    """Up to `count` of the rows, at even distances, the first and the last among them."""
    chosen: Array = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return chosen


def _sample(store: Store, source: Source | Stream, row: int, folder: Path) -> dict[str, Any]:
    labels = store.labels
    return {
        "picture": pictures.thumbnail(source, int(store.positions[row]), folder),
        "id": store.ids[row],
        "label": None if labels is None else _shown(labels[row]),
    }


def _shown(label: Any) -> Any:
    return ", ".join(map(str, sorted(label))) if isinstance(label, frozenset) else label


def _maps(
    loaded: LoadedModel,
    points: Sequence[Point],
    source: Source | Stream,
    store: Store,
    split: Split,
    show: Sequence[tuple[str, Any]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Activation maps of a few held-out images at the model's input size, then of `show`, larger."""
    preprocessing = loaded.preprocessing
    if not isinstance(preprocessing, ImagePreprocessing):
        return []
    images = []
    if not isinstance(source, Stream) and source.kind == "image":
        for row in _spread(split.test if len(split.test) else split.train, _MAPS):
            with suppress(BadSample):
                pixels = source.read(int(store.positions[row]))
                images.append((str(store.ids[row]), apply(pixels, preprocessing)))
    levels = pictures.three_depths(points)
    larger = preprocessing.at(_MAP_SIDE)
    shown = [(title, apply(pixels, larger)) for title, pixels in show]
    return [
        *pictures.activation_maps(loaded, levels, images, folder, prefix="map"),
        *pictures.activation_maps(loaded, levels, shown, folder, prefix="shown"),
    ]


def _input(whole: Call) -> str | None:
    image = whole.inputs[0] if len(whole.inputs) == 1 else None
    if image is None or set(image.layout or "") != set("BCYX"):
        return None
    channels, height, width = (image.shape[(image.layout or "").index(axis)] for axis in "CYX")
    return f"{height}×{width} {'RGB' if channels == 3 else f'{channels}-channel'}"


def _versions(store: Store) -> dict[str, str]:
    made: Mapping[str, str] = store.manifest.fingerprinted["versions"]
    return {
        "spile": spile.__version__,
        **{name: version for name, version in made.items() if name not in ("spile", "machine")},
    }


def about(title: str, command: str | None) -> dict[str, Any]:
    """What the record of a run that compares no points begins with."""
    return {
        "schema": 1,
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "metric": "accuracy",
        "table": [],
        "environment": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; what is not finite as null."""
    draft = path.with_name(f".{path.name}.part")
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """NumPy values and tuples as JSON has them; a number that is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
