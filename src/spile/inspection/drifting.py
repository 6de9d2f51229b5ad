"""Drift: whether two stores of one model hold samples of one distribution.

The energy distance of Székely and Rizzo 2013 ("Energy statistics: a class of statistics based on distances"),
with a permutation test: no bandwidth to choose, zero only for equal distributions, and a coefficient between
0 and 1 that is comparable between layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spile.errors import StoreError
from spile.inspection.reading import chosen_points, drawn, flat
from spile.store import Store
from spile.store.duplicates import linked
from spile.store.manifest import require_same

if TYPE_CHECKING:
    from rich.table import Table

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

_SAME_MODEL = ("architecture", "weights", "mode", "preprocessing", "precision")
_AT_A_TIME = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftRow:
    """One point of both stores."""

    point: str
    coefficient: float
    """0 for equal distributions, 1 for two that are constant and differ."""
    expected: float
    """Its mean over the permutations: what samples of one distribution show."""
    p_value: float
    """Of the permutation test, for this point alone."""
    shuffled: Float
    """(permutations,) the coefficient in each permutation, the same ones for all points."""
    strangeness: Float
    """(n,) of the samples that were drawn: how much nearer to the later store than to the earlier one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drift:
    """What the points of two stores say, and the samples that were compared."""

    table: tuple[DriftRow, ...]
    rows: Array
    """(n,) rows of the later store that were drawn."""
    before: int
    """How many of the earlier store were drawn."""
    permutations: int

    @property
    def p_value(self) -> float:
        """Of all points together: `joint_p_value` of their coefficients."""
        return joint_p_value(np.stack([[row.coefficient, *row.shuffled] for row in self.table]))

    @property
    def strongest(self) -> DriftRow:
        """The point that tells the two apart best."""
        return max(self.table, key=lambda row: row.coefficient - row.expected)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        keys = ("point", "coefficient", "expected", "p_value")
        return {
            "p_value": self.p_value,
            "permutations": self.permutations,
            "samples": [self.before, len(self.rows)],
            "table": [{key: getattr(row, key) for key in keys} for row in self.table],
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"Drift: {self.before:,} earlier samples, {len(self.rows):,} later ones")
        for heading in ("point", "energy coefficient", "without drift", "p"):
            table.add_column(heading, justify="left" if heading == "point" else "right", overflow="fold")
        for row in self.table:
            numbers = (f"{row.coefficient:.4f}", f"{row.expected:.4f}", f"{row.p_value:.3g}")
            table.add_row(*map(Text, (row.point, *numbers)))
        return table


def drift(
    store: Store,
    before: Store,
    *,
    points: Sequence[str] | None = None,
    max_rows: int = 1000,
    permutations: int = 999,
    seed: int = 0,
) -> Drift:
    """Compare the samples of a store with earlier ones, extracted by the same model.

    Features are divided by their standard deviation over both. Where the stores have groups, whole groups
    change sides in the permutations, since their samples are not independent. Memory and time go with the
    square of `max_rows`.

    Args:
        store: The later samples.
        before: The earlier ones. Model, weights, preprocessing and points must be the same.
        points: By default all that both have.
        max_rows: Samples of each store, drawn at random.
        permutations: The smallest p-value is one over this number plus one.
        seed: Of the draw and the permutations.

    Raises:
        FingerprintMismatch: The stores were made by different models or settings.
        StoreError: No common point, or fewer than two samples or groups in one of them.
    """
    if points is None:
        points = [
            name for name in chosen_points(store, None) if name in before and not before.points[name].variable
        ]
        if not points:
            raise StoreError(
                f"the stores have no point in common: {', '.join(store.points)} and "
                f"{', '.join(before.points)}"
            )
    names = chosen_points(store, points)
    chosen_points(before, points)
    _require_one_model(store, before, names)
    now, then = drawn(len(store), max_rows, seed), drawn(len(before), max_rows, seed)
    units = np.concatenate([_units(before, then), len(before) + _units(store, now)])
    table = []
    for name in names:
        x, y = flat(before[name], then), flat(store[name], now)
        test = energy_test(x, y, units=units, permutations=permutations, seed=seed)
        table.append(DriftRow(point=name, **vars(test)))
    return Drift(table=tuple(table), rows=now, before=len(then), permutations=permutations)


@dataclass(frozen=True, eq=False)
class EnergyTest:
    """The energy coefficient of two samples and its permutation test."""

    coefficient: float
    expected: float
    p_value: float
    shuffled: Float
    strangeness: Float


def energy_test(
    x: Array, y: Array, *, units: Array | None = None, permutations: int = 999, seed: int = 0
) -> EnergyTest:
    """Whether rows `x` (n, d) and `y` (m, d) come of one distribution.

    `units` (n + m,) number what is exchanged as a whole, `x` first; by default every row. No unit has rows on
    both sides.
    """
    from scipy.spatial.distance import cdist

    both = np.concatenate([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    spread = both.std(axis=0)
    both = (both - both.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    distances = cdist(both, both)
    later = np.arange(len(both)) >= len(x)
    names, unit = np.unique(np.arange(len(both)) if units is None else units, return_inverse=True)
    side = np.zeros(len(names), bool)
    side[unit[later]] = True
    if side.all() or not side.any() or min(side.sum(), (~side).sum()) < 2:
        raise StoreError("drift needs two samples, or groups of samples, or more of either store")
    rng = np.random.default_rng(seed)
    sides = [side, *(rng.permutation(side) for _ in range(permutations))]
    found = np.concatenate(
        [
            _coefficients(distances, np.stack(sides[i : i + _AT_A_TIME])[:, unit])
            for i in range(0, len(sides), _AT_A_TIME)
        ]
    )
    observed, shuffled = found[0], found[1:]
    extreme = int((shuffled >= observed * (1 - 1e-9)).sum())
    strangeness = distances[later][:, ~later].mean(axis=1) - distances[later][:, later].mean(axis=1)
    return EnergyTest(
        float(observed),
        float(shuffled.mean()) if permutations else float("nan"),
        (1 + extreme) / (1 + permutations),
        shuffled,
        strangeness,
    )


def joint_p_value(coefficients: Float) -> float:
    """The p-value of the strongest of several tests (points, 1 + permutations), the observed one first.

    Westfall and Young 1993: every test in units of its own spread, the largest of them held against the
    largest in each permutation. Unlike a correction by the number of points, it does not punish layers for
    saying the same.
    """
    spread = coefficients.std(axis=1, keepdims=True)
    units = (coefficients - coefficients.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    largest = units.max(axis=0)
    return float((largest >= largest[0] - 1e-9).mean())


def _coefficients(distances: Float, later: Array) -> Float:
    """(k,) energy coefficients for k ways (k, n) to say which rows are the later ones."""
    chosen = later.astype(np.float64)
    m = chosen.sum(axis=1)
    n = len(distances) - m
    of_later = ((chosen @ distances) * chosen).sum(axis=1)
    touching = chosen @ distances.sum(axis=1)  # the sum over rows of either side, to the later ones
    across = touching - of_later
    of_earlier = distances.sum() - 2 * touching + of_later
    between = across / (m * n)
    energy = 2 * between - of_later / m**2 - of_earlier / n**2
    return np.asarray(np.maximum(energy, 0.0) / np.where(between > 0, 2 * between, 1.0))


def _units(store: Store, rows: Array) -> Array:
    """What is exchanged as a whole: groups, else rows."""
    groups = None if store.groups is None else [store.groups[row] for row in rows]
    return linked(len(rows), np.empty((0, 2), np.int64), groups)


def _require_one_model(store: Store, before: Store, points: Sequence[str]) -> None:
    for name in points:
        ours, theirs = store[name], before[name]
        require_same(
            before.path or "memory", theirs.manifest.fingerprinted, ours.manifest.fingerprinted, _SAME_MODEL
        )
        kept = ("address", "pool", "shape")
        require_same(before.path or "memory", theirs.spec.identity, ours.spec.identity, kept)
