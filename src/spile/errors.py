"""Every error spile raises on purpose. The message names the value, what is allowed, and what to type."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SpileError(Exception):
    """Base of every error that spile raises on purpose; the command line prints it as one line."""


class AddressError(SpileError, LookupError):
    """An address does not parse, matches nothing, or does not name exactly one place."""


class PoolError(SpileError, ValueError):
    """A pool is unknown, or does not fit the activation it was asked to pool."""


class CaptureError(SpileError, RuntimeError):
    """A point of a tap fired too rarely, too often, or differs from the reference."""


class ModelError(SpileError, ValueError):
    """A model reference does not resolve, or a model cannot be used the way that was asked."""


class DataError(SpileError, ValueError):
    """The data cannot be used: nothing to read, wrong columns, too many bad samples."""


class StoreError(SpileError, RuntimeError):
    """A store cannot be created, opened or written."""


class FingerprintMismatch(StoreError):  # noqa: N818 - the name is part of the public API
    """The store was made by something that gives other values; the message shows the fields that differ."""


class ProbeError(SpileError, ValueError):
    """A probe cannot be fitted: one class only, too few rows, an unknown estimator."""


class SupervisionError(SpileError, ValueError):
    """Auxiliary heads, their targets or weights do not fit the model, the task or each other."""


class AugmentationError(SpileError, ValueError):
    """A guide, a policy or kept maps do not fit the model, the images or each other."""


class TrainingError(SpileError, ValueError):
    """A model cannot be trained as asked: labels, rows, options, or a run that is there already."""


class MissingDependency(SpileError, ImportError):  # noqa: N818 - says what is missing
    """An optional package is not installed; the message holds the line that installs it."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Type: pip install 'spile[{extra}]'")


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of the `known` names, the most similar to `word` first."""
    names = list(dict.fromkeys(known))
    close = get_close_matches(word, names, n=n, cutoff=0.3)
    return close or names[:n]
