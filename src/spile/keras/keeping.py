"""Raw maps out of the training passes of a Keras model, compiled ones too; see `spile.banking.Keeper`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from spile.augmentation.geometry import Frame, Grid
from spile.augmentation.settings import watched_point
from spile.errors import AugmentationError
from spile.interfaces import Take
from spile.keras.feeding import Batches
from spile.keras.guides import Guide
from spile.keras.names import names_of
from spile.keras.runtime import runtime
from spile.keras.trees import is_array, tensor_of
from spile.keras.watching import wrap_call

if TYPE_CHECKING:
    from spile.banking import Keeper, MapBank


class Watched:
    """Hands on the reduced activation of every training pass; `close` ends it."""

    leads = True

    def __init__(self, guide: Guide, take: Take, *, pictures: bool = False) -> None:
        self._guide, self._take, self._pictures = guide, take, pictures
        point = watched_point(guide.point, guide.settings)
        self._images: Any = None
        self.active = False
        layer = next(layer for layer, names in names_of(guide.model).items() if point.path in names)
        self._undo = [wrap_call(guide.model, self._begin), wrap_call(layer, self._read)]

    def grid(self, shape: tuple[int, ...], size: tuple[int, int]) -> Grid:
        """Where the cells lie in pictures of `size`."""
        first = keras.config.image_data_format() == "channels_first"
        seen = (shape[2], shape[3]) if first else (shape[1], shape[2])
        grid = self._guide.grid(ops.zeros((1, *shape[1:])))
        return grid.in_source(Frame.whole(size, seen))

    def gathered(self, made: list[Any]) -> list[Any]:
        """Those of this process, the only one."""
        return made

    def close(self) -> None:
        """Leave the model as it was."""
        for undo in reversed(self._undo):
            undo()

    def _begin(self, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        images = next((v for v in (*args, *kwargs.values()) if is_array(v) and len(v.shape) == 4), None)
        training = kwargs.get("training", not getattr(self._guide.model, "_call_has_training_arg", True))
        self._images = images if training else None
        try:
            return run()
        finally:
            self._images = None

    def _read(self, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = run()
        images, self._images = self._images, None
        if images is None:
            return output
        shape = tuple(images.shape)
        told = [self._guide.kept(output)]
        if self._pictures:
            told.append(
                ops.cast(ops.clip(ops.round(ops.cast(tensor_of(images), "float32")), 0, 255), "uint8")
            )

        def take(kept: Any, pixels: Any = None) -> None:
            self._take(
                self._guide.reduced(np.asarray(kept)), shape, None if pixels is None else np.asarray(pixels)
            )

        runtime().tell(take, *told)
        return output


class KeepMaps(keras.callbacks.Callback):
    """Fills a bank from the training passes of `fit`, of the very model that the bank's guide reads.

    Which sample a picture is of is told by its pixels, as `batches`, of `spile.feed`, gave them out: so the
    model must get them as they are, numbers of 0..255, and scale them itself. In a compiled step the layer
    hands its map to the host. TensorFlow's XLA cannot do that: ``compile(..., jit_compile=False)``.
    """

    def __init__(self, bank: MapBank, batches: Batches) -> None:
        super().__init__()
        self.bank = bank
        self._batches = batches
        self._keeper: Keeper | None = None
        batches.remember()

    def set_model(self, model: keras.Model) -> None:
        """Begin to watch, before the step is traced."""
        super().set_model(model)
        same: bool = getattr(self.bank.guide, "model", None) is model
        if not same:
            raise AugmentationError(
                "KeepMaps keeps the maps of the model that is trained: make the bank's guide of that model"
            )
        if keras.backend.backend() == "tensorflow" and model.jit_compile:
            raise AugmentationError(
                "XLA cannot hand maps to the host: write model.compile(..., jit_compile=False) for KeepMaps"
            )
        self.close()
        self._keeper = self.bank.keeper(recognise=self._batches.recognised)
        model.train_function = None  # one that is traced already would not tell

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras' own signal."""
        assert self._keeper is not None
        self._keeper.begin(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The maps serve from the next epoch on."""
        assert self._keeper is not None
        runtime().settle()
        self._keeper.end(epoch)
        self._batches.forget()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the model as it was."""
        self.close()
        self.model.train_function = None

    def close(self) -> None:
        """Stop watching; `fit` does it at its end, but not where it was interrupted."""
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
