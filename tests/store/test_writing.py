import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from spile.data.source import Record, Skipped
from spile.errors import FingerprintMismatch, StoreError
from spile.store import ColumnSpec, Manifest, create, has_store, open_store, resume, writing

ONE = [ColumnSpec(name="x", shape=(2,), dtype="float16")]


def one_batch(writer, n=2, **changes):
    batch = {
        "records": [Record(f"s{i}") for i in range(n)],
        "positions": list(range(n)),
        "arrays": {"x": np.ones((n, 2), np.float16)},
        "stop": n,
    }
    writer.append(**{**batch, **changes})


def test_a_store_holds_every_sample_in_order_and_every_skip_with_its_reason(store, tools):
    kept = [p for p in range(tools.SAMPLES) if p not in tools.SKIPPED]
    assert store.ids.tolist() == [f"s{p}" for p in kept]
    assert store.positions.tolist() == kept
    assert store.skipped.to_pylist() == [
        {"position": p, "id": f"s{p}", "reason": f"broken {p}"} for p in sorted(tools.SKIPPED)
    ]
    assert len(store) + len(store.skipped) == tools.SAMPLES
    assert store.complete
    for row, position in enumerate(kept):
        for name, value in tools.features(position).items():
            assert np.array_equal(store[name][row], value)


def test_memory_and_disk_hold_the_same(tools, tmp_path):
    assert tools.contents(tools.extract(None)) == tools.contents(tools.extract(tmp_path / "a.lance"))


class Killed(BaseException):
    pass


class Killer:
    """Stops the process, as it were, before or after the nth change that Lance makes."""

    def __init__(self, monkeypatch, *, at, after):
        self.calls, self.at, self.after = 0, at, after
        monkeypatch.setattr(lance, "write_dataset", self.around(lance.write_dataset))
        for name in ("add_columns", "update_schema_metadata", "cleanup_old_versions", "delete"):
            monkeypatch.setattr(lance.LanceDataset, name, self.around(getattr(lance.LanceDataset, name)))

    def around(self, call):
        def killed(*args, **kwargs):
            self.calls += 1
            if self.calls == self.at and not self.after:
                raise Killed
            result = call(*args, **kwargs)
            if self.calls == self.at and self.after:
                raise Killed
            return result

        return killed


@pytest.mark.parametrize("commit_bytes", [1, pytest.param(100, marks=pytest.mark.zoo), 1 << 30])
def test_killed_around_any_change_and_resumed_equals_never_killed(tools, tmp_path, monkeypatch, commit_bytes):
    whole = tools.contents(tools.extract(tmp_path / "whole.lance"))
    with monkeypatch.context() as patch:
        counter = Killer(patch, at=0, after=False)
        tools.extract(tmp_path / "count.lance", commit_bytes=commit_bytes)
    for at in range(1, counter.calls + 1):
        for after in (False, True):
            path = tmp_path / f"{at}{after}.lance"
            with monkeypatch.context() as patch:
                Killer(patch, at=at, after=after)
                with pytest.raises(Killed):
                    tools.extract(path, commit_bytes=commit_bytes)
            with monkeypatch.context() as patch:  # and once more, while recovering
                Killer(patch, at=1, after=after)
                with pytest.raises(Killed):
                    tools.extract(path, commit_bytes=commit_bytes)
                    raise Killed  # nothing was left to change
            assert tools.contents(tools.extract(path, commit_bytes=commit_bytes)) == whole, (at, after)
            shutil.rmtree(path)


def test_a_killed_commit_is_not_seen_by_readers_and_is_redone_from_its_own_start(
    tools, tmp_path, monkeypatch
):
    path = tmp_path / "a.lance"
    writer = create(path, tools.COLUMNS, tools.MANIFEST, commit_bytes=1 << 30)
    tools.feed(writer, samples=4, skip={3})
    writer.commit()
    tools.feed(writer, samples=8, skip={4, 5})
    with monkeypatch.context() as patch:
        Killer(patch, at=1, after=True)  # the skipped samples are written, the rows are not
        with pytest.raises(Killed):
            writer.commit()
    assert open_store(path).skipped["position"].to_pylist() == [3]
    resumed = resume(path, tools.COLUMNS, tools.MANIFEST)
    assert (resumed.next_position, resumed.rows, resumed.skipped) == (4, 3, 1)
    tools.feed(resumed, samples=8, skip={4, 5})
    done = resumed.finish()
    assert done.positions.tolist() == [0, 1, 2, 6, 7]
    assert done.skipped["position"].to_pylist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("skip", "samples"),
    [({2, 3}, 4), ({4, 5, 6, 7}, 8), ({0, 1, 2, 3}, 4), ({0, 1, 2, 3, 4, 5, 6, 7}, 8), (set(), 8)],
)
def test_next_position_is_right_where_a_commit_ends_in_skips(tools, tmp_path, skip, samples):
    writer = create(tmp_path / "a.lance", tools.COLUMNS, tools.MANIFEST, commit_bytes=1 << 30)
    tools.feed(writer, samples=samples, skip=skip)
    writer.commit()
    resumed = resume(tmp_path / "a.lance", tools.COLUMNS, tools.MANIFEST)
    assert resumed.next_position == samples
    assert (resumed.rows, resumed.skipped) == (samples - len(skip), len(skip))
    assert not resumed.complete


def test_only_what_was_committed_is_visible(tools, tmp_path):
    writer = create(tmp_path / "a.lance", tools.COLUMNS, tools.MANIFEST, commit_bytes=1 << 30)
    tools.feed(writer, samples=8, skip=set())
    assert len(open_store(tmp_path / "a.lance")) == 0
    writer.commit()
    assert len(open_store(tmp_path / "a.lance")) == 8
    assert not open_store(tmp_path / "a.lance").complete


def test_commits_by_bytes_and_by_time(tools, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(writing.time, "monotonic", lambda: now[0])
    writer = create(tmp_path / "a.lance", ONE, tools.MANIFEST, commit_bytes=16, commit_seconds=10)
    one_batch(writer, 1)
    assert len(open_store(tmp_path / "a.lance")) == 0
    now[0] += 11
    one_batch(writer, 1, records=[Record("s1")], positions=[1], stop=2)
    assert len(open_store(tmp_path / "a.lance")) == 2
    one_batch(writer, 4, positions=[2, 3, 4, 5], stop=6)
    assert len(open_store(tmp_path / "a.lance")) == 6


def test_a_long_run_commits_ever_more_rarely(tools, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writing.time, "monotonic", lambda: now[0])
    writer = create(None, ONE, tools.MANIFEST, commit_seconds=10)
    commits = []
    monkeypatch.setattr(
        writer, "commit", lambda: commits.append(now[0]) or setattr(writer, "_committed", now[0])
    )
    for second in range(0, 36_000, 5):
        now[0] = second
        one_batch(writer, 1, positions=[writer.next_position], stop=writer.next_position + 1)
    assert len(commits) < 300  # 3,600 at one every ten seconds
    assert max(np.diff(commits)) <= 0.02 * 36_000 + 5


def test_a_second_run_of_a_finished_store_changes_nothing(tools, tmp_path):
    first = tools.extract(tmp_path / "a.lance")
    files = sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "a.lance").rglob("*"))
    writer = resume(tmp_path / "a.lance", tools.COLUMNS, tools.MANIFEST)
    assert writer.complete
    assert writer.next_position == tools.SAMPLES
    assert tools.contents(writer.finish()) == tools.contents(first)
    assert sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "a.lance").rglob("*")) == files
    with pytest.raises(StoreError, match=r"complete.*store\.adding"):
        tools.feed(writer, samples=tools.SAMPLES + 4)


def test_a_finished_store_keeps_one_version_however_many_commits_it_took(tools, tmp_path):
    tools.extract(tmp_path / "a.lance", commit_bytes=1)
    assert len(list((tmp_path / "a.lance" / "_versions").glob("*.manifest"))) == 1


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"batch_size": 8}, "batch_size: stored 4, given 8"),
        (
            {"weights": "other", "extra": {"a": [1]}},
            'extra: stored absent, given {"a": [1]}; weights: stored "abc"',
        ),
    ],
)
def test_another_fingerprint_never_mixes_and_the_differing_fields_are_shown(tools, tmp_path, change, shown):
    tools.extract(tmp_path / "a.lance")
    other = Manifest(fingerprinted={**tools.MANIFEST.fingerprinted, **change}, recorded={})
    with pytest.raises(FingerprintMismatch, match=re.escape(shown)) as caught:
        resume(tmp_path / "a.lance", tools.COLUMNS, other)
    assert "\n" not in str(caught.value)
    assert "precision" not in str(caught.value)


def test_another_pool_or_another_layer_is_another_fingerprint_but_what_is_only_recorded_is_not(
    tools, tmp_path
):
    first = tools.extract(tmp_path / "a.lance")
    avg, *rest = tools.COLUMNS
    pooled = ColumnSpec(name=avg.name, shape=avg.shape, dtype=avg.dtype, info={**avg.info, "pool": "max"})
    with pytest.raises(FingerprintMismatch, match=r'pool: stored "avg", given "max"'):
        resume(tmp_path / "a.lance", [pooled, *rest], tools.MANIFEST)
    with pytest.raises(FingerprintMismatch, match=r"columns\.map: stored .*, given absent"):
        resume(tmp_path / "a.lance", [avg, tools.COLUMNS[2]], tools.MANIFEST)
    told = ColumnSpec(name=avg.name, shape=avg.shape, dtype=avg.dtype, info={**avg.info, "params": 3})
    manifest = Manifest(fingerprinted=tools.MANIFEST.fingerprinted, recorded={"created": "later"})
    assert resume(tmp_path / "a.lance", [told, *rest], manifest).finish().fingerprint == first.fingerprint


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_names_layer_and_sample(tools, dtype, value):
    writer = create(None, [ColumnSpec(name="layer4", shape=(2, 2), dtype=dtype)], tools.MANIFEST)
    bad = np.ones((2, 2, 2), np.float32)
    bad[1, 0, 1] = value
    with pytest.raises(StoreError, match=r"'layer4' is .* for sample 's1'.*not a finite") as caught:
        one_batch(writer, arrays={"layer4": bad})
    assert 'dtype="float32"' not in str(caught.value)
    assert writer.next_position == 0
    bad[1, 0, 1] = 1
    one_batch(writer, arrays={"layer4": bad})
    assert len(writer.finish()) == 2


@pytest.mark.parametrize("given", [np.float32([[1, 2], [3, -1e5]]), np.float16([[1, 2], [3, -np.inf]])])
def test_float16_overflow_is_an_error_that_offers_float32(tools, given):
    writer = create(None, ONE, tools.MANIFEST)
    with pytest.raises(
        StoreError, match=r"'x' is -(100000|1e\+05|inf) for sample 's1'.*65504.*dtype=\"float32\""
    ):
        one_batch(writer, arrays={"x": given})
    one_batch(writer, arrays={"x": np.float32([[65504, 65519], [0, 0]])})
    assert writer.finish()["x"].numpy().tolist() == [[65504, 65504], [0, 0]]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_complex_values_are_refused_and_their_magnitude_is_offered(tools, dtype):
    writer = create(None, [ColumnSpec(name="fft", shape=(2,), dtype=dtype)], tools.MANIFEST)
    with pytest.raises(StoreError, match=r"'fft' is complex \(complex64\).*Type: pool=lambda x: abs\(x\)"):
        one_batch(writer, arrays={"fft": np.ones((2, 2), np.complex64)})
    assert writer.next_position == 0


@pytest.mark.parametrize(
    ("dtype", "given", "says"),
    [
        ("float16", np.int64(5077), r"5077 for sample 's1'.*float16 does not hold.*dtype=.float32."),
        ("float16", np.uint16(2049), r'2049 .*Type: dtype="float32"'),
        ("float16", np.int32(-2049), r'-2049 .*Type: dtype="float32"'),
        ("float32", np.int64(2**24 + 1), r"16777217 .*up to 16777216 only"),
        ("float32", np.int32(2**31 - 1), r"2147483647 .*up to 16777216 only"),
        ("float32", np.int64(2**63 - 1), r"9223372036854775807 .*up to 16777216 only"),
        ("float32", np.uint64(2**64 - 1), r"18446744073709551615 .*up to 16777216 only"),
    ],
)
def test_whole_numbers_are_not_rounded(tools, dtype, given, says):
    writer = create(None, [ColumnSpec(name="x", shape=(2,), dtype=dtype)], tools.MANIFEST)
    values = np.ones((2, 2), given.dtype)
    values[1, 1] = given
    with pytest.raises(StoreError, match=says):
        one_batch(writer, arrays={"x": values})
    tokens = create(None, [ColumnSpec(name="t", shape=(None, 2), dtype=dtype)], tools.MANIFEST)
    with pytest.raises(StoreError, match="for sample 's1', a whole number"):
        one_batch(tokens, arrays={"t": [values[:1], values]})


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("float16", np.int64([[2048, 4096], [-2048, 65504]])),
        ("float16", np.uint8([[0, 255], [1, 7]])),
        ("float16", np.array([[True, False], [True, True]])),
        ("float32", np.int64([[2**24, -(2**63)], [2**62, 0]])),
        ("float32", np.float64([[0.1, 1 / 3], [2**24 + 1, 5077]])),
    ],
)
def test_whole_numbers_that_fit_and_measured_ones_are_stored(tools, dtype, given):
    writer = create(None, [ColumnSpec(name="x", shape=(2,), dtype=dtype)], tools.MANIFEST)
    one_batch(writer, arrays={"x": given})
    assert np.array_equal(writer.finish()["x"].numpy(), given.astype(dtype))


def test_of_all_float16_numbers_the_finite_ones_are_taken(tools):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    writer = create(None, ONE, tools.MANIFEST)
    finite = every[np.isfinite(every)].reshape(-1, 2)
    records = [Record(str(row)) for row in range(len(finite))]
    writer.append(records, range(len(finite)), {"x": finite}, [], stop=len(finite))
    for value in every[~np.isfinite(every)][::37]:
        row = np.array([[0, value]])
        with pytest.raises(StoreError, match="float16"):
            writer.append([Record("bad")], [len(finite)], {"x": row}, [], stop=len(finite) + 1)


def test_overflow_in_tokens_names_the_sample(tools):
    writer = create(None, [ColumnSpec(name="t", shape=(None, 1), dtype="float16")], tools.MANIFEST)
    with pytest.raises(StoreError, match=r"sample 's1'"):
        one_batch(writer, arrays={"t": [np.ones((3, 1)), np.array([[1], [7e4]])]})


def test_the_arrays_may_be_reused_after_append(tools, tmp_path):
    buffer = np.ones((2, 2), np.float16)
    for path in (None, tmp_path / "a.lance"):
        writer = create(path, ONE, tools.MANIFEST)
        buffer[:] = 1
        one_batch(writer, arrays={"x": buffer})
        buffer[:] = 9
        assert (writer.finish()["x"].numpy() == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": 3}, "every position from 0 to 2"),
        ({"positions": [1, 0]}, "in order"),
        ({"positions": [0, 2]}, r"keeps \[0, 2\]"),
        ({"skipped": [Skipped(1, "s1", "why")]}, "once"),
        ({"arrays": {"y": np.ones((2, 2))}}, r"\['y'\]; the store has \['x'\]"),
        ({"arrays": {"x": np.ones((3, 2))}}, "got 3 samples, expected 2"),
        ({"arrays": {"x": np.ones((2, 3))}}, r"holds shape \(2,\); sample 's0' has \(3,\)"),
    ],
)
def test_a_batch_that_does_not_add_up_is_refused_whole(tools, changes, message):
    writer = create(None, ONE, tools.MANIFEST)
    with pytest.raises(StoreError, match=message):
        one_batch(writer, **changes)
    assert (writer.rows, writer.skipped, writer.next_position) == (0, 0, 0)


@pytest.mark.parametrize(
    ("labels", "expected", "dtype"),
    [
        (["a", "b"], ["a", "b"], "U"),
        ([3, np.int64(1)], [3, 1], "i"),
        ([True, False], [1, 0], "i"),
        ([1, 2.5], [1.0, 2.5], "f"),
        ([None, "b"], [None, "b"], "O"),
        ([2, None], [2, None], "O"),
    ],
)
@pytest.mark.parametrize("path", [None, "x.lance"])
def test_labels_get_one_type(simple, labels, expected, dtype, path):
    store = simple(np.ones((2, 1), np.float16), labels, path=path)
    assert store.labels.tolist() == expected
    assert store.labels.dtype.kind == dtype
    assert simple(np.ones((2, 1), np.float16), path=path and "none.lance").labels is None


@pytest.mark.parametrize("path", [None, "x.lance"])
@pytest.mark.parametrize("labels", [[{"b", "a"}, set()], [set(), {3, 1}], [set(), set()], [{"a"}, None]])
def test_several_labels_a_sample_come_back_as_sets(simple, labels, path):
    given = [None if label is None else frozenset(label) for label in labels]
    found = simple(np.ones((2, 1), np.float16), given, path=path).labels
    assert found.dtype == object and list(found) == given


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", 1), (1, "a"), (1, 2.5), (1.5, "a"), ("a", frozenset()), (frozenset(["a"]), "a")],
)
def test_the_label_type_stays_across_a_resume(tools, tmp_path, first, second):
    writer = create(tmp_path / "a.lance", ONE, tools.MANIFEST)
    one_batch(writer, 1)  # no label at all yet
    writer.commit()
    writer = resume(tmp_path / "a.lance", ONE, tools.MANIFEST)
    one_batch(writer, 1, records=[Record("s1", first)], positions=[1], stop=2)
    writer.commit()
    writer = resume(tmp_path / "a.lance", ONE, tools.MANIFEST)
    one_batch(writer, 1, records=[Record("s2", second)], positions=[2], stop=3)
    with pytest.raises(StoreError, match=rf"label of sample 's2' is {second!r}.*before it"):
        writer.commit()
    assert open_store(tmp_path / "a.lance").labels.tolist() == [None, first]


def test_a_label_of_no_known_kind_is_refused(simple):
    with pytest.raises(StoreError, match=r"label of sample 's0' is \['a'\].*Allowed"):
        simple(np.ones((1, 1), np.float16), [["a"]])


def test_two_writers_at_once_do_not_double_samples(tools, tmp_path):
    first = create(tmp_path / "a.lance", ONE, tools.MANIFEST)
    second = resume(tmp_path / "a.lance", ONE, tools.MANIFEST)
    one_batch(first)
    first.commit()
    one_batch(second)
    with pytest.raises(StoreError, match="Another process"):
        second.commit()
    assert first.finish().ids.tolist() == ["s0", "s1"]


@pytest.mark.parametrize("finishing", [False, True])
def test_writers_between_check_and_append_do_not_double_samples(tools, tmp_path, monkeypatch, finishing):
    first = create(tmp_path / "a.lance", ONE, tools.MANIFEST)
    one_batch(first, records=[Record("s0", "cat"), Record("s1", "dog")])
    first.commit()
    second = resume(tmp_path / "a.lance", ONE, tools.MANIFEST)
    for writer in (first, second):
        one_batch(writer, records=[Record("s2", "cat"), Record("s3", "dog")], positions=[2, 3], stop=4)
    write = lance.write_dataset

    def after_the_other(*args, **options):
        monkeypatch.setattr(lance, "write_dataset", write)
        first.commit()
        written = write(*args, **options)
        assert len(open_store(tmp_path / "a.lance")) == 6
        if finishing:  # before the rows are taken back
            with pytest.raises(StoreError, match="Another process"):
                first.finish()
        return written

    monkeypatch.setattr(lance, "write_dataset", after_the_other)
    with pytest.raises(StoreError, match=r"Another process has written .*stored twice"):
        second.commit()
    assert open_store(tmp_path / "a.lance").complete == finishing
    store = resume(tmp_path / "a.lance", ONE, tools.MANIFEST).finish()
    assert store.complete and store.ids.tolist() == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/feats.lance", r"/file is a file"),
        ("file", r"/file is a file"),
        ("folder", "folder with other files"),
        ("store", "a store at .* already"),
    ],
)
def test_a_path_that_cannot_hold_a_store_is_one_clear_line(tools, tmp_path, place, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "data").mkdir(parents=True)
    create(tmp_path / "store", ONE, tools.MANIFEST).finish()
    with pytest.raises(StoreError, match=message) as caught:
        create(tmp_path / place, ONE, tools.MANIFEST)
    assert "\n" not in str(caught.value)
    assert ".rs:" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
    assert [f.name for f in (tmp_path / "folder").iterdir()] == ["data"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write")
def test_a_read_only_place_is_one_clear_line(tools):
    with pytest.raises(
        StoreError, match=r"^Cannot create the store at /proc/feats\.lance/skipped\.lance: [^\n]*$"
    ):
        create("/proc/feats.lance", ONE, tools.MANIFEST)


def test_opening_what_is_not_a_store_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"no store at .*none\.lance"):
        open_store(tmp_path / "none.lance")
    lance.write_dataset(pa.table({"a": [1]}), tmp_path / "other.lance")
    with pytest.raises(StoreError, match="not a store that spile made"):
        open_store(tmp_path / "other.lance")
    assert not has_store(tmp_path / "none.lance")


def test_a_full_disk_loses_nothing(tools, tmp_path, monkeypatch):
    path = tmp_path / "a.lance"
    writer = create(path, tools.COLUMNS, tools.MANIFEST)
    tools.feed(writer, samples=8)
    writer.commit()
    text = (
        "LanceError(IO): Unable to copy data to file: No space left on device (os error 28), /rust/io.rs:3:4"
    )
    with monkeypatch.context() as patch:
        patch.setattr(lance, "write_dataset", lambda *a, **k: (_ for _ in ()).throw(OSError(text)))
        tools.feed(writer, samples=12)
        with pytest.raises(StoreError, match=r"No space left on device\. Free some space and run") as caught:
            writer.commit()
    assert ".rs" not in str(caught.value)
    assert len(open_store(path)) == 5
    tools.feed(writer)  # the same writer may also go on, once there is space
    assert tools.contents(writer.finish()) == tools.contents(tools.extract(None))


@pytest.mark.zoo
def test_a_disk_that_really_fills_up(tools, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        writer = create(disk / "a.lance", ONE, tools.MANIFEST)
        committed = 0
        with pytest.raises(StoreError, match=r"No space left on device\. Free some space"):
            for start in range(0, 10_000_000, 10_000):
                ids = [Record(f"sample-{i}") for i in range(start, start + 10_000)]
                values = np.random.default_rng(start).standard_normal((10_000, 2)).astype(np.float16)
                writer.append(ids, range(start, start + 10_000), {"x": values}, stop=start + 10_000)
                writer.commit()
                committed = start + 10_000
        assert len(open_store(disk / "a.lance")) == committed > 0
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        writer = resume(disk / "a.lance", ONE, tools.MANIFEST)
        assert writer.next_position == committed
        assert len(writer.finish()) == committed
    finally:
        subprocess.run(["umount", disk], check=True)


def test_odd_characters_in_path_and_point_names(tools, tmp_path):
    names = ["a.b", "a/b", "re:`x`", "Ünï cödé", "x#0:y", '"q"', "A.b"]
    specs = [ColumnSpec(name=name, shape=(1,), dtype="float16") for name in names]
    path = tmp_path / "a b#c%20é" / "feats?.lance"
    writer = create(path, specs, tools.MANIFEST)
    values = {name: np.full((1, 1), i, np.float16) for i, name in enumerate(names)}
    writer.append([Record("s0")], [0], values, stop=1)
    store = writer.finish()
    assert path.is_dir()
    assert list(store.points) == names
    assert [float(store[name].numpy()[0, 0]) for name in names] == list(range(len(names)))
    assert [float(store[name][0][0]) for name in names] == list(range(len(names)))


def test_a_tilde_is_the_home_folder(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    create("~/a.lance", ONE, tools.MANIFEST).finish()
    assert (tmp_path / "a.lance").is_dir()


def test_a_uri_is_left_as_it_is(tools, tmp_path):
    uri = f"file://{tmp_path}/a.lance"
    assert tools.extract(uri).path == uri
    assert len(open_store(uri).skipped) == len(tools.SKIPPED)
    with pytest.raises(StoreError, match=r"^Cannot open the store at s3://bucket/a\.lance: [^\n]*$"):
        unreachable = {"aws_endpoint": "http://127.0.0.1:9", "allow_http": "true", "client_max_retries": "0"}
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region": "c"}
        open_store("s3://bucket/a.lance", storage_options={**unreachable, **keys})


def test_two_points_of_one_name_and_reserved_names_are_refused(tools):
    with pytest.raises(StoreError, match="same name"):
        create(None, [*ONE, *ONE], tools.MANIFEST)
    with pytest.raises(StoreError, match="cannot be called 'label'"):
        ColumnSpec(name="label", shape=(1,), dtype="float16")


PRODUCER = """
import sys, time
sys.path.insert(0, {folder!r})
import conftest
from pathlib import Path
path = Path(sys.argv[1])
from spile.store import create, resume, has_store
start = resume if has_store(path) else create
writer = start(path, conftest.COLUMNS, conftest.MANIFEST, commit_bytes=300)
print("go", flush=True)
while writer.next_position < 400:
    conftest.feed(writer, samples=writer.next_position + 4, skip=set(range(5, 400, 7)))
    time.sleep(0.002)
writer.finish()
"""


@pytest.mark.zoo
@pytest.mark.timeout(600)
def test_kill_9_at_20_random_moments(tools, tmp_path):
    script = PRODUCER.format(folder=str(Path(__file__).parent))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(path):
        return subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, env=environment
        )

    with start(tmp_path / "whole.lance") as process:
        assert process.wait() == 0
    random.seed(0)
    kills = 0
    while kills < 20:
        with start(tmp_path / "killed.lance") as process:
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        if has_store(tmp_path / "killed.lance") and open_store(tmp_path / "killed.lance").complete:
            partial = open_store(tmp_path / "killed.lance")
            assert tools.contents(partial) == tools.contents(open_store(tmp_path / "whole.lance"))
            shutil.rmtree(tmp_path / "killed.lance")
    with start(tmp_path / "killed.lance") as process:
        assert process.wait() == 0
    whole, killed = (open_store(tmp_path / f"{name}.lance") for name in ("whole", "killed"))
    assert tools.contents(killed) == tools.contents(whole)
    assert len(killed) + len(killed.skipped) == 400


MEMORY = """
import sys
import numpy as np, psutil
from spile.data.source import Record
from spile.store import ColumnSpec, Manifest, create

def resident():
    return psutil.Process().memory_info().rss

spec = [ColumnSpec(name="x", shape=(2048,), dtype="float16")]
writer = create(sys.argv[1], spec, Manifest(fingerprinted={}), commit_bytes=16 << 20)
values = np.random.default_rng(0).standard_normal((1024, 2048)).astype(np.float16)
writing = []
for start in range(0, 200 * 1024, 1024):
    records = [Record(f"s{i}") for i in range(start, start + 1024)]
    writer.append(records, range(start, start + 1024), {"x": values}, stop=start + 1024)
    writing.append(resident())
store = writer.finish()
before = resident()
assert sum(len(block) for block in store["x"].batches(rows=1024)) == 200 * 1024
print(max(writing[100:]) - max(writing[:100]), resident() - before)
"""


@pytest.mark.zoo
def test_writing_and_reading_keep_memory_flat(tmp_path):
    command = [
        sys.executable,
        "-c",
        MEMORY,
        str(tmp_path / "a.lance"),
    ]  # alone, so that nothing else is measured
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    written, read = map(int, found.stdout.split())
    assert written < 48 << 20  # 400 MB were written meanwhile
    assert read < 400 << 20  # and 800 MB read; what Lance reads ahead and keeps levels off below 0.3 GB
