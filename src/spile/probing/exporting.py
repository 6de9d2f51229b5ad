"""One file that does what was measured: network up to the points, pools, scaler and head."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import spile
from spile.backend import backend_of
from spile.data import Batch, batches, open_source
from spile.errors import CaptureError, DataError, ModelError, nearest
from spile.interfaces import Runner
from spile.plain import PlainHead
from spile.preprocessing import ImagePreprocessing
from spile.probing.metrics import named
from spile.probing.plain_heads import plain_head

if TYPE_CHECKING:
    from spile.probing.deployment import Deployed

Array = npt.NDArray[Any]

TOLERANCE = 1e-4
"""How far a score may be off, as a share of the largest where scores are not probabilities."""
_BATCH, _TRACED = 32, 4
_WARM, _TIMED = 3, 20
_DESCRIPTION = "model.json"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An exported file held against the Python pipeline."""

    format: str
    path: str
    samples: int
    largest_difference: float
    """Of scores: probabilities, or else decision values."""
    labels_identical: bool | None
    """``None`` for numbers."""
    latency_ms: float
    """Median of one sample, after a warm-up, on this machine."""
    megabytes: float


@dataclass(frozen=True, eq=False)
class Export:
    """What `export` wrote: a file for each format, and a description of input, labels and cost."""

    folder: Path
    files: Mapping[str, Path]
    description: dict[str, Any]
    verified: tuple[Verified, ...]
    """On the data that was given for exporting."""
    _model: Deployed

    def verify(self, data: Any) -> tuple[Verified, ...]:
        """Run all samples of `data` through every file and through the Python pipeline.

        Raises `CaptureError` where a score is off by more than 1e-4 or a label differs.
        """
        read = _read(self._model, data, limit=None)
        return tuple(_verify(self._model, name, path, read) for name, path in self.files.items())

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.description['point']}, {self.description['macs']:,} MACs a sample"]
        for one in self.verified:
            labels = {True: "labels identical", None: "numbers"}.get(one.labels_identical, "labels differ")
            lines.append(
                f"{one.format}: {one.megabytes:.2f} MB, {one.latency_ms:.2f} ms a sample, scores within "
                f"{one.largest_difference:.1e}, {labels} on {one.samples} samples"
            )
        return "\n".join(lines)


def export(model: Deployed, folder: str | Path, data: Any, *, formats: str | Sequence[str] = "all") -> Export:
    """Write `model` as one file a format and verify each on `data`; see `Deployed.export`."""
    backend = backend_of(model.tap.model)
    wanted = _formats(formats, tuple(backend.FORMATS))
    head = _plain(model)
    read = _read(model, data, limit=_BATCH)
    images = model.preprocessing if isinstance(model.preprocessing, ImagePreprocessing) else None
    traced = _first(read[0].inputs, _TRACED)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    description = _describe(model, head, traced)
    model.batch_features(read[0])  # a tap that was loaded learns its points from a batch
    files = backend.save_whole(
        model.tap, head, traced, target, wanted, images=images, about=_for_onnx(description)
    )
    files = {name: files[name] for name in wanted}
    verified = tuple(_verify(model, name, path, read) for name, path in files.items())
    description |= {"files": {one.format: {**asdict(one), "path": Path(one.path).name} for one in verified}}
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (target / _DESCRIPTION).write_text(text, encoding="utf-8")
    return Export(target, files, description, verified, model)


def _plain(model: Deployed) -> PlainHead:
    return plain_head(model.head, unit_rows=model.unit_rows, classes=model.classes)


def _formats(formats: str | Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    wanted = known if formats == "all" else (formats,) if isinstance(formats, str) else tuple(formats)
    for name in wanted:
        if name not in known:
            guess = nearest(str(name), known, n=1)[0]
            raise ModelError(
                f"this model cannot be exported as {name!r}. Allowed: {', '.join(map(repr, known))} or "
                f"'all'. Type: formats={guess!r}"
            )
    return wanted


def _read(model: Deployed, data: Any, *, limit: int | None) -> list[Batch]:
    """The samples of `data` in batches; one batch where there is a `limit`."""
    origin = model.tap.origin
    reading = batches(
        open_source(data),
        model.preprocessing,
        batch_size=_BATCH,
        tokenizer=origin.tokenize if origin else None,
    )
    read = [batch for batch in islice(reading, None if limit is None else 1) if batch.records]
    if not read:
        raise DataError("exporting needs a few samples to be verified on, and not one can be used")
    return read


def _first(inputs: Any, count: int) -> Any:
    if isinstance(inputs, Mapping):
        return {name: value[:count] for name, value in inputs.items()}
    return inputs[:count]


def _describe(model: Deployed, head: PlainHead, inputs: Any) -> dict[str, Any]:
    saved = model.description
    pixels = isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4
    if isinstance(inputs, Mapping):
        entry: Any = {name: {"dtype": str(np.asarray(v).dtype)} for name, v in inputs.items()}
    else:
        entry = {"dtype": str(np.asarray(inputs).dtype), "shape": [None, *np.shape(inputs)[1:]]}
    scores = "decision values" if head.link == "none" else "probabilities"
    if head.labels is None:
        scores = "numbers"
    elif head.several:
        scores += f" of each label by itself, which holds above {head.threshold}"
    return {
        "point": saved["point"],
        "points": [point["name"] for point in saved["points"]],
        "labels": None if head.labels is None else list(head.labels),
        "scores": scores,
        "input": entry,
        "normalised_inside": pixels,
        "preprocessing": model.preprocessing.to_json() if model.preprocessing else None,
        "head": named(model.head),
        "macs": saved.get("macs"),
        "params": None if saved.get("params") is None else saved["params"] + head.model.size,
        "fingerprint": saved.get("fingerprint"),
        "spile": spile.__version__,
    }


def _for_onnx(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: description[key] for key in ("labels", "scores", "preprocessing", "point")}


def _verify(model: Deployed, name: str, path: Path, read: Sequence[Batch]) -> Verified:
    run: Runner = backend_of(model.tap.model).open_whole(path, name)
    head = _plain(model)
    largest, count, same = 0.0, 0, True
    for batch in read:
        features = model.batch_features(batch)
        expected, found = head(features), np.asarray(run(batch.inputs))
        unit = max(1.0, float(np.abs(expected).max())) if head.link == "none" else 1.0
        off = float(np.abs(expected - found).max()) / unit if expected.shape == found.shape else np.inf
        largest, count = max(largest, off), count + len(found)
        if head.labels is not None:
            same &= bool(np.array_equal(head.answers(found), model.head.predict(features)))
    if not largest <= TOLERANCE or not same:
        raise CaptureError(
            f"{path.name} gives other scores than the model that was measured (off by {largest:.3g}, labels "
            f"{'identical' if same else 'different'}), so do not use it: does the network depend on more "
            "than its input?"
        )
    single = _first(read[0].inputs, 1)
    beside = path.with_suffix(".bin") if path.suffix == ".xml" else None
    size = path.stat().st_size + (beside.stat().st_size if beside else 0)
    return Verified(
        format=name,
        path=str(path),
        samples=count,
        largest_difference=largest,
        labels_identical=None if head.labels is None else same,
        latency_ms=_latency(run, single),
        megabytes=size / 1e6,
    )


def _latency(run: Runner, inputs: Any) -> float:
    for _ in range(_WARM):
        run(inputs)
    times = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - started)
    return float(1000 * np.median(times))
