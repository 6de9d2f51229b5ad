"""`diagnose`: everything that a store tells of its samples and layers, and the page about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spile.data import Source, Stream, open_source
from spile.errors import MissingDependency, ProbeError, StoreError
from spile.inspection.alignment import Similarity, similarity
from spile.inspection.drifting import Drift, drift
from spile.inspection.hints import Hint, hints
from spile.inspection.mislabelled import LabelErrors, label_errors
from spile.inspection.ranks import Rank, effective_rank
from spile.inspection.reading import chosen_points
from spile.inspection.record import write_record
from spile.reporting import write_report
from spile.store import Duplicates, Store

if TYPE_CHECKING:
    from rich.console import Group

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """What was found. ``None`` where it was not asked for or cannot be told; `notes` say why."""

    points: tuple[str, ...]
    similarity: Similarity | None
    """Of the points among each other."""
    beside: Similarity | None
    """Of the points with those of another store."""
    ranks: tuple[Rank, ...]
    hints: tuple[Hint, ...]
    label_errors: LabelErrors | None
    duplicates: Duplicates | None
    leaked: int | None
    """Samples with a near-duplicate in another split; ``None`` without splits."""
    drift: Drift | None
    notes: tuple[str, ...]
    report: Path | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        copies = self.duplicates
        return {
            "points": list(self.points),
            "similarity": None if self.similarity is None else self.similarity.to_json(),
            "beside": None if self.beside is None else self.beside.to_json(),
            "ranks": [vars(rank) for rank in self.ranks],
            "hints": [vars(hint) for hint in self.hints],
            "label_errors": None if self.label_errors is None else self.label_errors.to_json(),
            "duplicates": None
            if copies is None
            else {
                "point": copies.point,
                "radius": copies.pairs.radius,
                "pairs": copies.ids.tolist(),
                "distances": copies.pairs.distances.tolist(),
                "leaked": self.leaked,
            },
            "drift": None if self.drift is None else self.drift.to_json(),
            "notes": list(self.notes),
            "report": None if self.report is None else str(self.report),
        }

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title="Layers", title_justify="left")
        hinted = {hint.point: hint for hint in self.hints}
        headings = ("point", "effective rank", "dims", *(("LogME", "H-score") if hinted else ()))
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "point" else "right", overflow="fold")
        for rank in self.ranks:
            hint = hinted.get(rank.point)
            cells = [rank.point, f"{rank.rank:.1f}", str(rank.dims)]
            if hint is not None:
                cells += [f"{hint.logme:.3f}", "" if hint.h_score is None else f"{hint.h_score:.3f}"]
            table.add_row(*map(Text, cells))
        return Group(table, *map(Text, self._lines()))

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        page = StringIO()
        Console(file=page, width=110, color_system=None).print(self)
        return page.getvalue().rstrip()

    def _lines(self) -> list[str]:
        lines = ["LogME and H-score are hints; spile probe chooses"] if self.hints else []
        wrong, copies = self.label_errors, self.duplicates
        if wrong is not None:
            lines.append(f"{len(wrong)} of {wrong.looked_at:,} labels look wrong, by {wrong.point}")
        if copies is not None:
            across = f", {self.leaked} samples across splits" if self.leaked else ""
            lines.append(f"{len(copies)} pairs of near-duplicates{across}, by {copies.point}")
        if self.drift is not None:
            lines.append(f"drift: p = {self.drift.p_value:.3g}, most at {self.drift.strongest.point}")
        lines += self.notes
        if self.report is not None:
            lines.append(f"report: {self.report}")
        return lines


def diagnose(
    store: Store,
    out: str | os.PathLike[str] | None = None,
    *,
    data: Any = None,
    beside: Store | None = None,
    before: Store | None = None,
    points: Sequence[str] | None = None,
    seed: int = 0,
    title: str | None = None,
    command: str | None = None,
) -> Diagnosis:
    """Look for what is wrong with samples, labels and layers, before or after choosing one.

    Similarity of layers (`similarity`), effective rank (`effective_rank`), near-duplicates and whether they
    lie across splits (`Store.near_duplicates`), labels that look wrong (`label_errors`), drift (`drift`), and
    two hints at what transfers (`hints`).

    Args:
        store: What `spile.extract` returned, or `spile.open`.
        out: A folder for ``run.json`` and ``report.html``; nothing is written without.
        data: What the store was made from, for the pictures of the report.
        beside: Another model's store of the same samples, to be compared layer by layer.
        before: An earlier store of the same model, to be compared sample by sample.
        points: By default all that hold as many numbers for every sample.
        seed: Of every draw.
        title: Of the report.
        command: What was typed, for the report.

    What the store does not allow (no labels, no cleanlab) is left out, and `Diagnosis.notes` say why.
    """
    names = chosen_points(store, points)
    notes: list[str] = []

    def tried(what: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except (MissingDependency, ProbeError, StoreError) as error:
            notes.append(f"{what}: {error}")
            return None

    copies = tried("near-duplicates", store.near_duplicates)
    groups = None if copies is None else copies.groups
    alike = tried("similarity", lambda: similarity(store, points=names, seed=seed))
    ranks = tried("effective rank", lambda: effective_rank(store, points=names, seed=seed)) or ()
    wrong = tried("label errors", lambda: label_errors(store, groups=groups, seed=seed))
    hinted = tried("LogME and H-score", lambda: hints(store, points=names, seed=seed)) or ()
    other = None if beside is None else similarity(store, beside, points=names, seed=seed)
    moved = None if before is None else drift(store, before, points=points, seed=seed)
    splits = store.splits
    found = Diagnosis(
        points=tuple(names),
        similarity=alike,
        beside=other,
        ranks=ranks,
        hints=hinted,
        label_errors=wrong,
        duplicates=copies,
        leaked=None if copies is None or splits is None else len(copies.leaked(splits)),
        drift=moved,
        notes=tuple(notes),
        report=None,
    )
    if out is None:
        return found
    source: Source | Stream | None = None if data is None else open_source(data)
    folder = Path(out)
    write_record(folder, found, store, source=source, before=before, title=title, command=command)
    return replace(found, report=write_report(folder))
