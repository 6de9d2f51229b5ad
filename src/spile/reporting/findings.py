"""What ``run.json`` holds of a diagnosis. Pure: the schema alone; `spile.reporting.record` reads it."""

from __future__ import annotations

from dataclasses import dataclass

Label = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture with its id and label, and, where it applies, how far from its query it is."""

    id: str
    label: Label = None
    picture: str | None = None
    distance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A number for each row and column, null where there is none."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    words: str = ""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(line) != len(self.columns) for line in self.values):
            raise ValueError(
                f"needs {len(self.rows)} × {len(self.columns)} values, as many as there are names"
            )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What was found at one point. `order` is its depth rank; the raw input has none."""

    point: str
    order: int | None = None
    dims: int | None = None
    effective_rank: float | None = None
    logme: float | None = None
    h_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class WrongLabel:
    """A sample, the label that is more likely, and the probability of its own label."""

    sample: Sample
    suggested: Label
    confidence: float


@dataclass(frozen=True, kw_only=True)
class WrongLabels:
    """Labels that look wrong: `total` of `looked_at`, the worst of them with their pictures."""

    point: str
    total: int
    looked_at: int
    worst: tuple[WrongLabel, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitPairs:
    """Near-duplicates by the splits of their samples."""

    a: str
    b: str
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two samples that are nearly the same."""

    a: Sample
    b: Sample
    split_a: str | None = None
    split_b: str | None = None
    distance: float


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Samples that are there more than once; `leaked` of them have a near-duplicate in another split."""

    point: str
    total: int
    samples: int
    leaked: int | None = None
    radius: float
    splits: tuple[SplitPairs, ...] = ()
    shown: tuple[Pair, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DriftRow:
    """The energy coefficient of one point, what it is without drift, and the permutation test's p-value."""

    point: str
    order: int | None = None
    coefficient: float
    expected: float | None = None
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Two stores of one model. `p_value` is that of all points together; `strangest` are later samples."""

    earlier: str
    before: int
    after: int
    permutations: int
    p_value: float
    strongest: str
    table: tuple[DriftRow, ...]
    strangest: tuple[Sample, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A diagnosis of a store. What is null was not looked at, and `notes` say why."""

    samples: int
    grids: tuple[Grid, ...] = ()
    layers: tuple[Layer, ...] = ()
    wrong_labels: WrongLabels | None = None
    duplicates: NearDuplicates | None = None
    drift: Drift | None = None
    notes: tuple[str, ...] = ()
