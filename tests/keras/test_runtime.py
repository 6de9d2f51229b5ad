"""What differs from backend to backend, behind one protocol."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from spile.keras.runtime import Runtime, runtime

BACKEND = keras.backend.backend()
BACKENDS = ("tensorflow", "jax", "torch")


def model() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a")])


def test_it_is_that_of_keras_own_backend() -> None:
    assert runtime() is sys.modules[f"spile.keras.on_{BACKEND}"]
    assert BACKEND in runtime().versions()
    assert runtime().versions()["device"]


@pytest.mark.zoo
def test_no_other_backend_was_imported() -> None:
    code = (
        "import sys, keras, numpy as np, spile\n"
        "m = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name='a')])\n"
        "tap = spile.tap(m, 'a'); tap(np.ones((2, 4))); tap.verify(np.ones((2, 4)))\n"
        "others = {'tensorflow', 'jax', 'torch'} - {keras.backend.backend()}\n"
        "print(*sorted(others & sys.modules.keys()))\n"
    )
    first, *_, last = code.replace(", numpy as np, spile", "").splitlines()
    others = code.splitlines()[3]
    assert _printed(code) == _printed("\n".join((first, others, last)))


def _printed(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_has_the_same_functions(backend: str) -> None:
    module = importlib.import_module(f"spile.keras.on_{backend}")
    for name, wanted in inspect.getmembers(Runtime, inspect.isfunction):
        if name.startswith("_"):
            continue
        own = [str(p) for p in inspect.signature(getattr(module, name)).parameters.values()]
        assert own == [str(p) for p in inspect.signature(wanted).parameters.values()][1:], name
    assert isinstance(module.least_batches, int)
    assert isinstance(module.fixed_batch, bool)


def test_a_trace_has_shapes_and_no_values() -> None:
    net, seen = model(), []

    def body(state: Any, inputs: Any) -> dict[str, Any]:
        (x,) = inputs
        seen.append((tuple(x.shape), keras.backend.standardize_dtype(x.dtype)))
        with pytest.raises(Exception):  # noqa: B017 - each backend has an error of its own
            float(ops.sum(x))
        return {}

    runtime().trace(body, net.variables, [ops.ones((2, 4), "int32")])
    assert seen == [((2, 4), "int32")]


def test_what_fails_in_a_trace_is_raised() -> None:
    def body(state: Any, inputs: Any) -> dict[str, Any]:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        runtime().trace(body, [], [ops.ones((2, 4))])


def test_the_scope_is_another_inside_of_a_vectorized_loop() -> None:
    here, inside = runtime().scope(), []

    def step(row: Any) -> Any:
        inside.append(runtime().scope())
        return row

    ops.vectorized_map(step, ops.ones((3, 2)))
    assert inside and all(scope != here for scope in inside)
    assert runtime().scope() == here

    def body(state: Any, inputs: Any) -> dict[str, Any]:
        here = runtime().scope()
        inside.clear()
        ops.vectorized_map(step, inputs[0])
        assert inside and all(scope != here for scope in inside)
        assert runtime().scope() == here
        return {}

    runtime().trace(body, [], [ops.ones((3, 2))])


def test_names_of_layers_do_not_change_the_scope() -> None:
    class Asking(layers.Layer):
        def call(self, x: Any) -> Any:
            scopes.append(runtime().scope())
            return x

    net, scopes = keras.Sequential([Asking(name="my_loop_body"), Asking(name="loop_bodywork")]), []

    def body(state: Any, inputs: Any) -> dict[str, Any]:
        scopes.clear()
        net(inputs[0])
        assert scopes == [runtime().scope()] * 2
        return {}

    net(np.ones((1, 1)))
    runtime().trace(body, [], [ops.ones((1, 1))])


def test_compiled_arrays_are_single_precision_or_whole_numbers() -> None:
    def body(state: Any, inputs: Any) -> dict[str, Any]:
        whole = ops.cast(inputs, "int32")
        return {"half": ops.cast(inputs, "bfloat16"), "single": inputs, "whole": whole}

    found = runtime().compiled(body, [])(np.full((2, 3), 1.5, "float32"))
    assert {name: value.dtype.name for name, value in found.items()} == {
        "half": "float32", "single": "float32", "whole": "int32",
    }  # fmt: skip
    assert all(isinstance(value, np.ndarray) and value.shape == (2, 3) for value in found.values())
    assert (found["half"] == 1.5).all()


def test_without_gradients_nothing_is_kept() -> None:
    net = model()
    with runtime().without_gradients():
        y = net(np.ones((2, 4), "float32"))
    assert not getattr(y, "requires_grad", False)
