"""How alike two layers are: centred kernel alignment (CKA) with a linear kernel, unbiased over batches.

Kornblith et al. 2019 (CKA); Song et al. 2012, eq. 5 (the unbiased estimator of HSIC); Nguyen et al. 2021,
section 3 (both numerator and denominator averaged over batches, so that the batch size does not matter).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spile.errors import StoreError
from spile.inspection.reading import chosen_points, flat
from spile.store import Store

if TYPE_CHECKING:
    from rich.table import Table

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

LEAST_ROWS = 4
"""The unbiased estimator divides by n - 3."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarity:
    """CKA of every point of one store (p) with every point of another, or of the same (q)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float
    """(p, q): 1 for layers that differ by a rotation and a scale, about 0 for unrelated ones; being unbiased,
    slightly negative at times. NaN where a point does not vary."""
    stderr: Float | None
    """(p, q) jackknife over the batches; ``None`` for one batch."""
    samples: int
    """How many were compared, the same for every pair."""
    batches: int
    within: bool
    """Whether both sides are the same points of one store."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            "values": self.values.tolist(),
            "stderr": None if self.stderr is None else self.stderr.tolist(),
            "samples": self.samples,
            "batches": self.batches,
        }

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"CKA, {self.samples:,} samples", box=None, header_style="bold", pad_edge=False)
        for heading in ("", *self.columns):
            table.add_column(heading, justify="right" if heading else "left", overflow="fold")
        for name, line in zip(self.rows, self.values, strict=True):
            table.add_row(*map(Text, [name, *("–" if np.isnan(v) else f"{v:.2f}" for v in line)]))
        return table

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        page = StringIO()
        Console(file=page, width=140, color_system=None).print(self)
        return page.getvalue().rstrip()


def similarity(
    store: Store,
    other: Store | None = None,
    *,
    points: Sequence[str] | None = None,
    other_points: Sequence[str] | None = None,
    batch_rows: int = 256,
    max_rows: int = 4096,
    seed: int = 0,
) -> Similarity:
    """CKA between the points of a store, or between those of two stores of the same samples.

    Samples of two stores are matched by id, so that one may lack what the other has. Batches are drawn at
    random: in the order of a store, which is often that of its classes, each would show one class alone.
    Memory holds one Gram matrix of a batch a point.

    Args:
        store: What `spile.extract` returned, or `spile.open`.
        other: Another model, or the same after more training, on the same samples.
        points: By default all that hold as many numbers for every sample.
        other_points: Those of `other`.
        batch_rows: Samples a batch.
        max_rows: Samples at most, drawn at random.
        seed: Of the draw.

    Raises `StoreError` where fewer than four samples are common, or a point has no fixed length.
    """
    if batch_rows < LEAST_ROWS or max_rows < LEAST_ROWS:
        raise StoreError(
            f"batch_rows={batch_rows}, max_rows={max_rows}: CKA needs {LEAST_ROWS} samples a batch or more"
        )
    names = chosen_points(store, points)
    left = [store[name] for name in names]
    if other is None:
        at = np.stack([np.arange(len(store))] * 2)
        right, other_names = [], names
    else:
        other_names = chosen_points(other, other_points)
        right = [other[name] for name in other_names]
        at = _common(store, other)
    batches = list(_random_batches(at.shape[1], batch_rows, max_rows, seed))

    def features() -> Iterator[list[Float]]:
        for batch in batches:
            mine = [flat(column, at[0, batch]) for column in left]
            yield mine + [flat(column, at[1, batch]) for column in right]

    values, stderr = minibatch_cka(features())
    p = len(names)
    across = slice(0, p) if other is None else slice(p, None)
    return Similarity(
        rows=tuple(names),
        columns=tuple(other_names),
        values=values[:p, across],
        stderr=None if stderr is None else stderr[:p, across],
        samples=sum(map(len, batches)),
        batches=len(batches),
        within=other is None,
    )


def minibatch_cka(batches: Iterable[Sequence[Array]]) -> tuple[Float, Float | None]:
    """CKA (p, p) of p sets of features, from batches of matching rows: p arrays (n, d) each, n >= 4.

    The second value is the jackknife standard error over the batches, ``None`` for a single one.
    """
    each = np.stack([unbiased_hsic(np.stack([_gram(x) for x in batch])) for batch in batches])
    values = _normalised(each.mean(axis=0))
    if len(each) < 2:
        return values, None
    left_out = np.stack([_normalised(np.delete(each, i, axis=0).mean(axis=0)) for i in range(len(each))])
    spread = np.square(left_out - left_out.mean(axis=0)).sum(axis=0)
    return values, np.sqrt((len(each) - 1) / len(each) * spread)


def unbiased_hsic(grams: Float) -> Float:
    """HSIC (p, p) of all pairs of Gram matrices (p, n, n), n >= 4 (Song et al. 2012, eq. 5)."""
    n = grams.shape[1]
    bare = grams.copy()
    bare[:, np.arange(n), np.arange(n)] = 0.0
    flattened, sums = bare.reshape(len(bare), -1), bare.sum(axis=2)
    totals = sums.sum(axis=1)
    traces = flattened @ flattened.T  # tr(K L) of symmetric matrices
    means = np.outer(totals, totals) / ((n - 1) * (n - 2))
    crossed = 2 / (n - 2) * (sums @ sums.T)
    return np.asarray((traces + means - crossed) / (n * (n - 3)))


def _gram(x: Array) -> Float:
    """(n, n) of rows less their mean, which changes no estimate but keeps digits; rounding does not vary."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    varies = np.ptp(x, axis=0) > len(x) * np.finfo(np.float64).eps * np.abs(mean)
    centred = np.where(varies, x - mean, 0.0)
    return np.asarray(centred @ centred.T)


def _normalised(hsic: Float) -> Float:
    own = np.diagonal(hsic)
    scale = np.sqrt(np.where(own > 0, own, np.nan))
    return np.asarray(hsic / np.outer(scale, scale))


def _common(store: Store, other: Store) -> Array:
    """(2, n): the rows of either store that hold the same samples, in the order of the first."""
    where = {sample: row for row, sample in enumerate(other.ids.tolist())}
    found = [(row, where[sample]) for row, sample in enumerate(store.ids.tolist()) if sample in where]
    if len(found) < LEAST_ROWS:
        raise StoreError(
            f"the stores have {len(found)} samples in common, by id (the first are {store.ids[0]!r} and "
            f"{other.ids[0]!r}): extract both from the same data"
        )
    return np.array(found).T


def _random_batches(n: int, batch_rows: int, max_rows: int, seed: int) -> Iterator[Array]:
    """Disjoint random batches of about `batch_rows` of n rows; fewer rows than two batches make one."""
    if n < LEAST_ROWS:
        raise StoreError(f"CKA needs {LEAST_ROWS} samples or more, not {n}")
    order = np.random.default_rng(seed).permutation(n)[:max_rows]
    count = max(1, len(order) // batch_rows)
    size = len(order) // count
    for index in range(count):
        yield np.sort(order[index * size : (index + 1) * size])
