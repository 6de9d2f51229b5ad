"""Keras on TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spile import on_openvino
from spile.choosing import EngineUnfit
from spile.cores import usable_cores
from spile.keras.runtime import Body, Compiled, Scalars

least_batches = 1
fixed_batch = False
openvino_helps = True

_LOOP_BODY = re.compile(r"(?:^|/)loop_body(?:_\d+)?(?=/|$)")
"""Where TensorFlow traces one step of a vectorized loop; a tensor there is that of the first step alone."""


def trace(body: Body, variables: Sequence[keras.Variable], inputs: Any) -> None:
    """Run `body` once on symbolic tensors of exactly the shapes of `inputs`."""
    specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), inputs)
    tf.function(lambda given: body(None, given), autograph=False).get_concrete_function(specs)


def scope() -> object:
    """The graph that is being traced, and how deep in loops that `tf.vectorized_map` traces in place."""
    if tf.executing_eagerly():
        return None
    graph = tf.compat.v1.get_default_graph()
    return graph, len(_LOOP_BODY.findall(graph.get_name_scope()))


def compiled(body: Body, variables: Sequence[keras.Variable]) -> Compiled:
    """A `tf.function` for batches of any size; variables are read when it runs."""
    functions: dict[Any, Any] = {}

    def run(inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        arrays = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        specs = tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), arrays)
        key = str(specs)
        if key not in functions:
            functions[key] = tf.function(
                lambda given: body(None, given), input_signature=[specs], autograph=False
            )
        return {name: _array(value) for name, value in functions[key](arrays).items()}

    return run


def openvino(body: Body, inputs: Any) -> Compiled:
    """A program with the weights as they are now."""
    leaves = tf.nest.flatten(inputs)
    texts = [leaf.ndim == 2 and leaf.dtype.kind in "iu" for leaf in leaves]  # of any length
    shapes = [leaf.shape[2:] if text else leaf.shape[1:] for leaf, text in zip(leaves, texts, strict=True)]
    specs = [
        tf.TensorSpec([*[None] * (leaf.ndim - len(shape)), *shape], leaf.dtype)
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]

    def flat(*given: Any) -> dict[str, Any]:
        found = body(None, tf.nest.pack_sequence_as(inputs, given))
        return {name: tf.identity(_whole(value)) for name, value in found.items()}

    concrete = tf.function(flat, input_signature=specs, autograph=False).get_concrete_function()
    _require_no_state(concrete.graph)
    results = concrete.structured_outputs
    names = {tensor.name: name for name, tensor in zip(sorted(results), concrete.outputs, strict=True)}

    def iterator() -> Any:
        from openvino.frontend.tensorflow.graph_iterator import GraphIteratorTFGraph

        return GraphIteratorTFGraph(concrete.graph, False, output_names_map=names)

    program = on_openvino.Program(
        "tf", iterator, inputs=len(leaves), outputs=list(results), precision="float32", threads=_threads()
    )
    return lambda batch: dict(zip(results, program(tf.nest.flatten(batch)), strict=True))


def gradients(body: Scalars, variables: Sequence[keras.Variable]) -> list[list[np.ndarray[Any, Any] | None]]:
    """One forward pass, and one backward pass a scalar."""
    tensors = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensors)
        scalars = body(None)
    found = [tape.gradient(scalar, tensors) for scalar in scalars]
    return [[None if g is None else _array(tf.convert_to_tensor(g)) for g in each] for each in found]


def without_gradients() -> AbstractContextManager[Any]:
    """TensorFlow keeps nothing outside a tape."""
    return nullcontext()


def tell(function: Callable[..., None], *values: Any) -> None:
    """Hand values to the host when they are computed, also from a compiled pass, but for one of XLA."""

    def told(*arrays: Any) -> list[Any]:
        function(*arrays)
        return []

    if tf.executing_eagerly():
        function(*(value.numpy() for value in values))
    else:
        tf.numpy_function(told, values, [])


def settle() -> None:
    """All is told already."""


def versions() -> dict[str, str]:
    """TensorFlow's version, and the device."""
    gpus = tf.config.list_logical_devices("GPU")
    return {"tensorflow": tf.__version__, "device": "gpu" if gpus else "cpu"}


def _array(value: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = _whole(value).numpy()
    return array


def _whole(value: Any) -> Any:
    return tf.cast(value, tf.float32) if value.dtype in (tf.float16, tf.bfloat16) else value


def _threads() -> int:
    return tf.config.threading.get_intra_op_parallelism_threads() or usable_cores()


def _require_no_state(graph: Any) -> None:
    """Raise `EngineUnfit` where the pass writes into the model, which a program of its own cannot do."""
    inner = [node for function in graph.as_graph_def().library.function for node in function.node_def]
    for node in (*graph.as_graph_def().node, *inner):
        if node.op.startswith("Assign"):
            raise EngineUnfit("the pass changes the model's own variables")
