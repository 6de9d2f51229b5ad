"""What is measured outside duels: the machine, growth with the samples, stores, start-up; and the page."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairing import Duel
from peers import averaged
from PIL import Image
from torch import nn

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "openvino",
    "captum",
    "pillow",
    "pylance",
    "numpy",
)

GROWTH = """
import sys, time, numpy as np, torch, timm, spile
torch.manual_seed(0)
model = timm.create_model("tf_efficientnet_lite0").eval()
tap = spile.tap(model, "blocks.2", pool="avg", example=(1, 3, 64, 64))
spec = spile.ImagePreprocessing(resize=64, crop=(64, 64))

class Data:
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        return np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)

def run(n, path):
    began = time.perf_counter()
    spile.extract(tap, Data(n), path, engine="openvino", preprocessing=spec, progress=False, batch_size=32)
    return time.perf_counter() - began

folder, n = sys.argv[1], int(sys.argv[2])
run(64, folder + "/first.lance")
began = time.perf_counter()
run(n, folder + "/timed.lance")
made = spile.open(folder + "/timed.lance").manifest.recorded["engine"]["preparation_seconds"]
# Not getrusage, whose peak is inherited from the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - began - made, int(peak.split()[1]) / 1024)
"""


def machine(gpu: str = "no GPU used") -> str:
    """What it was measured on."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
        flags = next((line for line in lines if line.startswith("flags")), "")
        wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if f" {name}" in flags]
        cpu += f" ({', '.join(wide)})"
    load = os.getloadavg()[0]
    return (
        f"Machine: {cpu}, {os.cpu_count()} processors, {gpu}; load when it began {load:.1f}. "
        f"Python {platform.python_version()}, {versions}. {torch.get_num_threads()} threads each, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}. Ratios are "
        "medians of paired rounds in one process, with the smallest and the largest in brackets; above 1 is "
        "faster than the first row."
    )


def jpeg_files(folder: Path, number: int) -> list[Path]:
    """Photographs of 500x375, each cut out of another place of scikit-learn's two."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    draw = np.random.default_rng(0)
    paths = []
    for index in range(number):
        left, top = int(draw.integers(0, 140)), int(draw.integers(0, 52))
        paths.append(folder / f"{index:05}.jpg")
        photos[index % 2].crop((left, top, left + 500, top + 375)).save(paths[-1], quality=90)
    return paths


class _Files(torch.utils.data.Dataset[Any]):
    def __init__(self, paths: Sequence[Path]) -> None:
        from torchvision import transforms

        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def usual_jpeg_way(model: nn.Module, layer: str, paths: Sequence[Path], out: Path) -> Callable[[], Any]:
    """Pillow in a DataLoader with two workers, a forward hook, everything concatenated and saved."""
    kept: list[Any] = []
    model.get_submodule(layer).register_forward_hook(lambda module, args, found: kept.append(averaged(found)))

    def run() -> Any:
        kept.clear()
        loader = torch.utils.data.DataLoader(_Files(paths), batch_size=32, num_workers=2)
        with torch.no_grad():
            for batch in loader:
                model(batch)
        np.save(out, torch.cat(kept).numpy())
        return np.load(out)

    return run


def growth() -> str:
    """Time and memory of 5,000 and 50,000 small images, each in a process of its own."""
    found = {}
    for samples in (5000, 50_000):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", GROWTH, folder, str(samples)],
                capture_output=True,
                text=True,
                check=True,
            )
        found[samples] = tuple(map(float, done.stdout.split()[-2:]))
    (small, few), (large, many) = found.values()
    return (
        "## Ten times the samples\n\n5,000 and 50,000 images of 64x64 to a store on disk, "
        f"EfficientNet-Lite0 at `blocks.2`, once prepared: {small:.1f} s and {large:.1f} s, "
        f"{large / small:.2f} times; most memory {few:.0f} and {many:.0f} MiB."
    )


def stores() -> str:
    """Writing 20,000 rows of 2,048 float16 numbers, and reading them back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from spile.data import Record
    from spile.store import ColumnSpec, Manifest, create

    rows = np.random.default_rng(0).standard_normal((20_000, 2048)).astype(np.float16)

    def lance(folder: Path) -> Callable[[], Any]:
        spec = ColumnSpec(name="x", shape=(2048,), dtype="float16")
        writer = create(folder / "x.lance", [spec], Manifest(fingerprinted={}))
        for start in range(0, len(rows), 500):
            stop = start + 500
            records = [Record(str(i)) for i in range(start, stop)]
            writer.append(records, range(start, stop), {"x": rows[start:stop]}, [], stop=stop)
        store = writer.finish()
        return lambda: store["x"].numpy()

    def npy(folder: Path) -> Callable[[], Any]:
        np.save(folder / "x.npy", rows)
        return lambda: np.load(folder / "x.npy")

    def parquet(folder: Path) -> Callable[[], Any]:
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 2048)
        pq.write_table(pa.table({"x": column}), folder / "x.parquet")
        return lambda: pq.read_table(folder / "x.parquet")["x"].combine_chunks().flatten().to_numpy()

    def zarr(folder: Path) -> Callable[[], Any]:
        import zarr as library

        array = library.create_array(
            folder / "x.zarr", shape=rows.shape, dtype="f2", chunks=(500, 2048), compressors=None
        )
        array[:] = rows
        return lambda: library.open_array(folder / "x.zarr", mode="r")[:]

    lines = [
        "## Stores: 20,000 rows of 2,048 float16 numbers",
        "",
        "| | write MB/s | read MB/s |",
        "|---|---:|---:|",
    ]
    for name, way in (
        ("spile (Lance), with ids", lance),
        ("npy, no ids", npy),
        ("zarr, no ids", zarr),
        ("parquet, no ids", parquet),
    ):
        rates = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                read = way(Path(folder))
                wrote = time.perf_counter()
                found = read()
                rates.append((wrote - began, time.perf_counter() - wrote))
                assert np.array_equal(np.asarray(found).reshape(rows.shape)[::999], rows[::999])
        write, read_back = (statistics.median(times) for times in zip(*rates, strict=True))
        lines.append(f"| {name} | {rows.nbytes / write / 1e6:,.0f} | {rows.nbytes / read_back / 1e6:,.0f} |")
    return "\n".join(lines)


def start_up() -> str:
    """Medians of five runs, each a new process; bytecode is cached."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    python, spile = sys.executable, str(Path(sys.executable).with_name("spile"))
    commands = {
        "`python -c pass`": [python, "-c", "pass"],
        "`import spile`": [python, "-c", "import spile"],
        "`spile --help`": [spile, "--help"],
        "`import timm`, which brings torch and torchvision": [python, "-c", "import timm"],
        "`spile layers timm:resnet50`": [spile, "layers", "timm:resnet50"],
    }
    lines = ["## Start-up", "", "| | seconds |", "|---|---:|"]
    for name, command in commands.items():
        times = []
        for _ in range(6):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=env)
            times.append(time.perf_counter() - began)
        lines.append(f"| {name} | {statistics.median(times[1:]):.2f} |")
    return "\n".join(lines)


def written(out: Path, report: Sequence[str], duels: Sequence[Duel]) -> None:
    """The page between its own introduction, which stays, and the end; and the picture beside it."""
    marker = "<!-- measured -->"
    head = out.read_text().partition(marker)[0] if out.exists() else "# Benchmarks\n\n"
    picture = out.with_suffix(".svg")
    drawn(picture, duels)
    body = "\n\n".join(report)
    out.write_text(
        f"{head}{marker}\n\n![How many times as fast as the first row]({picture.name})\n\n{body}\n"
    )


def drawn(path: Path, duels: Sequence[Duel]) -> None:
    """One bar a contender and task: how many times as fast as the first row."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "spile"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, max(2.0, 0.4 * len(duels) + 1)))
    for row, duel in enumerate(duels):
        for contender in duel.contenders[1:]:
            own = contender.name.startswith("spile")
            ratio = statistics.median(duel.ratios(contender))
            marker = "o" if own else "x" if contender.checked else "|"
            axes.plot(ratio, -row, marker, color="tab:green" if own else "tab:grey")
            if own and "eager" not in contender.name:
                axes.annotate(
                    f"{ratio:.1f}", (ratio, -row), xytext=(5, 4), textcoords="offset points", fontsize=8
                )
    axes.set_xscale("log")
    ticks = (1, 2, 3, 5, 10, 20, 50)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.09)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([-row for row in range(len(duels))], [duel.title for duel in duels], fontsize=8)
    axes.set_xlabel("times the first row's speed; green: spile; crosses: others; bars: limits")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
