import subprocess
import sys

import numpy as np
import pytest

from spile.errors import MissingDependency, StoreError
from spile.store import ColumnSpec, create, open_store


@pytest.fixture
def expected(tools):
    kept = [p for p in range(tools.SAMPLES) if p not in tools.SKIPPED]
    return {name: [tools.features(p)[name] for p in kept] for name in tools.features(0)}


@pytest.mark.parametrize("name", ["layer4.0.conv2@in", "map"])
def test_a_column_reads_as_numpy_does(store, expected, name):
    whole, column = np.stack(expected[name]), store[name]
    assert column.shape == whole.shape
    assert column.dtype == whole.dtype
    assert len(column) == len(whole)
    n = len(whole)
    for rows in (
        0, -1, n - 1, slice(None), slice(3, 9), slice(-4, None), slice(None, None, -2), slice(5, 5),
        [4, 0, 4], [], np.array([n - 1, -n]), np.arange(n) % 2 == 0,
    ):  # fmt: skip
        assert np.array_equal(column[rows], whole[rows])
        assert column[rows].dtype == whole.dtype
    for rows in (n, -n - 1, [0, n]):
        with pytest.raises(IndexError):
            column[rows]
    assert column[[]].shape == (0, *whole.shape[1:])
    assert np.array_equal(column.numpy(), whole)
    assert np.array_equal(np.asarray(column), whole)
    assert np.asarray(column, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("rows", [1, 5, 8, 21, 100])
def test_batches_are_all_of_the_size_asked_for_but_the_last(store, expected, rows):
    blocks = list(store["map"].batches(rows=rows))
    assert [len(b) for b in blocks] == [min(rows, 21 - s) for s in range(0, 21, rows)]
    assert np.array_equal(np.concatenate(blocks), np.stack(expected["map"]))


def test_variable_lengths_come_back_one_array_a_sample(store, expected):
    column = store["tokens"]
    assert column.shape == (21, None, 5)
    for read, rows in (
        (column.numpy(), slice(None)),
        (column[3:8], slice(3, 8)),
        (np.concatenate(list(column.batches(rows=4))), slice(None)),
    ):
        assert read.dtype == object
        for mine, right in zip(read, expected["tokens"][rows], strict=True):
            assert mine.dtype == np.float16
            assert np.array_equal(mine, right)
    assert np.array_equal(column[2], expected["tokens"][2])
    assert column[[]].shape == (0,)
    assert [tuple(row.shape) for row in column.torch()] == [row.shape for row in expected["tokens"]]


def test_torch_gives_writable_tensors(store, expected):
    import torch

    tensor = store["map"].torch()
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.from_numpy(np.stack(expected["map"])))
    assert torch.from_numpy(next(store["map"].batches())).add_(1).shape == tensor.shape


def test_scalars_are_columns_too(simple):
    for path in (None, "x.lance"):
        store = simple(np.arange(3, dtype=np.float32), path=path)
        assert store["x"].numpy().tolist() == [0, 1, 2]
        assert store["x"][1] == 1


def test_what_a_store_tells_about_itself(store, tools):
    assert store.points["map"].info["macs"] == 12
    assert store.points["tokens"].shape == (None, 5)
    assert list(store.points) == [spec.name for spec in tools.COLUMNS]
    assert store.manifest == tools.MANIFEST
    assert len(store.fingerprint) == 64
    assert store["map"].fingerprint != store["tokens"].fingerprint
    assert "map" in store
    assert "nothing" not in store
    assert "21 rows, 9 skipped, complete; points layer4.0.conv2@in" in repr(store)
    assert store.splits.tolist()[:2] == ["train", "test"]
    assert store.groups is None
    with pytest.raises(StoreError, match=r"no point 'layer4\.conv2'\. Nearest: layer4\.0\.conv2@in"):
        store["layer4.conv2"]


def test_an_open_store_is_a_snapshot(tools, tmp_path):
    writer = create(tmp_path / "a.lance", tools.COLUMNS, tools.MANIFEST)
    tools.feed(writer, samples=8, skip={5})
    writer.commit()
    early = open_store(tmp_path / "a.lance")
    tools.feed(writer, skip={5})
    writer.finish()
    assert (len(early), len(early.ids), len(early["map"].numpy()), early.complete) == (7, 7, 7, False)
    assert len(open_store(tmp_path / "a.lance")) == 29


def test_an_empty_store_can_be_read(tools, tmp_path):
    for path in (None, tmp_path / "a.lance"):
        writer = create(path, tools.COLUMNS, tools.MANIFEST)
        tools.feed(writer, samples=3, skip={0, 1, 2})
        store = writer.finish()
        assert (len(store), len(store.skipped), store.labels) == (0, 3, None)
        assert store["map"].numpy().shape == (0, 2, 3)
        assert list(store["map"].batches()) == []
        assert len(store["tokens"].numpy()) == 0
        assert store.neighbors("map", np.ones(6)).ids.shape == (1, 0)


def test_to_pandas_holds_the_samples_and_the_points_asked_for(store, expected):
    frame = store.to_pandas()
    assert list(frame) == ["id", "position", "label", "split", "group", "layer4.0.conv2@in", "map", "tokens"]
    assert frame["map"].iloc[4].tolist() == expected["map"][4].tolist()
    assert list(store.to_pandas(["id", "map"])) == ["id", "map"]
    with pytest.raises(StoreError, match="no point 'mapp'"):
        store.to_pandas(["mapp"])


def test_sql_over_samples_and_points(store, expected):
    counts = store.sql("select label, count(*) as n from store group by label order by label").fetchall()
    assert counts == [("class0", 7), ("class1", 8), ("class2", 6)]
    [(value,)] = store.sql('select "layer4.0.conv2@in"[2] from store where position = 2').fetchall()
    assert value == np.float32(expected["layer4.0.conv2@in"][1][1])
    [(lengths,)] = store.sql("select list(len(tokens) order by position) from store").fetchall()
    assert lengths == [len(row) for row in expected["tokens"]]
    assert len(store.sql("select * from store").columns) == 8
    with pytest.raises(StoreError, match=r'DuckDB: Binder Error: .*"nothing".*called store'):
        store.sql("select nothing from store")


def test_sql_reads_only_the_points_it_names(store, monkeypatch):
    read = []
    original = type(store)._read
    monkeypatch.setattr(type(store), "_read", lambda self, name: read.append(name) or original(self, name))
    store.sql("select count( * ) from store").fetchall()
    assert read == ["id", "position", "label", "split", "group"]
    store.sql("select MAP from store").fetchall()
    assert read[5:] == ["id", "position", "label", "split", "group", "map"]


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("pandas", "data", lambda store: store.to_pandas()),
        ("duckdb", "data", lambda store: store.sql("select 1")),
        ("torch", "torch", lambda store: store["map"].torch()),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(tools, monkeypatch, package, extra, call):
    store = tools.extract(None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"{package}.*spile\[{extra}\]"):
        call(store)


def test_a_store_in_memory_imports_neither_lance_nor_a_framework(tmp_path):
    code = """
import sys
import numpy as np
from spile.store import ColumnSpec, Manifest, create, open_store
writer = create(PATH, [ColumnSpec(name="x", shape=(2,), dtype="float16")], Manifest(fingerprinted={}))
class Record: id, label, split, group = "s0", "cat", None, None
writer.append([Record], [0], {"x": np.ones((1, 2))}, stop=1)
store = writer.finish()
assert store["x"].numpy().tolist() == [[1, 1]]
assert store.neighbors("x", [1, 1], k=1).ids.tolist() == [["s0"]]
loaded = {"lance", "torch", "keras", "tensorflow", "jax", "duckdb", "sklearn"} & set(sys.modules)
print(sorted(loaded))
"""
    for path, loaded in (("None", "[]"), (f"{str(tmp_path / 'a.lance')!r}", "['lance']")):
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code.replace("PATH", path)], capture_output=True, text=True
        )
        assert (result.stdout.strip(), result.stderr) == (loaded, "")


def test_a_store_of_a_later_format_is_refused(tools, tmp_path, monkeypatch):
    monkeypatch.setattr("spile.store.manifest.FORMAT", 99)
    tools.extract(tmp_path / "a.lance")
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 99"):
        open_store(tmp_path / "a.lance")


@pytest.mark.parametrize("shape", [(0,), (3, None), (None, None), (-1,)])
def test_a_shape_must_be_positive_and_vary_only_at_the_front(shape):
    with pytest.raises(StoreError, match="positive sizes"):
        ColumnSpec(name="x", shape=shape, dtype="float16")
