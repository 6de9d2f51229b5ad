"""Keras on JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.extend.core import get_opaque_trace_state

from spile.choosing import EngineUnfit
from spile.keras.runtime import Body, Compiled, Scalars

least_batches = 1
fixed_batch = True
openvino_helps = False


def trace(body: Body, variables: Sequence[keras.Variable], inputs: Any) -> None:
    """Run `body` once on tracers of exactly the shapes of `inputs`."""

    def traced(state: Any, given: Any) -> None:
        body(state, given)

    jax.eval_shape(traced, [variable.value for variable in variables], inputs)


def scope() -> object:
    """The trace that is being made."""
    return get_opaque_trace_state(convention="flax")


def compiled(body: Body, variables: Sequence[keras.Variable]) -> Compiled:
    """A `jax.jit` program; the variables are arguments, so that their values are not compiled in."""
    program = jax.jit(body)

    def run(inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        found = program([variable.value for variable in variables], inputs)
        return {name: _array(value) for name, value in found.items()}

    return run


def openvino(body: Body, inputs: Any) -> Compiled:
    """Its frontend for JAX does not know the convolutions of Keras (OpenVINO 2026.4)."""
    raise EngineUnfit("OpenVINO cannot convert what JAX traces of a Keras model")


def gradients(body: Scalars, variables: Sequence[keras.Variable]) -> list[list[np.ndarray[Any, Any] | None]]:
    """One forward pass, and one backward pass a scalar."""
    values = [variable.value for variable in variables]
    scalars, back = jax.vjp(lambda state: jnp.stack(body(state)), values)
    return [[_array(each) for each in back(row)[0]] for row in jnp.eye(len(scalars), dtype=scalars.dtype)]


def without_gradients() -> AbstractContextManager[Any]:
    """JAX keeps nothing outside `jax.grad`."""
    return nullcontext()


def tell(function: Callable[..., None], *values: Any) -> None:
    """Hand values to the host when they are computed, also from a compiled pass."""
    jax.debug.callback(function, *values)


def settle() -> None:
    """Wait for all that is told."""
    jax.effects_barrier()


def versions() -> dict[str, str]:
    """JAX's version, and the device."""
    return {"jax": jax.__version__, "device": jax.default_backend()}


def _array(value: Any) -> np.ndarray[Any, Any]:
    half = value.dtype in (jnp.float16, jnp.bfloat16)
    return np.asarray(value.astype(jnp.float32) if half else value)
