import os
import sys

import pytest
from PIL import Image

from spile.data import BadSample, open_source
from spile.errors import DataError


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(root / path)
    return root


def listing(source):
    return [(record.id, record.label, record.split) for record in source.records]


def test_class_folders_at_any_depth_in_sorted_order(tmp_path):
    put(
        tmp_path,
        "dog/b.PNG",
        "cat/deep/er/a.jpeg",
        "cat/z.jpg",
        "dog/.hidden.png",
        ".cache/x.png",
        "__MACOSX/y.png",
    )
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    source = open_source(tmp_path)
    assert listing(source) == [
        ("cat/deep/er/a.jpeg", "cat", None),
        ("cat/z.jpg", "cat", None),
        ("dog/b.PNG", "dog", None),
    ]
    assert source.kind == "image" and source.name == str(tmp_path)
    assert source.read(0).shape == (4, 4, 3)
    assert listing(open_source(str(tmp_path))) == listing(source)


def test_split_folders_become_splits(tmp_path):
    put(tmp_path, "Train/cat/1.png", "Train/dog/1.png", "valid/cat/2.png", "test/dog/3.png")
    (tmp_path / "docs").mkdir()  # holds no image, so it is no class
    assert listing(open_source(tmp_path)) == [
        ("Train/cat/1.png", "cat", "train"),
        ("Train/dog/1.png", "dog", "train"),
        ("test/dog/3.png", "dog", "test"),
        ("valid/cat/2.png", "cat", "val"),
    ]
    put(tmp_path, "extra/cat/4.png")  # now they are class folders like any other
    assert {(label, split) for _, label, split in listing(open_source(tmp_path))} == {
        (name, None) for name in ("Train", "valid", "test", "extra")
    }


def test_folders_of_training_and_testing_are_splits_too(tmp_path):
    put(tmp_path, "training/cat/1.png", "Testing/cat/2.png", "dev/dog/3.png")
    assert {(label, split) for _, label, split in listing(open_source(tmp_path))} == {
        ("cat", "train"),
        ("cat", "test"),
        ("dog", "val"),
    }


def test_flat_folders_have_no_labels(tmp_path):
    assert listing(open_source(put(tmp_path / "flat", "b.png", "a.png"))) == [
        ("a.png", None, None),
        ("b.png", None, None),
    ]
    assert listing(open_source(put(tmp_path / "split", "test/b.png"))) == [("test/b.png", None, "test")]


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    put(tmp_path / "elsewhere", "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    assert listing(open_source(tmp_path / "root")) == [("cat/a.png", "cat", None)]


def test_a_folder_that_two_links_lead_to_is_listed_at_both(tmp_path):
    put(tmp_path / "real", "deep/a.png")
    for split in ("train", "test"):
        (tmp_path / "root" / split).mkdir(parents=True)
        (tmp_path / "root" / split / "cat").symlink_to(tmp_path / "real")
    assert listing(open_source(tmp_path / "root")) == [
        ("test/cat/deep/a.png", "cat", "test"),
        ("train/cat/deep/a.png", "cat", "train"),
    ]


def test_empty_and_wrong_folders_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"no images under .*: found no files at all; looked for \.avif"):
        open_source(tmp_path)
    (tmp_path / "a.npy").write_text("")
    with pytest.raises(DataError, match=r"found 1 other files \(1 x \.npy\)"):
        open_source(tmp_path)


def test_lists_of_files_keep_their_order_and_missing_ones_are_bad_samples(tmp_path):
    put(tmp_path, "b.png", "a.png")
    paths = [tmp_path / "b.png", tmp_path / "gone.png", tmp_path / "a.png"]
    for given in (paths, [str(path) for path in paths]):
        source = open_source(given)
        assert [record.id for record in source.records] == [path.as_posix() for path in paths]
        assert source.read(2).shape == (4, 4, 3)
        with pytest.raises(BadSample, match="file not found"):
            source.read(1)
    assert listing(open_source(str(paths[0]))) == [(paths[0].as_posix(), None, None)]


def test_pairs_of_image_files_and_labels(tmp_path):
    from torchvision.datasets import ImageFolder

    put(tmp_path, "cat/1.png", "dog/2.png", "dog/3.png")
    pairs = ImageFolder(tmp_path).samples
    source = open_source(pairs)
    assert source.kind == "image" and source.read(2).shape == (4, 4, 3)
    assert listing(source) == [(path, label, None) for path, label in pairs]
    with_a_missing_one = open_source([*pairs, (str(tmp_path / "gone.png"), "cat")])
    with pytest.raises(BadSample, match="file not found"):
        with_a_missing_one.read(3)
    assert open_source([("a text", 1), ("another.", 0)]).kind == "text"
    for mixed in ([*pairs, ("hello", 1)], [("gone.png", 0), ("lost.png", 1)]):
        with pytest.raises(DataError, match=r"looks like image files, but '(hello|gone\.png)' is none"):
            open_source(mixed)
    with pytest.raises(DataError, match="a label is one number or one string a sample"):
        open_source([(path, {"boxes": 1}) for path, _ in pairs])


def test_lists_that_mix_files_and_texts_are_refused(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(DataError, match="'hello' is none"):
        open_source([str(tmp_path / "a.png"), "hello"])
    with pytest.raises(DataError, match=r"'gone\.png' is none"):
        open_source(["gone.png"])


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_names_that_are_not_utf_8_are_read_and_can_be_written(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9/\xc3\xa9\xe9.png")
    put(tmp_path, path)
    assert listing(open_source(tmp_path)) == [(r"caf\xe9/é\xe9.png", r"caf\xe9", None)]
    full = f"{tmp_path.as_posix()}/" + r"caf\xe9/é\xe9.png"
    for data in (path, [path], [str(path)]):
        assert listing(open_source(data)) == [(full, None, None)]
    for data in (tmp_path, path.parent, path, [path]):
        source = open_source(data)
        assert source.read(0).shape == (4, 4, 3)
        assert source.name.encode()


def test_the_pixel_limit_reaches_the_files(tmp_path):
    source = open_source(put(tmp_path, "a.png"), max_pixels=15)
    with pytest.raises(BadSample, match="too large: 4x4"):
        source.read(0)
