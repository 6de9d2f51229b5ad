"""Several devices: the same store as from one process, whatever happens to a process. Here they are CPUs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import spile
from spile.data import open_source
from spile.devices import Processes, _sendable

SPEC = spile.ImagePreprocessing(resize=12, crop=(8, 8))
TWO = ["cpu", "cpu"]


class Ends(nn.Module):
    """Bright inputs end any process but the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.home = os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home and float(x.mean()) > 0.9:
            os._exit(7)
        return self.conv(x)


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) > 0.9:
            raise ValueError("too bright")
        return self.conv(x)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures of two classes; the eighth is broken."""
    draw = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "b" / "07.png").write_bytes(b"nothing")
    return tmp_path / "photos"


def test_the_store_is_that_of_one_process(folder: Path, tmp_path: Path) -> None:
    tap = spile.tap(Fails().eval(), {"maps": "conv", "avg": "conv"}, pool={"maps": None, "avg": "avg"})
    given: dict[str, Any] = {"preprocessing": SPEC, "batch_size": 3, "max_bad": 0.1, "progress": False}
    one = spile.extract(tap, str(folder), **given)
    several = spile.extract(tap, str(folder), tmp_path / "a.lance", devices=TWO, **given)
    assert several.fingerprint == one.fingerprint
    assert several.manifest.recorded["devices"] == TWO
    assert several.ids.tolist() == one.ids.tolist() and len(one) == 19
    assert np.array_equal(several.labels, one.labels)
    assert several.skipped.to_pylist() == one.skipped.to_pylist() and one.skipped.num_rows == 1
    for name in ("maps", "avg"):
        np.testing.assert_allclose(several[name], one[name], rtol=2e-3, atol=1e-5)
    assert not multiprocessing.active_children()


def test_data_for_one_batch_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "results", None)
    tap = spile.tap(Fails(), "conv", pool="avg")
    assert len(spile.extract(tap, np.zeros((4, 3, 5, 5), np.float32), devices=TWO, progress=False)) == 4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Ends, (spile.ModelError, "process on cpu ended by itself, with exit code 7")),
        (Fails, (ValueError, "bright")),
    ],
)
def test_what_ends_a_process_ends_the_run_which_goes_on_later(
    kind: Any, expected: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tap = spile.tap(kind(), "conv", pool="avg")
    x = np.zeros((60, 3, 5, 5), np.float32)
    x[40:] = 1
    given: dict[str, Any] = {"batch_size": 4, "engine": "eager", "progress": False}
    error, words = expected
    with pytest.raises(error, match=words):
        spile.extract(tap, x, tmp_path / "a.lance", devices=TWO, **given)
    assert not multiprocessing.active_children()
    before = len(spile.open(tmp_path / "a.lance"))
    assert 4 <= before <= 40
    if kind is Ends:  # which does nothing in this process
        store = spile.extract(tap, x, tmp_path / "a.lance", **given)
        np.testing.assert_allclose(store["conv"], spile.extract(tap, x, **given)["conv"], rtol=2e-3)


def test_no_process_outlives_a_run_whose_values_cannot_be_written(tmp_path: Path) -> None:
    x = np.zeros((60, 3, 5, 5), np.float32)
    x[20:] = 1e9
    tap = spile.tap(nn.Conv2d(3, 4, 3), "@out", pool="avg")
    with pytest.raises(spile.StoreError, match="float16") as caught:
        spile.extract(tap, x, tmp_path / "a.lance", batch_size=4, devices=TWO, progress=False)
    assert caught.value is not None and not multiprocessing.active_children()


def test_a_part_that_differs_in_size_is_found_by_each_process() -> None:
    images = [np.zeros((8, 8, 3), np.uint8)] * 8 + [np.zeros((9, 9, 3), np.uint8)] * 4
    spec = spile.ImagePreprocessing()
    with pytest.raises(spile.DataError, match="9x9x3, the images before it are uint8 8x8x3"):
        spile.extract(
            spile.tap(Fails(), "conv", pool="avg"), images, preprocessing=spec, batch_size=4, devices=TWO,
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("cpu", "devices='cpu' names none: write a list"),
        ([], "names none"),
        (["cpu", "tpu:x"], "no device 'tpu:x'"),
        (["cpu", "cuda:99"], "'cuda:99' is not there; this machine has cpu"),
    ],
)
def test_devices_that_are_not_there(devices: Any, words: str) -> None:
    with pytest.raises(spile.ModelError, match=words):
        spile.extract(spile.tap(Fails(), "conv"), np.zeros((4, 3, 5, 5), np.float32), devices=devices)


def test_what_cannot_be_sent() -> None:
    x = np.zeros((4, 3, 5, 5), np.float32)
    tap = spile.tap(Fails(), "conv", pool="avg")
    with pytest.raises(spile.ModelError, match=r"the tap cannot be sent .*by name in a module"):
        spile.extract(spile.tap(Fails(), "conv", pool=lambda maps: maps.mean((2, 3))), x, devices=TWO)
    with pytest.raises(spile.DataError, match=r"the data cannot be sent .*leave out devices"):
        spile.extract(tap, open_source(x), devices=TWO)
    with pytest.raises(spile.DataError, match="is a stream of batches"):
        spile.extract(tap, iter([x]), devices=TWO)


class OddError(Exception):
    """Cannot be put together again from its message."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_any_error_can_be_told() -> None:
    assert str(pickle.loads(pickle.dumps(_sendable(OddError("too", "bad"))))) == "OddError: too bad"
    assert type(_sendable(ValueError("x"))) is ValueError


WITHOUT_GUARD = """
import numpy as np, torch, spile
tap = spile.tap(torch.nn.Linear(3, 20000), "@out", example=(1, 3))  # too much for the pipe of a process
try:
    spile.extract(tap, np.zeros((100, 3), "float32"), batch_size=4, devices=["cpu"], progress=False)
except spile.ModelError as error:
    print(error)
"""


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WITHOUT_GUARD)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "exit code 1; what it said stands above" in done.stdout and '__name__ == "__main__"' in done.stdout
    assert "freeze_support" in done.stderr
