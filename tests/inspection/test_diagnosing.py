"""A diagnosis as a whole: what is found, what is left out and why, and the page about it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import spile
from spile.errors import DataError
from spile.reporting.record import read_run


@pytest.fixture
def pictures():
    """(images, labels): 60 small pictures of 3 kinds, 3 of them twice."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    images = rng.integers(0, 60, (60, 8, 8, 3), dtype=np.uint8)
    images[np.arange(60), :, :, y] += 120
    images[40:43] = images[0:3]
    y[40:43] = y[0:3]
    return images, y


@pytest.fixture
def store(make_store, pictures):
    images, y = pictures
    x = images.reshape(60, -1) / 255.0
    mix = np.random.default_rng(1).standard_normal((192, 24))
    splits = ["train"] * 40 + ["test"] * 20
    wrong = y.copy()
    wrong[7] = (wrong[7] + 1) % 3
    return make_store({"early": x[:, ::4], "late": x @ mix}, labels=wrong.tolist(), splits=splits)


def test_everything_is_found_and_reported(store, make_store, pictures, tmp_path):
    images, _ = pictures
    data = [f"{i}" for i in range(60)]
    before = make_store({"early": store["early"].numpy() + 1, "late": store["late"].numpy()})
    beside = make_store({"other": store["late"].numpy()[:, ::-1]})
    source = Pictures(images)
    found = spile.diagnose(store, tmp_path, data=source, before=before, beside=beside, title="Kinds")
    assert found.points == ("early", "late")
    assert found.similarity.values.shape == (2, 2)
    assert found.beside.values[1, 0] == pytest.approx(1, abs=1e-3)
    assert [rank.point for rank in found.ranks] == [hint.point for hint in found.hints] == ["early", "late"]
    assert 7 in found.label_errors.rows
    assert {tuple(pair) for pair in found.duplicates.pairs.rows.tolist()} == {(i, 40 + i) for i in range(3)}
    assert found.leaked == 6
    assert found.drift.strongest.point == "early"
    assert found.notes == ()
    assert json.dumps(found.to_json())
    for words in ("labels look wrong", "3 pairs of near-duplicates, 6 samples across splits", "drift: p = "):
        assert words in str(found).replace("\n", " ")

    run = read_run(tmp_path)
    assert run.title == "Kinds" and run.model.reference == "timm:tiny"
    findings = run.findings
    assert findings.duplicates.leaked == 6 and findings.duplicates.shown[0].distance < 1e-6
    assert (tmp_path / findings.duplicates.shown[0].a.picture).is_file()
    html = found.report.read_text()
    for section in ("similarity-1", "similarity-2", "rank", "labels", "duplicates", "drift"):
        assert f'<section id="{section}"' in html
    assert 'id="notes"' not in html and "6 of them across splits" in html and data


class Pictures:
    """Made into a source by `diagnose`, as arrays are."""

    def __new__(cls, images):
        from spile.data.samples import Samples
        from spile.data.source import Record

        records = [Record(f"s{i}") for i in range(len(images))]
        return Samples("pictures", "image", records, lambda position: images[position])


def test_what_cannot_be_told_is_left_out_and_said(make_store, tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 4))
    found = spile.diagnose(make_store({"narrow": x}), tmp_path)
    assert (found.label_errors, found.duplicates, found.hints, found.drift) == (None, None, (), None)
    assert [note.split(":")[0] for note in found.notes] == [
        "near-duplicates",
        "label errors",
        "LogME and H-score",
    ]
    html = found.report.read_text()
    assert 'id="notes"' in html and 'id="labels"' not in html and "no row of this store has a label" in html


def test_nothing_is_written_unless_asked(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spile.diagnose(store, points=["late"]).report is None
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_other_data_are_refused(store, pictures, tmp_path):
    images, _ = pictures
    with pytest.raises(DataError, match="made from other data than pictures: sample 's59' is 'absent' there"):
        spile.diagnose(store, tmp_path, data=Pictures(images[:50]))


def test_another_diagnosis_takes_the_place_of_the_first(store, pictures, tmp_path):
    images, _ = pictures
    spile.diagnose(store, tmp_path, data=Pictures(images))
    assert list((tmp_path / "pictures").iterdir())
    spile.diagnose(store, tmp_path)
    assert not list((tmp_path / "pictures").iterdir())
