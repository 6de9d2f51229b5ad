"""Which row is held out when: cross-validation splits that scikit-learn makes, shared by every point."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spile.data.folders import SPLITS
from spile.errors import ProbeError

Array = npt.NDArray[Any]
Index = npt.NDArray[np.intp]


def assign_folds(
    y: Array,
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    groups: Array | None = None,
    stratify: bool = True,
) -> Index:
    """Return (repeats, n): the fold in which each row is held out, in each repeat; the folds are numbered
    from 0.

    Stratified by `y` unless `stratify` is false (regression). Rows of one group are always held out together.
    With groups a fold may come out empty and is then left out of the numbering.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    with_groups, without = (StratifiedGroupKFold, StratifiedKFold) if stratify else (GroupKFold, KFold)
    splitter = without if groups is None else with_groups
    assigned = np.zeros((repeats, len(y)), dtype=np.intp)
    for repeat in range(repeats):
        splits = splitter(folds, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            # Harmless: a class with fewer rows than folds is held out in that many folds.
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            held_out = [test for _, test in splits.split(np.zeros(len(y)), y, groups) if len(test)]
        for fold, test in enumerate(held_out):
            assigned[repeat, test] = fold
    return assigned


def possible_folds(y: Array, *, cv: int, groups: Array | None = None, stratify: bool = True) -> int:
    """The number of folds up to `cv` that the rows allow; less than 2 means none.

    Bounded by the largest class (a rarer one is just absent from some held-out parts) and by the groups; for
    regression by two rows (or groups) a fold, as R² of a single row is undefined.
    """
    units = len(y) if groups is None else len(np.unique(groups))
    bound = min(units, int(np.unique(y, return_counts=True)[1].max())) if stratify else units // 2
    return min(cv, bound)


def group_codes(groups: Sequence[str | None]) -> Index | None:
    """Integer codes (n,) for group names, ``None`` where every row is alone; one without a name is."""
    if not any(group is not None for group in groups):
        return None
    codes: dict[Any, int] = {}
    keys = [(i,) if group is None else group for i, group in enumerate(groups)]
    found = np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=np.intp)
    return None if len(codes) == len(found) else found


def split_names(splits: Sequence[str | None]) -> list[str | None]:
    """``"train"``, ``"val"``, ``"test"`` or ``None`` for every row, as `spile.data.folders.SPLITS` reads it.

    Raises `ProbeError` for a name that is not there, whose rows would not be used by anything.
    """
    meant = {name: name if name is None else SPLITS.get(str(name).casefold()) for name in set(splits)}
    unknown = sorted(repr(str(name)) for name, known in meant.items() if name is not None and known is None)
    if unknown:
        raise ProbeError(
            f"unknown splits {', '.join(unknown)}. Allowed: {', '.join(map(repr, SPLITS))}, in any case, or "
            "none. Rename them in the split column or by spile.data.open_source(data, splits=[...]), or "
            "type: spile.probe(store, rows=[...])"
        )
    return [meant[name] for name in splits]


def selection_rows(splits: Sequence[str | None]) -> Index:
    """The rows that choosing may look at: those of the split ``"train"``, or, where there is none, those
    without a split.

    Rows of the splits ``"test"`` and ``"val"`` are never among them. Names are those of `split_names`.
    """
    names = split_names(splits)
    chosen = [i for i, split in enumerate(names) if split == "train"]
    chosen = chosen or [i for i, split in enumerate(names) if split is None]
    return np.array(chosen, dtype=np.intp)
