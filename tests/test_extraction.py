"""Extraction: values, order, resuming, fingerprints, bad samples, memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import spile
from spile.preprocessing import ImagePreprocessing

IMAGES = ImagePreprocessing(resize=16, crop=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
    ).train()


def pictures(count: int = 50) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def tapped(model: nn.Module | None = None, addresses: Any = ("2", "4"), pool: Any = "avg") -> Any:
    return spile.tap(model or network(), list(addresses), pool=pool, example=(1, 3, 16, 16))


def extract(tap: Any, data: Any, path: Path | None = None, **options: Any) -> Any:
    return spile.extract(
        tap, data, path, **{"preprocessing": IMAGES, "progress": False, "batch_size": 8, **options}
    )


def image_folder(folder: Path, count: int = 20) -> Path:
    for number, pixels in enumerate(pictures(count)):
        (folder / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class{number % 2}" / f"{number:03}.png")
    return folder


def columns(store: Any) -> dict[str, bytes]:
    return {name: store[name].numpy().tobytes() for name in store.points} | {
        "id": str(store.ids.tolist()).encode()
    }


def test_values_are_those_of_the_model_by_hand() -> None:
    model, x = network(), pictures(20)
    store = extract(tapped(model), (x, np.arange(20) % 3), dtype="float32")
    ready = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = model.eval()(ready).mean((2, 3)).numpy()
    np.testing.assert_allclose(store["4"].numpy(), expected, atol=1e-6)
    assert store.labels.tolist() == (np.arange(20) % 3).tolist()
    assert store.complete and len(store) == 20


def test_model_is_left_in_training_mode_with_its_statistics() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    extract(tapped(model), pictures(9))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_in_memory_and_on_disk_are_the_same(tmp_path: Path) -> None:
    memory, disk = extract(tapped(), pictures()), extract(tapped(), pictures(), tmp_path / "s.lance")
    assert columns(memory) == columns(disk)
    assert columns(spile.open(tmp_path / "s.lance")) == columns(disk)


def test_finished_store_is_returned_without_computing(tmp_path: Path) -> None:
    tap = tapped()
    first = extract(tap, pictures(), tmp_path / "s.lance")
    files = sorted(p.stat().st_mtime_ns for p in (tmp_path / "s.lance" / "data").iterdir())
    again = extract(tap, pictures(), tmp_path / "s.lance")
    assert columns(first) == columns(again)
    assert files == sorted(p.stat().st_mtime_ns for p in (tmp_path / "s.lance" / "data").iterdir())


@pytest.mark.parametrize("batches_before_the_cut", [0, 1, 3, 6])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches_before_the_cut: int
) -> None:
    whole = columns(extract(tapped(), pictures(), tmp_path / "whole.lance"))
    run = extraction_engine_that_fails_after(monkeypatch, batches_before_the_cut)
    with pytest.raises(RuntimeError, match="cut off"):
        extract(tapped(), pictures(), tmp_path / "cut.lance")
    monkeypatch.undo()
    assert run.calls > batches_before_the_cut
    resumed = extract(tapped(), pictures(), tmp_path / "cut.lance")
    assert columns(resumed) == whole
    assert len(set(resumed.ids)) == 50


class extraction_engine_that_fails_after:  # noqa: N801 - reads as a sentence
    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
        from spile.torch.engines import EagerEngine

        self.calls = 0
        compute = EagerEngine.__call__

        def fail(engine: Any, inputs: Any) -> Any:
            self.calls += 1
            if self.calls > batches:
                raise RuntimeError("cut off")
            return compute(engine, inputs)

        monkeypatch.setattr(EagerEngine, "__call__", fail)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": network(seed=1)}, "weights"),
        ({"pool": "max"}, "pool"),
        ({"batch_size": 16}, "batch_size"),
        ({"dtype": "float32"}, "dtype"),
        ({"preprocessing": ImagePreprocessing(resize=16, crop=(16, 16))}, "preprocessing.mean"),
        ({"data": pictures(51)}, "samples.count"),
    ],
)
def test_what_gives_other_values_never_mixes(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    extract(tapped(), pictures(), tmp_path / "s.lance")
    tap = tapped(change.pop("model", None), pool=change.pop("pool", "avg"))
    with pytest.raises(spile.FingerprintMismatch, match=field):
        extract(tap, change.pop("data", pictures()), tmp_path / "s.lance", **change)


def test_resume_false_refuses_what_is_there(tmp_path: Path) -> None:
    extract(tapped(), pictures(), tmp_path / "s.lance")
    with pytest.raises(spile.StoreError, match=r"s\.lance"):
        extract(tapped(), pictures(), tmp_path / "s.lance", resume=False)


def test_bad_files_become_skipped_rows(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / "class0" / "000.png").write_bytes(b"no picture")
    (folder / "class1" / "empty.png").touch()
    store = extract(tapped(), folder, tmp_path / "s.lance", max_bad=0.2)
    assert len(store) + store.skipped.num_rows == 21
    assert store.skipped["id"].to_pylist() == ["class0/000.png", "class1/empty.png"]
    assert all(store.skipped["reason"].to_pylist())
    assert "class0/000.png" not in store.ids
    assert store.labels.tolist() == [i.split("/")[0] for i in store.ids]


def test_a_bad_file_does_not_move_the_others_to_other_batches(tmp_path: Path) -> None:
    good = extract(tapped(), image_folder(tmp_path / "a"), dtype="float32")
    folder = image_folder(tmp_path / "b")
    (folder / "class0" / "002.png").write_bytes(b"no picture")
    bad = extract(tapped(), folder, dtype="float32")
    kept = [i for i, name in enumerate(good.ids) if name != "class0/002.png"]
    np.testing.assert_allclose(bad["4"].numpy(), good["4"].numpy()[kept], rtol=1e-5, atol=1e-7)


def test_too_many_bad_files_stop_the_run_and_it_can_go_on(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    for name in ("000.png", "002.png", "018.png"):
        (folder / "class0" / name).write_bytes(b"no picture")
    with pytest.raises(spile.DataError, match=r"class0/002\.png.*max_bad=0\.01"):
        extract(tapped(), folder, tmp_path / "s.lance")
    store = extract(tapped(), folder, tmp_path / "s.lance", max_bad=0.2)
    assert len(store) == 17 and store.skipped.num_rows == 3


def test_nothing_readable_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(spile.DataError, match="not one sample can be used"):
        extract(tapped(), tmp_path)


def test_overflow_names_the_layer_and_offers_float32() -> None:
    model = network().eval()
    with torch.no_grad():
        model[3].weight.mul_(1e9)
    with pytest.raises(spile.StoreError, match=r"'4'.*float32"):
        extract(tapped(model), pictures(8))
    assert np.isfinite(extract(tapped(model), pictures(8), dtype="float32")["4"].numpy()).all()


def test_what_came_before_a_bad_value_is_kept(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3, 16, 16)).astype(np.float32)
    x[20] = 1e9
    with pytest.raises(spile.StoreError, match="float32"):
        extract(tapped(), x, tmp_path / "s.lance")
    assert len(spile.open(tmp_path / "s.lance")) == 16  # two whole batches of 8


def test_versions_name_the_libraries_of_the_layers() -> None:
    import timm

    bare, library = network(), timm.create_model("test_resnet.r160_in1k")
    assert "timm" not in extract(tapped(bare), pictures(8)).manifest.fingerprinted["versions"]
    made = extract(tapped(library, ["layer1"]), pictures(8)).manifest.fingerprinted["versions"]
    assert made["timm"] == timm.__version__ and made["machine"].endswith(" cpu")


def test_uint8_images_without_preprocessing_say_what_is_missing() -> None:
    with pytest.raises(spile.ModelError, match="preprocessing="):
        extract(tapped(), pictures(8), preprocessing=None)


def test_ready_arrays_and_loaders_are_taken_as_they_are() -> None:
    x = torch.randn(20, 3, 16, 16)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(20)), batch_size=6)
    array, stream = extract(tapped(), x.numpy(), dtype="float32"), extract(tapped(), loader, dtype="float32")
    np.testing.assert_allclose(array["4"].numpy(), stream["4"].numpy(), atol=1e-6)
    assert stream.labels.tolist() == list(range(20))


def test_added_layers_equal_those_extracted_at_once(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / "class0" / "000.png").write_bytes(b"no picture")
    model = network()
    both = extract(tapped(model), folder)
    store = extract(tapped(model, ["2"]), folder, tmp_path / "s.lance")
    files = {p: p.read_bytes() for p in (tmp_path / "s.lance" / "data").iterdir()}
    store = store.add(tapped(model, ["4"]), folder, preprocessing=IMAGES, progress=False)
    assert columns(store) == columns(both)
    assert all(p.read_bytes() == content for p, content in files.items())


def test_adding_from_another_model_is_refused(tmp_path: Path) -> None:
    store = extract(tapped(addresses=["2"]), pictures(), tmp_path / "s.lance")
    with pytest.raises(spile.FingerprintMismatch, match="weights"):
        store.add(tapped(network(seed=1), ["4"]), pictures(), preprocessing=IMAGES, progress=False)


def test_infos_tell_cost_order_and_baselines() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    tap = spile.tap(
        model, {"raw": "@in", "early": "1", "last": "4@in"}, pool={"raw": "grid:4"}, example=(1, 3, 16, 16)
    )
    points = extract(tap, pictures(8)).points
    assert [points[n].info["baseline"] for n in ("raw", "early", "last")] == ["raw", None, "last"]
    assert points["raw"].shape == (48,) and points["raw"].info["macs"] == 0
    assert points["early"].info["macs"] == 14 * 14 * 4 * 27
    assert points["raw"].info["order"] < points["early"].info["order"] < points["last"].info["order"]


def test_a_point_without_a_row_per_sample_is_refused() -> None:
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Identity(), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(self.inner(x.reshape(-1, 3, 8, 16)).reshape(x.shape))

    with pytest.raises(spile.SpileError, match="inner"):
        extract(spile.tap(Folding(), "inner", pool=None, example=(1, 3, 16, 16)), pictures(8))


PRODUCER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
import torch
torch.set_num_threads(1)
import test_extraction as t
import spile.store.writing
spile.store.writing.Writer._due = lambda self: True
import time
from spile.torch.engines import EagerEngine
compute = EagerEngine.__call__
def slowly(engine, inputs):
    time.sleep(0.02)
    return compute(engine, inputs)
EagerEngine.__call__ = slowly
folder = Path(sys.argv[1])
store = t.extract(t.tapped(), folder, sys.argv[2], batch_size=4, max_bad=0.2)
print(len(store), store.skipped.num_rows)
"""


def kill_and_resume(tmp_path: Path, kills: int) -> None:
    folder = image_folder(tmp_path / "images", count=300)
    for name in ("000.png", "010.png", "298.png"):
        (folder / "class0" / name).write_bytes(b"no picture")
    whole = extract(tapped(), folder, tmp_path / "whole.lance", batch_size=4, max_bad=0.2)
    path = tmp_path / "killed.lance"
    command = [
        sys.executable,
        "-c",
        PRODUCER.format(tests=str(Path(__file__).parent)),
        str(folder),
        str(path),
    ]
    rng = random.Random(0)
    killed = 0
    for _ in range(kills * 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not path.exists() and process.poll() is None:
            time.sleep(0.02)
        deadline = time.monotonic() + rng.uniform(0.1, 1.5)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            if killed == kills:
                break
        else:
            assert process.returncode == 0
            break
    assert killed >= min(kills, 3), "the producer finished before it could be killed"
    resumed = extract(tapped(), folder, path, batch_size=4, max_bad=0.2)
    assert columns(resumed) == columns(whole)
    assert resumed.skipped.to_pylist() == whole.skipped.to_pylist()
    assert len(resumed) + resumed.skipped.num_rows == 300


def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=3)


@pytest.mark.zoo
@pytest.mark.timeout(1800)
def test_killed_twenty_times_and_resumed_is_as_if_never_killed(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=20)


MEMORY = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np, torch, psutil, threading, time
torch.set_num_threads(1)
import test_extraction as t
from spile.data import Record, Samples

def read(position):
    return np.full((16, 16, 3), position % 251, np.uint8)

count = int(sys.argv[1])
source = Samples("made up", "image", [Record(str(i), i % 3) for i in range(count)], read)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 512, 3), torch.nn.ReLU())
tap = t.tapped(model, ["0", "1"])
peak, done = [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], psutil.Process().memory_info().rss)
        time.sleep(0.005)
watcher = threading.Thread(target=watch, daemon=True); watcher.start()
store = t.extract(tap, source, sys.argv[2], batch_size=64, engine=sys.argv[3])
done.set(); watcher.join()
assert len(store) == count
print(peak[0])
"""


def peak_memory(count: int, path: Path, engine: str) -> int:
    script = MEMORY.format(tests=str(Path(__file__).parent))
    found = subprocess.run(
        [sys.executable, "-c", script, str(count), str(path), engine],
        capture_output=True,
        text=True,
        check=True,
        timeout=1500,
    )
    return int(found.stdout.split()[-1])


@pytest.mark.zoo
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["eager", "openvino"])  # `auto` may choose another one for more samples
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path, engine: str) -> None:
    few, many = (peak_memory(n, tmp_path / f"{n}.lance", engine) for n in (5_000, 50_000))
    assert many <= 1.10 * few, f"{few / 1e6:.0f} MB for 5,000 samples, {many / 1e6:.0f} MB for 50,000"


def test_other_data_under_the_same_ids_is_not_mixed_in(tmp_path: Path) -> None:
    tap, images, labels = tapped(), pictures(20), np.arange(20) % 2
    first = extract(tap, (images, labels), tmp_path / "a.lance")
    assert extract(tap, (images.copy(), labels.copy()), tmp_path / "a.lance").fingerprint == first.fingerprint
    corrected = labels.copy()
    corrected[3] = 1 - corrected[3]
    for other, field in (((255 - images, labels), "content"), ((images, corrected), "labels")):
        with pytest.raises(spile.FingerprintMismatch, match=rf"samples\.{field}"):
            extract(tap, other, tmp_path / "a.lance")
    with pytest.raises(spile.FingerprintMismatch, match=r"samples\.content"):
        first.add(tapped(addresses=["0"]), (255 - images, labels), preprocessing=IMAGES, progress=False)


def test_other_files_of_the_same_names_are_not_mixed_in(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    first = extract(tapped(), folder, tmp_path / "a.lance")
    assert extract(tapped(), folder, tmp_path / "a.lance").fingerprint == first.fingerprint
    Image.fromarray(255 - pictures(1)[0]).save(folder / "class0" / "000.png")
    with pytest.raises(spile.FingerprintMismatch, match=r"samples\.content"):
        extract(tapped(), folder, tmp_path / "a.lance")


def test_a_stream_is_known_by_its_first_batch(tmp_path: Path) -> None:
    images, labels = pictures(20), [frozenset({"red", "round"}), frozenset()] * 10
    tap = tapped()

    def given(images: Any = images, labels: Any = labels) -> Any:
        return lambda: iter([(images[:10], labels[:10]), (images[10:], labels[10:])])

    first = extract(tap, given(), tmp_path / "a.lance")
    assert extract(tap, given(), tmp_path / "a.lance").fingerprint == first.fingerprint
    for other in (given(images=255 - images), given(labels=labels[::-1])):
        with pytest.raises(spile.FingerprintMismatch, match=r"samples\.content"):
            extract(tap, other, tmp_path / "a.lance")


class Pairs:
    """Tells its labels only when it is read."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Any:
        return self.images[position], int(self.labels[position])


def test_labels_that_reading_tells_do_not_change_what_a_source_is(tmp_path: Path) -> None:
    source = spile.data.open_source(Pairs(pictures(20), np.arange(20) % 2))
    first = extract(tapped(), source, tmp_path / "a.lance")
    assert first.labels.tolist() == [0, 1] * 10
    assert extract(tapped(), source, tmp_path / "a.lance").fingerprint == first.fingerprint
    added = first.add(tapped(addresses=["0"]), source, preprocessing=IMAGES, progress=False)
    assert list(added.points) == ["2", "4", "0"]
