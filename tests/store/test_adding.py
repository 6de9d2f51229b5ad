import signal
import subprocess
import sys
import threading
from pathlib import Path

import lance
import numpy as np
import pytest

from spile.errors import FingerprintMismatch, StoreError
from spile.store import ColumnSpec, Manifest, open_store, resume

NEW = (
    ColumnSpec(name="layer1.0", shape=(3,), dtype="float32", info={"address": "layer1.0", "pool": "avg"}),
    ColumnSpec(name="words", shape=(None, 2), dtype="float16"),
)


def new_values(ids):
    rows = [int(i[1:]) for i in ids]
    return {
        "layer1.0": np.array([[r, r + 1, r + 2] for r in rows], np.float32),
        "words": [np.full((r % 3, 2), r) for r in rows],
    }


def add(store, manifest, *, rows=None, step=5):
    writer = store.adding(NEW, manifest)
    ids = store.ids[:rows]
    for start in range(0, len(ids), step):
        writer.append(ids[start : start + step], new_values(ids[start : start + step]))
    return writer.finish()


def files(path):
    return {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (path / "data").iterdir()}


def no_thread_is_left():
    return not [t for t in threading.enumerate() if t.name == "spile-add-columns"]


def test_new_columns_for_the_same_rows(store, tools):
    before = tools.contents(store)
    old = files(Path(store.path)) if store.path else {}
    added = add(store, tools.MANIFEST)
    assert np.array_equal(added["layer1.0"].numpy(), new_values(added.ids)["layer1.0"])
    for mine, right in zip(added["words"].numpy(), new_values(added.ids)["words"], strict=True):
        assert np.array_equal(mine, right)
    assert tools.contents(added) == before
    assert list(added.points) == [spec.name for spec in (*tools.COLUMNS, *NEW)]
    assert "layer1.0" not in store.points
    assert no_thread_is_left()
    if store.path:
        now = files(Path(store.path))
        assert {f: now[f] for f in old} == old
        assert tools.contents(open_store(store.path)) == before


def test_each_column_keeps_the_manifest_and_fingerprint_of_its_values(store, tools):
    fields = {**tools.MANIFEST.fingerprinted, "batch_size": 64}
    manifest = Manifest(fingerprinted=fields, recorded={"created": "later"})
    writer = store.adding(NEW, manifest, same=["weights", "precision"])
    writer.append(store.ids, new_values(store.ids))
    added = writer.finish()
    assert added["layer1.0"].manifest == manifest
    assert added["map"].manifest == added.manifest == tools.MANIFEST
    assert added["map"].fingerprint == store["map"].fingerprint
    same = add(store, tools.MANIFEST) if store.path is None else None
    if same is not None:
        assert same["layer1.0"].fingerprint != added["layer1.0"].fingerprint


def test_a_second_run_of_the_first_extraction_still_finds_its_store(tools, tmp_path):
    add(tools.extract(tmp_path / "a.lance"), tools.MANIFEST)
    assert resume(tmp_path / "a.lance", tools.COLUMNS, tools.MANIFEST).complete


def test_another_model_cannot_be_added(store, tools):
    other = Manifest(fingerprinted={**tools.MANIFEST.fingerprinted, "weights": "xyz", "batch_size": 8})
    with pytest.raises(FingerprintMismatch, match='weights: stored "abc", given "xyz"') as caught:
        store.adding(NEW, other, same=["weights"])
    assert "batch_size" not in str(caught.value)
    with pytest.raises(FingerprintMismatch, match="batch_size"):
        store.adding(NEW, other)


def test_a_column_that_is_there_already_is_refused(store, tools):
    with pytest.raises(StoreError, match="'map' already"):
        store.adding([tools.COLUMNS[1]], tools.MANIFEST)


def test_only_a_complete_store_can_be_added_to(tools, tmp_path):
    from spile.store import create

    create(tmp_path / "a.lance", tools.COLUMNS, tools.MANIFEST)
    with pytest.raises(StoreError, match="not complete"):
        open_store(tmp_path / "a.lance").adding(NEW, tools.MANIFEST)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (lambda ids: ids[::-1], r"Row 0 of the store is sample 's1', but .*'s28'"),
        (lambda ids: [*ids, "s99"], r"ends after 21 rows, but sample 's99' follows"),
    ],
)
def test_ids_must_be_the_stores_in_its_order(store, tools, ids, message):
    ids = ids(store.ids)
    with pytest.raises(StoreError, match=message), store.adding(NEW, tools.MANIFEST) as writer:
        writer.append(ids, new_values(ids))
    assert no_thread_is_left()


def test_giving_up_half_way_leaves_the_store_as_it_was_and_able_to_be_added_to(store, tools):
    before, old = tools.contents(store), files(Path(store.path)) if store.path else {}
    with pytest.raises(StoreError, match="has 21 rows, the new columns 10: nothing was added"):
        add(store, tools.MANIFEST, rows=10)
    with pytest.raises(ZeroDivisionError), store.adding(NEW, tools.MANIFEST) as writer:
        writer.append(store.ids[:8], new_values(store.ids[:8]))
        raise ZeroDivisionError
    bad = {"layer1.0": np.full((21, 3), np.nan), "words": new_values(store.ids)["words"]}
    with pytest.raises(StoreError, match=r"'layer1\.0' is nan"), store.adding(NEW, tools.MANIFEST) as writer:
        writer.append(store.ids, bad)
    assert no_thread_is_left()
    if store.path:
        assert list(open_store(store.path).points) == [spec.name for spec in tools.COLUMNS]
        assert files(Path(store.path)) == old
    assert tools.contents(add(store, tools.MANIFEST)) == before


def test_a_failing_disk_is_told_and_does_not_hang(tools, tmp_path, monkeypatch):
    store = tools.extract(tmp_path / "a.lance")

    def full(self, reader):
        next(reader)
        raise OSError("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceDataset, "add_columns", full)
        with pytest.raises(StoreError, match=r"Cannot add columns to .*: No space left on device"):
            add(store, tools.MANIFEST, step=1)
    assert list(add(store, tools.MANIFEST).points)[-2:] == ["layer1.0", "words"]


def test_columns_can_be_added_to_a_store_without_rows(tools, tmp_path):
    from spile.store import create

    for path in (None, tmp_path / "a.lance"):
        store = create(path, tools.COLUMNS, tools.MANIFEST).finish()
        assert add(store, tools.MANIFEST)["layer1.0"].numpy().shape == (0, 3)


KILLED = """
import os, sys
sys.path.insert(0, {folder!r})
import conftest, test_adding
from spile.store import open_store
store = open_store(sys.argv[1])
writer = store.adding(test_adding.NEW, conftest.MANIFEST)
for start in range(0, int(sys.argv[2]), 5):
    ids = store.ids[start:start + 5]
    writer.append(ids, test_adding.new_values(ids))
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", ""])
def test_a_process_that_ends_half_way_leaves_the_store_as_it_was(tools, tmp_path, end):
    before = tools.contents(tools.extract(tmp_path / "a.lance"))
    script = KILLED.format(folder=str(Path(__file__).parent), end=end)
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.lance", "15"], capture_output=True, timeout=60
    )
    assert ended.returncode == (-signal.SIGKILL if end else 0), ended.stderr
    store = open_store(tmp_path / "a.lance")
    assert list(store.points) == [spec.name for spec in tools.COLUMNS]
    assert tools.contents(add(store, tools.MANIFEST)) == before
    assert "layer1.0" in open_store(tmp_path / "a.lance")
