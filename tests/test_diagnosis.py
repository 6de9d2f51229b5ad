"""What is installed, told without importing it."""

from __future__ import annotations

from importlib import metadata

import pytest

from spile import diagnosis


def test_what_is_missing_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_torch(name: str) -> str:
        if name in ("torch", "duckdb"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_torch)

    found = diagnosis.diagnose()

    rows = {row["part"]: row for row in found.parts}
    assert rows["duckdb"]["version"] == "missing"
    assert rows["duckdb"]["install"] == "pip install 'spile[data]'"
    assert not found.ok
    assert found.remedy == "torch is missing: pip install 'spile[torch]'"


def test_optional_parts_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_version", lambda name: None if name == "timm" else "1.0")

    assert diagnosis.diagnose().ok
