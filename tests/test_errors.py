"""The errors' family, and the help they give."""

from __future__ import annotations

import inspect

import pytest

from spile import errors
from spile.errors import MissingDependency, SpileError, nearest

RAISED = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == "spile.errors"]


def test_every_error_is_a_spile_error_and_also_the_builtin_that_fits() -> None:
    builtin = {
        "AddressError": LookupError,
        "PoolError": ValueError,
        "CaptureError": RuntimeError,
        "ModelError": ValueError,
        "DataError": ValueError,
        "StoreError": RuntimeError,
        "FingerprintMismatch": RuntimeError,
        "ProbeError": ValueError,
        "SupervisionError": ValueError,
        "TrainingError": ValueError,
        "AugmentationError": ValueError,
        "MissingDependency": ImportError,
        "SpileError": Exception,
    }
    assert {c.__name__ for c in RAISED} == builtin.keys()
    for error in RAISED:
        assert issubclass(error, SpileError)
        assert issubclass(error, builtin[error.__name__])
        assert error.__doc__


def test_a_missing_package_says_what_it_is_for_and_how_to_install_it() -> None:
    with pytest.raises(ImportError) as caught:
        raise MissingDependency("pandas", extra="data", purpose="LayerTable.to_pandas()")
    assert str(caught.value) == (
        "LayerTable.to_pandas() needs the package 'pandas'. Type: pip install 'spile[data]'"
    )


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("layer3", ["layer1", "conv", "layer33", "layer2", "layer4"], ["layer33", "layer4", "layer2"]),
        ("conv", ["conv", "conv", "xyz"], ["conv"]),
        ("qqq", ["a", "b", "c", "d"], ["a", "b", "c"]),
        ("x", [], []),
    ],
)
def test_nearest_names(word: str, known: list[str], expected: list[str]) -> None:
    assert nearest(word, known) == expected


def test_nearest_takes_any_iterable_and_as_many_as_asked_for() -> None:
    assert nearest("layer1", (f"layer{i}" for i in range(9)), n=1) == ["layer1"]
