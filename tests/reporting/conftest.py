"""A realistic run folder, made from nothing, and a headless browser to look at its report."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

LAYERS = [
    # point, type, cross-validated, standard error, held out, dims, MACs, parameters, on the frontier
    ("conv_stem", "Conv2d", 0.38, 0.061, 0.402, 32, 0.9e6, 864, True),
    ("blocks.0", "Sequential", 0.44, 0.058, 0.463, 16, 1.6e6, 2_672, True),
    ("blocks.1", "Sequential", 0.58, 0.049, 0.571, 24, 4.9e6, 19_536, True),
    ("blocks.2", "Sequential", 0.70, 0.044, 0.689, 40, 7.8e6, 62_216, True),
    ("blocks.3", "Sequential", 0.76, 0.047, 0.757, 80, 12.6e6, 287_816, True),
    ("blocks.4", "Sequential", 0.82, 0.038, 0.8113, 112, 20.3e6, 846_312, True),
    ("blocks.5", "Sequential", 0.74, 0.052, 0.7231, 192, 28.8e6, 2_689_512, False),
    ("blocks.6", "Sequential", 0.66, 0.056, 0.6477, 320, 30.7e6, 3_371_624, False),
    ("head", "Conv2d", 0.54, 0.062, 0.5113, 1280, 32.4e6, 3_785_000, False),
]


def _row(order: int, layer: tuple[Any, ...]) -> dict[str, Any]:
    point, kind, score, stderr, test, dims, macs, params, pareto = layer
    return {
        "point": point,
        "address": point,
        "pool": "avg",
        "type": kind,
        "score": score,
        "stderr": stderr,
        "test_score": test,
        "dims": dims,
        "macs": int(macs),
        "params": params,
        "alpha": 10.0 ** (order % 4),
        "order": order,
        "baseline": "last" if point == "head" else None,
        "chosen": point == "blocks.4",
        "pareto": pareto,
        "note": None,
    }


def _digit(path: Path, text: str, seed: int) -> str:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 25, (28, 28), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    draw.text((8 + rng.integers(-2, 3), rng.integers(-1, 3)), text, fill=240, font_size=22)
    image.save(path)
    return f"pictures/{path.name}"


def _map(path: Path, cells: int, seed: int) -> str:
    level = np.random.default_rng(seed).random((cells, cells)) ** 2
    rgb = np.stack([level * 250, level**0.7 * 200, 90 + level * 80], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).resize((160, 160), Image.Resampling.NEAREST).save(path)
    return f"pictures/{path.name}"


def _confusion() -> list[list[int]]:
    rng = np.random.default_rng(0)
    matrix = rng.poisson(7, (10, 10))
    matrix[np.diag_indices(10)] = rng.integers(370, 440, 10)
    matrix[4, 9] = 71
    matrix[1] = [0, 489, 0, 0, 2, 0, 1, 3, 0, 0]
    matrix[0, 0] += 4950 - matrix.sum()
    return [[int(n) for n in row] for row in matrix]


def _pictures(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)

    def sample(name: str, label: int, seed: int) -> dict[str, Any]:
        return {
            "id": f"mnist/{name}",
            "label": label,
            "picture": _digit(folder / f"{name}.png", str(label), seed),
        }

    queries = []
    for q in (0, 3, 4, 9):
        labels = [q, q, q, 9 if q == 4 else q, q, 4 if q == 9 else q]
        nearest = [sample(f"near{q}{k}", n, 10 * q + k) for k, n in enumerate(labels)]
        distances = [{"distance": round(0.8 + 0.13 * k, 3)} for k in range(len(nearest))]
        queries.append(
            {
                "point": "blocks.4",
                "query": sample(f"query{q}", q, q),
                "neighbors": [near | distance for near, distance in zip(nearest, distances, strict=True)],
            }
        )
    wrong = [(4, 9), (7, 1), (5, 3), (9, 4), (2, 7), (8, 3), (6, 0), (3, 5)]
    mistakes = [
        sample(f"wrong{i}", true, 90 + i) | {"predicted": guess, "confidence": 0.97 - 0.03 * i}
        for i, (true, guess) in enumerate(wrong)
    ]
    maps = [
        {
            "title": title,
            "picture": _map(folder / f"input{i}.png", 32, 7 + i),
            "levels": [
                {"point": p, "picture": _map(folder / f"map{i}{p}.png", n, n + i), "note": f"{n} × {n} cells"}
                for p, n in (("blocks.1", 16), ("blocks.4", 4), ("head", 2))
            ],
        }
        for i, title in enumerate(["a four", "astronaut", "a cup of coffee"])
    ]
    return {"neighbors": queries, "mistakes": mistakes, "maps": maps}


def realistic_run(folder: Path) -> dict[str, Any]:
    """Draw the pictures of a run into `folder` and return what its run.json holds."""
    raw = {
        "point": "raw pixels",
        "score": 0.6,
        "stderr": 0.055,
        "test_score": 0.6173,
        "dims": 12_288,
        "alpha": 1e4,
    }
    return {
        "schema": 1,
        "title": "mnist5k with efficientnet_lite0",
        "created": "2026-11-17T14:03:22+00:00",
        "command": "spile transfer demo:mnist5k --model demo:efficientnet_lite0 --shots 5 --out runs/mnist5k",
        "model": {
            "reference": "demo:efficientnet_lite0",
            "name": "EfficientNet-Lite0",
            "params": 4_652_008,
            "macs": 33_700_000,
            "input": "64×64 RGB",
        },
        "data": {
            "name": "demo:mnist5k",
            "samples": 5000,
            "classes": list(range(10)),
            "train_rows": 50,
            "test_rows": 4950,
            "labels_per_class": 5,
        },
        "metric": "accuracy",
        "table": [raw | {"baseline": "raw"}, *(_row(i, layer) for i, layer in enumerate(LAYERS))],
        "chosen": {
            "point": "blocks.4",
            "score": 0.82,
            "stderr": 0.038,
            "nested": 0.796,
            "test_score": 0.8113,
            "test_correct": 4016,
            "test_total": 4950,
            "estimator": "ridge",
        },
        "seeds": [
            {"seed": 0, "point": "blocks.4", "test_score": 0.8113, "last": 0.5113, "raw": 0.6173},
            {"seed": 1, "point": "blocks.4", "test_score": 0.7932, "last": 0.4987, "raw": 0.6049},
            {"seed": 2, "point": "blocks.3", "test_score": 0.7746, "last": 0.5204, "raw": 0.6301},
        ],
        "confusion": {"labels": list(range(10)), "matrix": _confusion(), "split": "test"},
        **_pictures(folder / "pictures"),
        "timings": [
            {"step": "load the model", "seconds": 0.62},
            {"step": "extract", "seconds": 14.31, "rate": 349.4, "unit": "images/s"},
            {"step": "probe", "seconds": 1.9, "rate": 5.26, "unit": "points/s"},
            {"step": "fit and save", "seconds": 0.34},
            {"step": "neighbors, mistakes and maps", "seconds": 2.75},
        ],
        "skipped": [{"id": "mnist/0417", "reason": "truncated file: 312 of 784 bytes"}],
        "skipped_total": 1,
        "verification": {"point": "blocks.4", "max_abs_difference": 1.2e-07, "labels_identical": True},
        "versions": {"spile": "0.1.0", "torch": "2.15.0", "timm": "1.0.20", "numpy": "2.4.1"},
        "fingerprint": "sha256:3f9a1c0e5b7d2468ace013579bdf02468ace13579bdf0e2c4a6b8d0f1e3c5a79",
        "environment": {"cpu": "x86-64, AVX2", "cores": 2, "python": "3.11.14", "platform": "Linux"},
    }


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """A run's record as a dict to change; its pictures lie in `tmp_path`."""
    return realistic_run(tmp_path)


class Browser:
    """Headless Chromium, spoken to over the WebDriver protocol."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
        arguments = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
        options = {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.root += f"/session/{session['sessionId']}"

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.root + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def devtools(self, command: str, **parameters: object) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def show(self, page: Path, *, width: int, scheme: str) -> None:
        """Open a page at a width in CSS pixels, in the ``light`` or ``dark`` color scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        self._send("POST", "/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._send("POST", "/se/log", {"type": kind})
        return entries

    def quit(self) -> None:
        self._send("DELETE", "")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip(
            "needs Chromium and chromedriver on the PATH (Debian: apt install chromium chromium-driver)"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("browser") / "chromedriver.log"
    process = subprocess.Popen([driver, f"--port={port}", f"--log-path={log}"], stdout=subprocess.DEVNULL)
    try:
        chromium = _connect(port)
        yield chromium
        chromium.quit()
    finally:
        process.terminate()
        process.wait(timeout=20)


def _connect(port: int) -> Browser:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5).close()
            return Browser(port)
        except ConnectionError:
            reason = "refused"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        if time.monotonic() > deadline:
            raise TimeoutError(f"chromedriver did not answer on port {port}: {reason}")
        time.sleep(0.1)
