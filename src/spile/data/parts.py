"""What a user's batch is made of: inputs, targets, perhaps ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spile.data.samples import as_labels, as_text, to_numpy
from spile.data.sequences import ID_KEYS, INPUT_KEYS, LABEL_KEYS
from spile.data.source import Label
from spile.errors import DataError

_TOKEN_KEYS = ("input_ids", "token_ids")
"""A dict with one of these is a tokenizer's, which a model takes as a whole."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A batch taken apart. `inputs` is one array, or a dict, list or tuple of them for several inputs."""

    inputs: Any
    targets: Any = None
    ids: Any = None


def split_batch(batch: Any, *, weights: bool = True) -> Parts:
    """Take a batch apart: x, (x,), (x, y), (x, y, sample weights), or a dict that names x, y and ids.

    Args:
        batch: what the user's loader yields, or its structure.
        weights: whether a tuple of three is (x, y, sample weights). Weights are not used.

    Raises `DataError` for a tuple of another length and for a dict without a known key.
    """
    if isinstance(batch, Mapping):
        return _split_mapping(batch)
    if isinstance(batch, (tuple, list)):
        if not 1 <= len(batch) <= (3 if weights else 2):
            raise _unknown_form(batch)
        return Parts(*batch[:2])
    return Parts(batch)


def _split_mapping(batch: Mapping[str, Any]) -> Parts:
    targets, ids = (
        next((batch[key] for key in keys if key in batch), None) for keys in (LABEL_KEYS, ID_KEYS)
    )
    if any(key in batch for key in _TOKEN_KEYS):
        tokens = {key: value for key, value in batch.items() if key not in LABEL_KEYS + ID_KEYS}
        return Parts(tokens, targets, ids)
    found = [key for key in INPUT_KEYS if key in batch]
    if not found:
        raise DataError(
            f"a batch has the keys {', '.join(map(repr, batch))}; needed: 'input_ids' or one of "
            f"{', '.join(map(repr, INPUT_KEYS))}. Several inputs go as (inputs, labels) or (inputs,)"
        )
    return Parts(batch[found[0]], targets, ids)


def as_inputs(inputs: Any) -> Any:
    """The inputs as the engines take them: torch tensors stay, arrays of all else become NumPy arrays.

    Raises `DataError` where there is something else than arrays of samples.
    """
    return _map(_as_array, inputs)


def batch_length(inputs: Any) -> int:
    """How many samples the inputs of a batch hold. Raises `DataError` where several inputs disagree."""
    lengths = [int(array.shape[0]) for array in leaves(inputs)]
    if len(set(lengths)) != 1:
        raise DataError(f"the inputs of a batch have {' and '.join(map(str, lengths))} samples")
    return lengths[0]


def is_images(inputs: Any) -> bool:
    """Whether `inputs`, or what describes them, are raw pixels: uint8 (n, height, width, 1, 3 or 4)."""
    dtype, shape = getattr(inputs, "dtype", None), getattr(inputs, "shape", None)
    return (
        str(getattr(dtype, "name", "")) == "uint8"
        and rank(inputs) == 4
        and shape is not None
        and shape[-1] in (1, 3, 4)
    )


def rank(value: Any) -> int | None:
    """Number of axes of an array or of what describes one; ``None`` where that is open."""
    try:
        return len(value.shape)
    except (AttributeError, TypeError, ValueError):
        return None


def as_targets(targets: Any) -> list[Label]:
    """One label a sample, from targets of shape (n,) or (n, 1), or the classes of one-hot (n, classes).

    Raises `DataError` for any other target: several a sample, a mask, a dict.
    """
    if isinstance(targets, Mapping) or _holds_arrays(targets):
        keys = ", ".join(map(repr, targets)) if isinstance(targets, Mapping) else str(len(targets))
        raise DataError(f"the targets are several ({keys}); {_ONE_LABEL}")
    if isinstance(targets, (str, bytes)) or not (isinstance(targets, Iterable) or rank(targets)):
        raise DataError(f"the targets are a {type(targets).__name__}; {_ONE_LABEL}")
    if not hasattr(targets, "shape"):
        return as_labels(targets)
    array = to_numpy(targets)
    if array.dtype.kind in "SO":  # TensorFlow's strings are bytes
        array = np.array([as_text(value) for value in array.ravel()], dtype=object).reshape(array.shape)
    if array.ndim == 2 and array.shape[1] > 1 and _is_one_hot(array):
        return as_labels(array.argmax(axis=1))
    if array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
        raise DataError(f"the targets have shape {array.shape} and are not one-hot; {_ONE_LABEL}")
    return as_labels(array)


_ONE_LABEL = (
    "a label is one number or string a sample. Yield x alone, or pass "
    "spile.data.open_source(data, labels=[...])"
)


def as_ids(ids: Any) -> list[str]:
    """The ids that came with a batch, as strings."""
    return [as_text(value) for value in (to_numpy(ids).ravel().tolist() if hasattr(ids, "shape") else ids)]


def leaves(value: Any) -> Iterator[Any]:
    """The arrays in nested dicts, lists and tuples."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _map(function, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and value:
        parts = [_map(function, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return function(value)


def _as_array(value: Any) -> Any:
    if not rank(value):
        raise _unknown_form(value)
    return value if hasattr(value, "detach") else to_numpy(value)


def _is_one_hot(array: np.ndarray[Any, Any]) -> bool:
    return bool(((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all())


def _holds_arrays(targets: Any) -> bool:
    return isinstance(targets, (tuple, list)) and any(rank(target) for target in targets)


def _unknown_form(batch: Any) -> DataError:
    shown = f"a {type(batch).__name__}"
    if isinstance(batch, (tuple, list)):
        shown += f" of {', '.join(type(part).__name__ for part in batch[:4]) or 'nothing'}"
    return DataError(
        f"a batch is {shown}; needed: x, (x, y) or a dict, where x is a tensor or array of samples, or a "
        "dict, list or tuple of them. For single samples, pass the dataset itself, or a list of them."
    )
