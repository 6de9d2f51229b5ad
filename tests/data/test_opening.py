import pytest

from spile.data import open_source
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
