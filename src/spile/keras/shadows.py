"""A model's values kept apart from it: an exponential moving average of a model, or a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from spile.keras.observing import stateless
from spile.keras.trees import Inputs

_KINDS = ("float", "bfloat")


class Shadow(keras.Layer):
    """Runs a model in evaluation mode, without gradients, with values of its own that are no weights to
    train.

    The model itself is neither changed nor one of this layer's layers.
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(trainable=False, autocast=False, **kwargs)
        self._model: Callable[[], Any] = lambda: model  # a function, as Keras would track the model
        self.values = [
            self.add_weight(
                shape=variable.shape,
                dtype=variable.dtype,
                initializer="zeros",
                trainable=False,
                name=f"value_{index}",
            )
            for index, variable in enumerate(model.variables)
        ]
        for own, variable in zip(self.values, model.variables, strict=True):
            own.assign(ops.copy(variable.value))  # JAX's steps take over the buffers of what they change
        self.built = True

    @property
    def state(self) -> list[Any]:
        """The values, in the order of the model's variables."""
        return [own.value for own in self.values]

    def run(self, inputs: Inputs) -> Any:
        """The model's output."""
        model = self._model()
        with stateless(model, self.state):
            output = model(*inputs.args, **inputs.kwargs, training=False)
        return keras.tree.map_structure(ops.stop_gradient, output)

    def follow(self, decay: float) -> None:
        """Move the values towards the model's: all but a share `decay` of the way."""
        for own, variable in zip(self.values, self._model().variables, strict=True):
            now = ops.stop_gradient(variable.value)
            moving = str(variable.dtype).startswith(_KINDS)
            own.assign(own.value * decay + now * (1 - decay) if moving else now)
