"""What a run writes for its report: plain JSON, complete or not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spile.probing import record


def test_plain_is_what_json_has() -> None:
    value = {1: np.float32(0.5), "b": (np.int64(2), float("nan")), "c": np.array([[np.inf, 1.0]]), "d": "é"}

    assert record.plain(value) == {"1": 0.5, "b": [2, None], "c": [[None, 1.0]], "d": "é"}
    json.dumps(record.plain(value), allow_nan=False)


def test_a_record_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    record.write_json(path, {"a": 1})

    def half(self: Path, text: str, **_: object) -> int:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        record.write_json(path, {"a": 2})

    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_spread_covers_both_ends() -> None:
    assert record._spread(np.arange(10, 20), 4).tolist() == [10, 13, 16, 19]
    assert record._spread(np.arange(2), 6).tolist() == [0, 1]
