import numpy as np
import pytest

from spile.data import batches, open_source
from spile.errors import DataError


def test_missing_paths_name_their_neighbours(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(DataError, match=r"no such file or folder: .*Nearest there: 'flowers'") as caught:
        open_source(tmp_path / "flowrs")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file or folder: '/no/where/at/all'"):
        open_source("/no/where/at/all")


def test_unknown_endings_and_objects_say_what_is_allowed(tmp_path):
    (tmp_path / "data.xyz").write_text("")
    with pytest.raises(DataError, match=r"by its ending '\.xyz'; allowed: a folder"):
        open_source(tmp_path / "data.xyz")
    for wrong in (3, None, object()):
        with pytest.raises(
            DataError, match=f"cannot read samples from a {type(wrong).__name__}; allowed: a folder"
        ):
            open_source(wrong)
    with pytest.raises(
        DataError, match=r"a dict with the keys 'x', 'y'; pass one of them: data\[key\], or \(x, y\)"
    ):
        open_source({"x": [1], "y": [2]})


def test_a_data_frame_says_what_to_pass_instead():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0], "label": ["x", "y"]})
    for data in (frame, (frame, [0, 1])):
        with pytest.raises(DataError, match=r"a DataFrame is a table.*Type: frame\.to_numpy\(\)"):
            open_source(data)
    source = open_source((frame[["a", "b"]].to_numpy(), frame["label"]))
    assert source.read(1).tolist() == [2, 4] and source.records[1].label == "y"
    assert open_source(frame[["a", "b"]].to_numpy()).read(0).tolist() == [1, 3]


def test_a_dict_of_arrays_names_inputs_labels_and_ids():
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    source = open_source({"image": pixels, "label": np.arange(3), "id": np.array(["a", "b", "c"])})
    assert source.kind == "image" and [(r.id, r.label) for r in source.records] == [
        ("a", 0),
        ("b", 1),
        ("c", 2),
    ]
    with pytest.raises(DataError, match="the dict has the arrays 'a', 'b'; needed: one of 'image'"):
        open_source({"a": pixels, "b": pixels})
    with pytest.raises(DataError, match="ids must be unique, but 'a'"):
        open_source({"x": pixels, "id": np.array(["a", "b", "a"])})


def test_several_inputs_are_a_dict_beside_the_labels():
    inputs = {"a": np.arange(6.0).reshape(3, 2), "b": np.arange(3)}
    for data in ((inputs, ["x", "y", "z"]), (inputs,)):
        source = open_source(data)
        first, second = batches(source, None, batch_size=2)
        np.testing.assert_array_equal(first.inputs["a"], inputs["a"][:2])
        np.testing.assert_array_equal(second.inputs["b"], [2])
        assert [r.label for r in first.records] == (["x", "y"] if len(data) == 2 else [None, None])
    with pytest.raises(DataError, match="arrays 'a', 'b' have 3, 4 samples"):
        open_source(({"a": np.zeros(3), "b": np.zeros(4)}, [0, 1, 2]))
    with pytest.raises(DataError, match="hold no samples"):
        open_source(({"a": np.zeros(0)},))
