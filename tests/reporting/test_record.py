from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spile.errors import DataError
from spile.reporting.record import Run, read_run

MINIMAL = {"schema": 1, "title": "t", "metric": "accuracy", "table": [{"point": "a"}]}


def read(folder: Path, record: object) -> Run:
    (folder / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return read_run(folder)


def test_every_part_of_a_full_run_arrives(tmp_path: Path, run: dict[str, Any]) -> None:
    record = read(tmp_path, run)
    assert record.model is not None and record.model.macs == 33_700_000
    assert record.pick is not None and (record.pick.point, record.pick.test_score) == ("blocks.4", 0.8113)
    assert record.confusion is not None and record.confusion.matrix[1] == tuple(run["confusion"]["matrix"][1])
    assert record.neighbors[2].neighbors[3].distance == run["neighbors"][2]["neighbors"][3]["distance"]
    assert [level.point for level in record.maps[0].levels] == ["blocks.1", "blocks.4", "head"]
    assert record.versions == run["versions"]
    assert record.environment["cores"] == 2


def test_a_bare_probe_and_unknown_keys_are_fine(tmp_path: Path) -> None:
    record = read(tmp_path, MINIMAL | {"from_the_future": 1, "chosen": None, "seeds": None})
    assert record.table[0].score is None
    assert (record.chosen, record.seeds, record.by_depth) == (None, (), ())


def test_numbers_that_are_not_finite_count_as_absent(tmp_path: Path) -> None:
    row = '{"point": "a", "score": NaN, "stderr": Infinity, "alpha": 1e999, "test_score": 1}'
    record = read(tmp_path, json.dumps(MINIMAL).replace('{"point": "a"}', row))
    assert (record.table[0].score, record.table[0].stderr, record.table[0].alpha) == (None, None, None)
    assert record.table[0].test_score == 1.0


def test_depth_order_is_by_order_and_leaves_out_what_has_none(tmp_path: Path) -> None:
    table = [
        {"point": "deep", "order": 9, "score": 0.1},
        {"point": "raw", "score": 0.2},
        {"point": "shallow", "order": 0, "score": 0.3},
        {"point": "failed", "order": 1, "score": None},
    ]
    assert [row.point for row in read(tmp_path, MINIMAL | {"table": table}).by_depth] == ["shallow", "deep"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table": [{"point": "a"}, {"score": 1}]}, r"table\[1\]\.point is missing"),
        (
            {"table": [{"point": "a", "score": "high"}]},
            r"table\[0\]\.score must be a number, received 'high'",
        ),
        ({"table": [{"point": "a", "score": True}]}, r"table\[0\]\.score must be a number, received True"),
        ({"table": [{"point": "a", "dims": 1.5}]}, r"table\[0\]\.dims must be an integer, received 1\.5"),
        ({"table": [{"point": "a", "baseline": "first"}]}, r"baseline must be one of 'raw', 'last'"),
        ({"table": {}}, r"table must be a list, received \{\}"),
        ({"timings": [{"step": "x", "seconds": None}]}, r"timings\[0\]\.seconds is missing"),
        ({"confusion": {"labels": [1, 2], "matrix": [[1, 2], [3]]}}, r"confusion needs a matrix of 2 × 2"),
        ({"title": None}, r"title is missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path, MINIMAL | change)
    assert "run.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a run folder: it holds no run.json"),
        ("{", "is not valid JSON"),
        ("[]", "has schema None"),
        ({"schema": 2, "title": "t"}, "has schema 2; this version of spile reads schema 1"),
    ],
)
def test_what_is_no_run_says_what_to_type(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_run(tmp_path) if content is None else read(tmp_path, content)
    assert "Type: spile transfer" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_instead_of_a_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(DataError, match="is not a run folder"):
        read_run(tmp_path / "model.bin")
