"""A callback of Lightning that keeps the maps of the model it trains; see `spile.MapBank.keeper`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spile.errors import MissingDependency

if TYPE_CHECKING:
    from spile.banking import Keeper, MapBank

try:
    import lightning.pytorch as pl
except ImportError:
    raise MissingDependency("lightning", extra="lightning", purpose="KeepMaps") from None


class KeepMaps(pl.Callback):
    """Fills a bank from the training passes. `origins` finds in a batch where its images come from.

    By default that is the third part of it, as ``spile.feed(..., origins=True)`` gives them.
    """

    def __init__(self, bank: MapBank, *, origins: Callable[[Any], Any] = lambda batch: batch[2]) -> None:
        self.bank = bank
        self._origins = origins
        self._keeper: Keeper | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch."""
        self._keeper = self.bank.keeper()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Say which samples come."""
        assert self._keeper is not None
        found = self._origins(batch)
        self._keeper.step(found.ids, frames=found.frames, epoch=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The maps serve from the next epoch on."""
        assert self._keeper is not None
        self._keeper.end(trainer.current_epoch)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the model as it was, also after an exception."""
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
