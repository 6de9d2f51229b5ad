"""What is installed, told without importing it."""

from __future__ import annotations

from importlib import metadata

import pytest

from spile import diagnosis


def test_what_is_missing_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_torch(name: str) -> str:
        if name in ("pylance", "duckdb"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_torch)

    found = diagnosis.diagnose()

    rows = {row["part"]: row for row in found.parts}
    assert rows["duckdb"]["version"] == "missing"
    assert rows["duckdb"]["install"] == "pip install 'spile[data]'"
    assert not found.ok
    assert found.remedy == "pylance is missing: pip install --upgrade spile"


def test_optional_parts_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_version", lambda name: None if name == "timm" else "1.0")

    assert diagnosis.diagnose().ok


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_one_framework_is_enough(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(diagnosis, "_version", lambda name: None if name == "torch" != framework else "1.0")
    monkeypatch.setattr(diagnosis.keras_backend, "is_installed", lambda name: name in ("keras", framework))

    found = diagnosis.diagnose()

    assert found.ok
    (keras,) = [row for row in found.parts if row["part"] == "Keras on jax"]
    assert keras["install"] == (None if framework == "jax" else "pip install jax")


def test_without_any_framework_both_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_version", lambda name: None if name == "torch" else "1.0")
    monkeypatch.setattr(diagnosis.keras_backend, "is_installed", lambda name: False)

    found = diagnosis.diagnose()

    assert not found.ok
    assert found.remedy == (
        "a framework is missing: pip install 'spile[torch]', or 'spile[keras]' and a backend"
    )
