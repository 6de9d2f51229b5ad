import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spile.data import BadSample, Record, open_source
from spile.errors import DataError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def labels(source):
    return [record.label for record in source.records]


def test_csv_paths_are_relative_to_the_manifest(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 3), (9, 0, 0)).save(tmp_path / "images" / "a.png")
    manifest = write(
        tmp_path / "list.csv",
        "label,path,group,split\ncat,images/a.png,7,train\ndog,images/gone.png,,\nnull,,7,test\n",
    )
    source = open_source(manifest, ids=["x", "y", "z"])
    assert source.kind == "image"
    assert list(source.records) == [
        Record("x", "cat", "train", "7"),
        Record("y", "dog"),
        Record("z", "null", "test", "7"),
    ]
    assert source.read(0)[0, 0].tolist() == [9, 0, 0]
    for position, reason in ((1, "file not found"), (2, "no path")):
        with pytest.raises(BadSample, match=reason):
            source.read(position)
    assert (
        open_source(write(tmp_path / "one.csv", "path,label\nimages/a.png,1\n")).records[0].id
        == "images/a.png"
    )


@pytest.mark.parametrize(
    "written, expected",
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["001", "002", "010"], ["001", "002", "010"]),
        (["1.5", "2", "1e-3"], [1.5, 2.0, 0.001]),
        (["1", "", "3"], [1, None, 3]),
        (["10000000000000000001", "", "3"], ["10000000000000000001", None, "3"]),
        (["9223372036854775807", "-9223372036854775808"], [2**63 - 1, -(2**63)]),
        (["9223372036854775808", "-9223372036854775808"], [str(2**63), str(-(2**63))]),
        (["10000000000000000001", "0.5", "1"], [1e19, 0.5, 1.0]),
        (["nan", "inf", "NA"], ["nan", "inf", "NA"]),
        (["1", "2", "cat"], ["1", "2", "cat"]),
        (["true", "false", "true"], ["true", "false", "true"]),
    ],
)
def test_csv_labels_are_of_one_type_and_names_stay_names(tmp_path, written, expected):
    rows = "".join(f"{i},{value}\n" for i, value in enumerate(written))
    got = labels(open_source(write(tmp_path / "list.csv", f"path,label\n{rows}")))
    assert got == expected and [type(v) for v in got] == [type(v) for v in expected]


def test_a_label_that_turns_to_text_late_in_a_large_file(tmp_path):
    rows = "".join(f"{i}.png,{i % 7}\n" for i in range(200_000))
    got = labels(open_source(write(tmp_path / "list.csv", f"path,label\n{rows}last.png,cat\n")))
    assert got[:2] == ["0", "1"] and got[-1] == "cat"


def test_texts_of_several_lines_in_a_large_file(tmp_path):
    rows = "".join(f'"line {i}\n{"x" * 60}\nend",{i % 2}\n' for i in range(40_000))
    source = open_source(write(tmp_path / "texts.csv", f"text,label\n{rows}"))
    assert len(source.records) == 40_000 and source.read(39_999).startswith("line 39999\nx")


def test_texts_with_quotes_newlines_and_a_byte_order_mark(tmp_path):
    manifest = write(tmp_path / "texts.csv", '\ufefftext,label,id\n"a ""b"",\nc",pos,007\n,neg,008\n')
    source = open_source(manifest)
    assert source.kind == "text"
    assert [source.read(i) for i in range(2)] == ['a "b",\nc', ""]
    assert list(source.records) == [Record("007", "pos"), Record("008", "neg")]
    assert [r.id for r in open_source(write(tmp_path / "n.csv", "text,label\na,1\nb,2\n")).records] == [
        "0",
        "1",
    ]


def test_parquet_keeps_the_types_of_its_labels(tmp_path):
    table = pa.table({"path": ["a.png", "b.png"], "label": [0.5, 2.0], "split": pa.array(["train", None])})
    pq.write_table(table, tmp_path / "list.parquet")
    source = open_source(tmp_path / "list.parquet")
    assert list(source.records) == [Record("a.png", 0.5, "train"), Record("b.png", 2.0)]
    table = pa.table(
        {"path": ["a.png", "b.png", "c.png"], "label": pa.array([2**64 - 1, 3, None], pa.uint64())}
    )
    pq.write_table(table, tmp_path / "long.parquet")
    assert labels(open_source(tmp_path / "long.parquet")) == ["18446744073709551615", "3", None]
    coded = pa.table({"path": ["a.png"], "label": pa.array(["cat"]).dictionary_encode()})
    pq.write_table(coded, tmp_path / "coded.parquet")
    assert labels(open_source(tmp_path / "coded.parquet")) == ["cat"]


def test_several_names_a_row(tmp_path):
    rows = "path,labels\na.png,cat|dog\nb.png,\nc.png, owl \n"
    found = labels(open_source(write(tmp_path / "list.csv", rows)))
    assert found == [frozenset({"cat", "dog"}), frozenset(), frozenset({"owl"})]
    table = pa.table({"path": ["a.png", "b.png"], "labels": [["cat", "dog"], []]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert labels(open_source(tmp_path / "list.parquet")) == [frozenset({"cat", "dog"}), frozenset()]


def test_without_a_label_column_no_sample_has_a_label(tmp_path):
    source = open_source(write(tmp_path / "new.csv", "path,taken,group\na.png,2024,7\nb.png,2025,\n"))
    assert list(source.records) == [Record("a.png", None, None, "7"), Record("b.png", None)]
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "new.parquet")
    assert labels(open_source(tmp_path / "new.parquet")) == [None, None]


@pytest.mark.parametrize(
    "header",
    ["path,label,labels", "file,class", "label,split", "path,label,label", "path, label", "path,Label"],
    ids=lambda value: value,
)
def test_wrong_columns_are_listed_with_the_needed_ones(tmp_path, header):
    manifest = write(tmp_path / "list.csv", f"{header}\n" + "x," * header.count(",") + "x\n")
    with pytest.raises(DataError) as caught:
        open_source(manifest)
    message = str(caught.value)
    assert all(repr(name) in message for name in header.split(","))
    assert (
        "needed: 'path' (or 'text'), and to learn from, 'label', each once" in message and "\n" not in message
    )


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", b""),
        ("b.csv", b"path,label\nx,1,2\n"),
        ("c.csv", b"path,label\n\xff\xfe,1\n"),
        ("d.parquet", b"PAR1"),
    ],
)
def test_unreadable_manifests_are_one_clear_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot read") as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_no_rows_and_repeated_paths(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        open_source(write(tmp_path / "none.csv", "path,label\n"))
    twice = "".join(f"{name}.png,1\n" for name in "abcdabcd")
    with pytest.raises(DataError, match=r"ids must be unique, but 'a\.png', 'b\.png', 'c\.png' and 1 more"):
        open_source(write(tmp_path / "twice.csv", f"path,label\n{twice}"))
