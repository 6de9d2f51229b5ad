from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from spile.cli import app
from spile.data.source import Record
from spile.store import ColumnSpec, Manifest, create


@pytest.fixture
def store(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    x[30] = x[3]
    fields = dict.fromkeys(("architecture", "weights", "mode", "preprocessing", "precision"), "a")
    writer = create(
        tmp_path / "f.lance",
        [ColumnSpec(name="layer", shape=(16,), dtype="float32", info={"order": 1})],
        Manifest(fingerprinted=fields),
    )
    records = [Record(f"s{i}", None, "train" if i < 20 else "test") for i in range(40)]
    writer.append(records, range(40), {"layer": x}, [], stop=40)
    writer.finish()
    return tmp_path / "f.lance"


def spile(*args: str | Path) -> None:
    app([*map(str, args)], standalone_mode=False)


def test_diagnose_prints_json_and_writes_a_report(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    spile("diagnose", store, "-o", out, "--before", store, "--beside", store, "-p", "layer", "--json")
    value = json.loads(capsys.readouterr().out)
    assert value["duplicates"]["pairs"] == [["s3", "s30"]] and value["duplicates"]["leaked"] == 2
    assert value["drift"]["p_value"] > 0.05
    assert value["beside"]["values"][0][0] == pytest.approx(1)
    assert "label errors" in value["notes"][0]
    assert value["report"] == str(out / "report.html") and (out / "report.html").is_file()

    spile("diagnose", store, "-o", out)
    shown = capsys.readouterr().out
    assert "1 pairs of near-duplicates" in shown.replace("\n", " ") and "layer" in shown
    spile("report", out)
    assert str(out / "report.html") in capsys.readouterr().out


def test_probe_keeps_near_duplicates_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)
    labels = (np.random.default_rng(1).permutation(30) % 2).tolist()
    x[30:] = x[:30]
    spec = ColumnSpec(name="layer", shape=(40,), dtype="float32", info={"order": 1})
    writer = create(tmp_path / "twice.lance", [spec], Manifest(fingerprinted={}))
    records = [Record(f"s{i}", label) for i, label in enumerate(labels * 2)]
    writer.append(records, range(60), {"layer": x}, [], stop=60)
    writer.finish()
    scores = []
    for options in ([], ["--group-duplicates"]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spile("probe", tmp_path / "twice.lance", "--json", *options)
        assert any("near-duplicate in another fold" in str(w.message) for w in caught) == (not options)
        table = json.loads(capsys.readouterr().out)["table"]
        scores += [row["score"] for row in table if row["score"] is not None]
    assert scores[0] > scores[1] + 0.1
