"""What ``run.json`` holds, and the reader that checks it.

The file is plain JSON, so whoever makes a run writes it without importing this package::

    {"schema": 1, "title": "…", "metric": "accuracy", "table": [{"point": "layer3", "score": 0.81, …}, …], …}

The dataclasses below are its schema, one a JSON object, one field a key. A field with a default may be
absent or null; keys that are not listed are ignored. NaN and infinities count as null. Pictures are paths
relative to the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from spile.errors import DataError
from spile.reporting.findings import Findings, Label, Sample

SCHEMA = 1
"""The one version of ``run.json`` that this reader understands."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network that was tapped. `macs` and `params` count the whole of it, for one sample."""

    reference: str
    name: str | None = None
    params: int | None = None
    macs: int | None = None
    input: str | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """The samples; `labels_per_class` is set when only that many labels of every class were used."""

    name: str
    samples: int | None = None
    classes: tuple[Label, ...] = ()
    train_rows: int | None = None
    test_rows: int | None = None
    labels_per_class: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scored point. `score` is cross-validated on the training rows, `test_score` is on held-out rows.

    `point` is the name shown. `order` is the depth rank of a point of the network; leave it out for what has
    no depth (raw input, several points combined). `macs` are the cost of reaching the point. `baseline` marks
    the two rows that every other is held against: ``"raw"`` (`point` says which, ``raw pixels``), of texts
    ``"tfidf"``, and ``"last"``, the network's last layer.
    """

    point: str
    address: str | None = None
    pool: str | None = None
    type: str | None = None
    score: float | None = None
    stderr: float | None = None
    test_score: float | None = None
    dims: int | None = None
    macs: int | None = None
    params: int | None = None
    alpha: float | None = None
    order: int | None = None
    baseline: Literal["raw", "last", "tfidf"] | None = None
    chosen: bool = False
    pareto: bool = False
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The point that was picked. `nested` is the score with the picking itself inside the folds."""

    point: str
    score: float | None = None
    stderr: float | None = None
    nested: float | None = None
    test_score: float | None = None
    test_correct: int | None = None
    test_total: int | None = None
    estimator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Seed:
    """The same run with other training rows: what it picked and the held-out scores."""

    seed: int
    point: str
    test_score: float | None = None
    last: float | None = None
    raw: float | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Held-out scores with so many labels of every class, and half of the 95 % interval of the mean."""

    shots: int
    seeds: int
    chosen: float
    chosen_interval: float | None = None
    last: float | None = None
    last_interval: float | None = None
    raw: float | None = None
    raw_interval: float | None = None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts, a row a true label and a column a predicted one."""

    labels: tuple[Label, ...]
    matrix: tuple[tuple[int, ...], ...]
    split: str = "test"

    def __post_init__(self) -> None:
        n = len(self.labels)
        if len(self.matrix) != n or any(len(row) != n for row in self.matrix):
            raise ValueError(f"needs a matrix of {n} × {n} counts, as many as there are labels")


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """A query and the samples nearest to it at `point`, nearest first."""

    query: Sample
    neighbors: tuple[Sample, ...]
    point: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A held-out sample that the chosen model got wrong."""

    id: str
    label: Label
    predicted: Label
    confidence: float | None = None
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """Where in the image `point` is active, as a picture."""

    point: str
    picture: str
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Maps:
    """One input picture and its activation maps, shallow to deep."""

    title: str
    picture: str
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a step took, and how many `unit` a second it did (``"images/s"``)."""

    step: str
    seconds: float
    rate: float | None = None
    unit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that could not be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The deployable model held against the features it was chosen on."""

    point: str | None = None
    max_abs_difference: float | None = None
    labels_identical: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The chosen model's cross-validated score in less than float32, and in float32, on the same rows."""

    precision: str
    rows: int
    score: float
    float32: float
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: a value an epoch, null where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves that share an axis. `share` values lie between 0 and 1 and are shown in percent."""

    title: str
    lines: tuple[Line, ...]
    words: str = ""
    share: bool = False
    logarithmic: bool = False


@dataclass(frozen=True, kw_only=True)
class Training:
    """A trained network, epoch by epoch. `score` is that of the epoch `best`, on held-out rows."""

    epochs: tuple[float, ...]
    charts: tuple[Chart, ...]
    best: int | None = None
    score: float | None = None
    seconds: float | None = None
    heads: tuple[str, ...] = ()
    options: dict[str, str | None] = field(default_factory=dict)
    augmented: tuple[Maps, ...] = ()
    """What guided augmentation does to a few samples: their map, bands and results."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two recipes at an equal `budget`: scores of each seed, the mean of ``b - a`` and its interval."""

    budget: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    mean: float
    low: float
    high: float
    epochs_a: int | None = None
    epochs_b: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReachedBy:
    """How soon a recipe came to the accuracy `wanted`: means over the `count` of `seeds` that did."""

    name: str
    wanted: float
    count: int
    seeds: int
    epochs: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two recipes, paired by seed, and what follows."""

    a: str
    b: str
    verdict: str
    level: float
    seeds: tuple[int, ...]
    budgets: tuple[Paired, ...]
    reached: tuple[ReachedBy, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """All of ``run.json``. A bare probe needs `title`, `metric` and `table` alone."""

    title: str
    metric: str
    table: tuple[Row, ...]
    created: str | None = None
    command: str | None = None
    model: Model | None = None
    data: Data | None = None
    chosen: Chosen | None = None
    seeds: tuple[Seed, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    confusion: Confusion | None = None
    neighbors: tuple[Neighbors, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    maps: tuple[Maps, ...] = ()
    timings: tuple[Timing, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    skipped_total: int | None = None
    verification: Verification | None = None
    precision: Precision | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    fingerprint: str | None = None
    environment: dict[str, Label] = field(default_factory=dict)
    training: Training | None = None
    comparison: Comparison | None = None
    findings: Findings | None = None

    @cached_property
    def pick(self) -> Row | None:
        """The table's chosen row."""
        return next((row for row in self.table if row.chosen), None)

    def baseline(self, kind: Literal["raw", "last"]) -> Row | None:
        """The table's row that is held against the others, if there is one of that `kind`.

        ``"raw"`` is the input without the network; of texts that is tf-idf.
        """
        kinds = ("raw", "tfidf") if kind == "raw" else (kind,)
        scored = sorted(
            (row for row in self.table if row.baseline in kinds), key=lambda row: row.score is None
        )
        return next(iter(scored), None)

    @cached_property
    def by_depth(self) -> tuple[Row, ...]:
        """The scored rows that have a place in the network, shallow to deep."""
        placed = [(row.order, row) for row in self.table if row.order is not None and row.score is not None]
        return tuple(row for _, row in sorted(placed, key=lambda pair: pair[0]))


def read_run(run_dir: str | Path) -> Run:
    """Read and check ``run.json``. Raises `DataError` if it is absent, broken or of another schema."""
    path = Path(run_dir) / "run.json"
    again = "Type: spile transfer DATA --model MODEL --out FOLDER"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{str(run_dir)!r} is not a run folder: it holds no run.json. Name a folder that a run wrote, "
            f"or make one. {again}"
        ) from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}. Check its permissions.") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not valid JSON ({error}). Make the run again. {again}") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else None
        raise DataError(
            f"{str(path)!r} has schema {found!r}; this version of spile reads schema {SCHEMA}. "
            f"Report it with the version that wrote it, or make the run again. {again}"
        )
    try:
        return _convert_object(Run, raw, "")
    except ValueError as error:
        raise DataError(
            f"{str(path)!r} does not fit the schema: {error}. Make the run again. {again}"
        ) from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Turn parsed JSON into `kind`: a dataclass, a tuple, a dict of strings, a union or a plain value."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _convert_union(arguments, value, where)
    if is_dataclass(kind):
        return _convert_object(kind, _expect(dict, value, where, "an object"), where)  # type: ignore[arg-type]
    if origin is tuple:
        items = _expect(list, value, where, "a list")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        pairs = _expect(dict, value, where, "an object")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in pairs.items()}
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}, received {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    words = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    if type(value) is not kind or (kind is float and not isfinite(value)):
        raise ValueError(f"{where} must be {words[kind]}, received {value!r}")
    return value


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if NoneType in kinds and (value is None or (isinstance(value, float) and not isfinite(value))):
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if type(value) in others:
        return value
    return _convert(others[0], value, where)


def _convert_object(kind: Callable[..., T], raw: dict[str, Any], where: str) -> T:
    hints = get_type_hints(kind)
    values = {}
    for spec in fields(kind):  # type: ignore[arg-type]
        name = f"{where}.{spec.name}".lstrip(".")
        optional = spec.default is not MISSING or spec.default_factory is not MISSING
        if raw.get(spec.name) is not None:
            values[spec.name] = _convert(hints[spec.name], raw[spec.name], name)
        elif not optional and NoneType not in get_args(hints[spec.name]):
            raise ValueError(f"{name} is missing")
        elif not optional:
            values[spec.name] = None
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def _expect(kind: type[T], value: Any, where: str, words: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{where} must be {words}, received {value!r}")
    return value
