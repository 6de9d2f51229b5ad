from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from spile.data import BadSample, Record, open_source
from spile.errors import DataError

datasets = pytest.importorskip("datasets")


def rotated():
    image = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def made(features, **columns):
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_images_with_class_names_are_decoded_here(tmp_path):
    (tmp_path / "file.png").write_bytes(rotated())
    files = [{"bytes": rotated(), "path": None}, {"bytes": None, "path": str(tmp_path / "file.png")}]
    dataset = made(
        {
            "img": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "group": datasets.Value("string"),
        },
        img=[*files, {"bytes": b"broken", "path": None}, None],
        kind=[1, 0, 1, -1],
        group=list("aabb"),
    )
    source = open_source(dataset.with_format("numpy"))
    assert source.kind == "image"
    assert [source.read(i).shape for i in range(2)] == [(6, 4, 3), (6, 4, 3)]  # turned upright
    assert list(source.records) == [
        Record("0", "dog", None, "a"),
        Record("1", "cat", None, "a"),
        Record("2", "dog", None, "b"),
        Record("3", None, None, "b"),
    ]
    for position, reason in ((2, "not an image"), (3, "no image")):
        with pytest.raises(BadSample, match=reason):
            source.read(position)


def test_several_class_names_a_text():
    names = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "owl"]))
    source = open_source(
        made({"text": datasets.Value("string"), "labels": names}, text=["a", "b"], labels=[[0, 2], []])
    )
    assert [record.label for record in source.records] == [frozenset({"cat", "owl"}), frozenset()]


def test_texts_with_ids():
    text = {
        "id": datasets.Value("string"),
        "sentence": datasets.Value("string"),
        "label": datasets.Value("float32"),
    }
    source = open_source(made(text, id=["x", "y"], sentence=["a", "b"], label=[0.5, 1.0]))
    assert source.kind == "text" and [source.read(0), source.read(1)] == ["a", "b"]
    assert list(source.records) == [Record("x", 0.5), Record("y", 1.0)]


def test_an_own_transform_is_taken_as_it_is():
    dataset = made({"n": datasets.Value("int64")}, n=[1, 2])
    dataset.set_transform(
        lambda batch: {"x": [np.full(3, n, np.float32) for n in batch["n"]], "y": batch["n"]}
    )
    source = open_source(dataset)
    assert source.kind == "array"
    assert source.read(1).tolist() == [2, 2, 2] and source.records[1].label == 2


def test_a_dataset_that_streams_says_what_to_pass_instead():
    picture = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 6))] * 3, "label": [0, 1, 2]}, features=picture
    ).to_iterable_dataset()
    with pytest.raises(DataError, match="IterableDataset has no length") as caught:
        open_source(dataset)
    assert "list(dataset.take(1000))" in str(caught.value)
    assert "lambda: dataset.with_format('numpy').iter(batch_size=32)" in str(caught.value)
    samples = open_source(list(dataset.take(1000)))
    assert samples.read(1).shape == (6, 4, 3) and samples.records[1].label == 1
    stream = open_source(lambda: dataset.with_format("numpy").iter(batch_size=32))
    (batch,) = stream.batches()
    assert stream.kind == "image" and batch.inputs.shape == (3, 6, 4, 3)
    assert [record.label for record in batch.records] == [0, 1, 2]


def test_ambiguous_columns_say_what_to_type():
    pair = {"first": datasets.Value("string"), "second": datasets.Value("string")}
    with pytest.raises(DataError, match=r"first, second, of which 2 .*rename_column\('first', 'text'\)"):
        open_source(made(pair, first=["a"], second=["b"]))
    with pytest.raises(DataError, match="of which 0 can be the input"):
        open_source(made({"n": datasets.Value("int64")}, n=[1]))
    fine = {"text": datasets.Value("string")} | {
        n: datasets.ClassLabel(names=["a"]) for n in ("fine", "coarse")
    }
    with pytest.raises(
        DataError, match=r"several label columns: fine, coarse.*rename_column\('fine', 'label'\)"
    ):
        open_source(made(fine, text=["a"], fine=[0], coarse=[0]))
    with pytest.raises(DataError, match="DatasetDict with the keys 'train'"):
        open_source(datasets.DatasetDict(train=made(pair, first=["a"], second=["b"])))
