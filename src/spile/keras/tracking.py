"""What a supervised model logs while it is fitted."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from spile.keras import losses
from spile.keras.plans import Plan
from spile.supervision.targets import MAIN, PseudoLabels, SelfDistill, term_names


class Known(keras.metrics.Mean):
    """A mean over what batches tell, by how many rows each tells it of; NaN, not known, where none does."""

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Take in a batch; of no rows it tells nothing, not NaN."""
        super().update_state(ops.where(sample_weight > 0, values, 0.0), sample_weight=sample_weight)

    def result(self) -> Any:
        """The mean."""
        return losses.share(self.total.value, self.count.value)


def logged(plan: Plan) -> list[str]:
    """Names of what is logged, in order."""
    found = []
    for name in (MAIN, *plan.names):
        targets = plan.targets[name]
        found.append(f"{name}/loss")
        for term, target in zip(term_names(targets), targets, strict=True):
            found.append(f"{name}/{term}")
            found += [f"{name}/{term}_hint"] if isinstance(target, SelfDistill) and target.hint else []
        if any(isinstance(target, PseudoLabels) for target in targets):
            found += [f"{name}/coverage", f"{name}/precision"]
        found += [f"{name}/accuracy"] if plan.task != "regression" else []
        found += [f"{name}/weight"] if name != MAIN else []
    return found
