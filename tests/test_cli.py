"""The command line: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spile import cli

FACTORY = """
import spile, torch
from torch import nn

def make():
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 3)
    net = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return net.eval(), spile.ImagePreprocessing(resize=16, crop=(16, 16))
"""


def spile(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, standard output, standard error."""
    before, sys.argv = sys.argv, ["spile", *map(str, args)]
    try:
        cli.main()
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def photos(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            pixels[..., number] += 150
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}:make"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


@pytest.mark.parametrize(
    "command", ["layers", "extract", "probe", "transfer", "predict", "diagnose", "report", "demo", "doctor"]
)
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = spile(capsys, command, "--help")

    assert code == 0 and not err
    assert f"Example: spile {command}" in out
    assert command == "report" or "--json" in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert spile(capsys, "--version") == (0, f"spile {version('spile')}\n", "")


@pytest.mark.parametrize(
    "args",
    [(), ("nonsense",), ("layers",), ("layers", "a.py:b", "--only", "x"), ("probe", "x.lance", "--cv", "1")],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    code, _, err = spile(capsys, *args)

    assert code == 2
    assert "Traceback" not in err
    assert ("Usage" in err) or not args


def test_layers(capsys: pytest.CaptureFixture[str], model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    code, table, _ = spile(capsys, "layers", model)
    _, listed, _ = spile(capsys, "layers", model, "--json")
    _, stages, _ = spile(capsys, "layers", model, "--json", "--only", "stages")

    rows = json.loads(listed)
    assert code == 0
    assert [row["address"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[0]["output"] == [6, 7, 7]
    assert 0 < len(json.loads(stages)) < 5
    assert "Conv2d" in table and max(map(len, table.splitlines())) <= 80


def test_from_photos_to_labels(
    capsys: pytest.CaptureFixture[str], model: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    new = photos(tmp_path / "new", ("unknown",), 2)
    (new / "unknown" / "broken.jpg").write_bytes(b"\xff\xd8 not much of a picture")

    code, shown, err = spile(capsys, "transfer", data, "-m", model, "-o", out, "-q", "-l", "0")
    assert code == 0 and not err
    assert f"report: {out / 'report.html'}" in shown.replace("\n", " ").replace("  ", " ")

    code, listed, _ = spile(capsys, "transfer", data, "-m", model, "-o", out, "-q", "-l", "0", "--json")
    value = json.loads(listed)
    assert value["best"] == "0" and value["test_score"] == 1.0 and value["classes"] == ["cat", "dog"]

    code, listed, _ = spile(capsys, "predict", out / "model", new, "--json")
    rows = {Path(row["id"]).name: row for row in json.loads(listed)}
    assert code == 0
    assert rows["00.png"]["label"] == "cat" and 0.5 < rows["00.png"]["confidence"] <= 1
    assert rows["broken.jpg"]["label"] is None and "not an image" in rows["broken.jpg"]["skipped"]

    code, shown, _ = spile(capsys, "predict", out, data / "dog" / "00.png")
    assert code == 0 and "dog" in shown
    code, shown, err = spile(capsys, "predict", out, new / "unknown" / "broken.jpg")
    assert code == 1 and "not an image" in shown and "not one sample could be used" in err

    (out / "report.html").unlink()
    code, shown, _ = spile(capsys, "report", out)
    assert code == 0 and shown.strip() == str(out / "report.html") and (out / "report.html").is_file()


@pytest.mark.filterwarnings("ignore:cv=5 is more")
def test_a_learning_curve(capsys: pytest.CaptureFixture[str], model: str, data: Path, tmp_path: Path) -> None:
    command = ("transfer", data, "-m", model, "-o", tmp_path / "run", "-q", "-l", "0", "--seeds", "2")

    code, listed, _ = spile(capsys, *command, "--shots", "3,6", "--json")
    value = json.loads(listed)
    assert code == 0
    assert [(point["shots"], point["seeds"]) for point in value["curve"]] == [(3, 2), (6, 2)]
    assert value["curve"][0]["chosen_interval"] is not None

    code, _, err = spile(capsys, *command, "--shots", "3,x")
    assert code == 2 and "no list of whole numbers" in err


@pytest.mark.parametrize("kind", ["several", pytest.param("numbers", marks=pytest.mark.zoo)])
def test_manifests_of_several_labels_and_of_numbers(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("onnxscript")
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        pixels[..., 0] += 120 * (i % 2)
        pixels[..., 1] += 3 * i if kind == "numbers" else 120 * (i // 2 % 2)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        names = [name for name, holds in (("red", i % 2), ("green", i // 2 % 2)) if holds]
        rows.append(f"{i}.png,{'|'.join(names) if kind == 'several' else i / 4}")
    header = "path,labels" if kind == "several" else "path,label"
    (tmp_path / "list.csv").write_text("\n".join([header, *rows]))
    out = tmp_path / "run"

    code, listed, err = spile(
        capsys, "transfer", tmp_path / "list.csv", "-m", model, "-o", out, "-q", "-l", "0", "--json"
    )
    assert code == 0 and not err
    value = json.loads(listed)
    assert value["metric"] == ("average_precision" if kind == "several" else "r2")
    assert value["test_score"] > 0.95

    _, listed, _ = spile(capsys, "predict", out, tmp_path / "list.csv", "--json")
    found = {row["id"]: row for row in json.loads(listed)}
    _, shown, _ = spile(capsys, "predict", out, tmp_path / "3.png")
    if kind == "several":
        assert found["0.png"]["label"] == [] and found["3.png"]["label"] == ["green", "red"]
        assert found["1.png"]["probabilities"]["red"] > 0.5 > found["1.png"]["probabilities"]["green"]
        assert "green, red" in shown
    else:
        assert found["20.png"]["label"] == pytest.approx(5.0, abs=1.0)

    code, listed, err = spile(
        capsys, "export", out, tmp_path / "list.csv", "-o", tmp_path / "made", "-f", "onnx", "--json"
    )
    assert code == 0 and not err
    assert json.loads(listed)["labels"] == (["green", "red"] if kind == "several" else None)


def test_extracting_again_goes_on_and_add_adds(
    capsys: pytest.CaptureFixture[str], model: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "f.lance"
    command = ("extract", data, "-m", model, "-o", out, "-q", "--json", "--batch-size", "8")

    code, first, _ = spile(capsys, *command, "-l", "0")
    version = len(list((out / "_versions").iterdir()))
    _, second, _ = spile(capsys, *command, "-l", "0")
    assert code == 0 and json.loads(first) == json.loads(second)
    assert len(list((out / "_versions").iterdir())) == version

    code, added, err = spile(capsys, *command, "-l", "4", "--add")
    assert code == 0, err
    assert json.loads(added)["points"]["4"] == {"shape": [3], "dtype": "float16"}
    assert list(json.loads(added)["points"]) == ["0", "4"]

    code, listed, _ = spile(capsys, "probe", out, "--json", "--cv", "3")
    assert code == 0 and json.loads(listed)["best"] == "0"

    code, _, err = spile(capsys, *command, "-l", "1")
    assert_one_line(code, err, "f.lance")


def test_several_devices(capsys: pytest.CaptureFixture[str], model: str, data: Path, tmp_path: Path) -> None:
    """The processes know the classes of the user's file."""
    command = ("extract", data, "-m", model, "-q", "--json", "--batch-size", "8", "-l", "0")
    found = []
    for name, more in (("one", ()), ("two", ("--devices", "cpu,cpu"))):
        code, told, err = spile(capsys, *command, "-o", tmp_path / f"{name}.lance", *more)
        assert code == 0, err
        found.append(json.loads(told)["fingerprint"])
    assert found[0] == found[1]
    code, _, err = spile(capsys, *command, "-o", tmp_path / "two.lance", "--add", "--devices", "cpu,cpu")
    assert code == 2 and "--device" in err


def assert_one_line(code: int, err: str, *words: str) -> None:
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("layers", "timm:resnet51"), ("no model 'resnet51'", "timm:resnet50")),
        (("layers", "resnet50"), ("not a model reference",)),
        (("layers", "missing.py:make"), ("missing.py",)),
        (("extract", "{photos}", "-m", "{model}", "-o", "{tmp}/f.lance", "-l", "fold1"), ("'fold1'",)),
        (
            ("extract", "{photos}", "-m", "{model}", "-o", "{tmp}/f.lance", "--pool", "median"),
            ("median", "avg"),
        ),
        (("extract", "{photos}", "-m", "{model}", "-o", "{tmp}/net.py/f.lance"), ("net.py",)),
        (("extract", "{tmp}/nowhere", "-m", "{model}", "-o", "{tmp}/f.lance"), ("no such file or folder",)),
        (("extract", "{empty}", "-m", "{model}", "-o", "{tmp}/f.lance"), ("empty",)),
        (("extract", "{columns}", "-m", "{model}", "-o", "{tmp}/f.lance"), ("path",)),
        (("transfer", "{single}", "-m", "{model}", "-o", "{tmp}/run"), ("'cat'", "two classes")),
        (("transfer", "{broken}", "-m", "{model}", "-o", "{tmp}/run"), ("not one sample can be used",)),
        (("transfer", "{mixed}", "-m", "{model}", "-o", "{tmp}/run"), ("max_bad", "resumed")),
        (("transfer", "{photos}", "-m", "{model}", "-o", "{tmp}/net.py/run"), ("cannot write",)),
        (("probe", "{photos}"), ("photos",)),
        (("probe", "{tmp}/nothing.lance"), ("nothing.lance",)),
        (("predict", "{photos}", "{photos}"), ("holds no saved model",)),
        (("predict", "{spoilt}", "{photos}"), ("model.json is broken",)),
        (("report", "{photos}"), ("not a run folder",)),
        (("report", "{spoilt}"), ("not valid JSON",)),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: str,
    data: Path,
    args: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    places = {"tmp": tmp_path, "model": model, "photos": data}
    for name in ("empty", "broken", "mixed", "spoilt"):
        places[name] = tmp_path / name
    (tmp_path / "empty").mkdir()
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "model.json").write_text('{"format": 1,')
    (tmp_path / "spoilt" / "run.json").write_text('{"schema": 1,')
    places["single"] = photos(tmp_path / "single", ("cat",))
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "x.png").write_bytes(b"no picture")
    for path in list(photos(tmp_path / "mixed").rglob("*.png"))[::4]:
        path.write_bytes(b"no picture")
    places["columns"] = tmp_path / "columns.csv"
    (tmp_path / "columns.csv").write_text("file,class\na.png,b\n")
    quiet = ("-q",) if args[0] in ("extract", "transfer") else ()

    code, out, err = spile(capsys, *(arg.format(**places) for arg in args), *quiet)

    assert not out
    assert_one_line(code, err, *words)


def test_a_full_disk_loses_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    data: Path,
    tmp_path: Path,
) -> None:
    command = ("transfer", data, "-m", model, "-o", tmp_path / "run", "-q", "--json", "-l", "0")
    write = Path.write_text

    def full(self: Path, *args: Any, **options: Any) -> int:
        if "run.json" in self.name:
            raise OSError(28, "No space left on device", str(self))
        return write(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        code, _, err = spile(capsys, *command)
    assert_one_line(code, err, "No space left on device")
    assert not (tmp_path / "run" / "run.json").exists()

    code, out, err = spile(capsys, *command)
    assert code == 0 and json.loads(out)["test_score"] == 1.0


def test_an_interrupted_run_says_that_it_can_go_on(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    data: Path,
    tmp_path: Path,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spile.probing.transferring.extract", interrupt)

    code, out, err = spile(capsys, "transfer", data, "-m", model, "-o", tmp_path / "run")

    assert code == 130 and not out
    assert err == "error: interrupted; what was committed is kept: type the same command to go on\n"


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(
    capsys: pytest.CaptureFixture[str], model: str, data: Path, tmp_path: Path
) -> None:
    code, _, err = spile(
        capsys, "transfer", data, "-m", model, "-o", tmp_path / "run", "-q", "--shots", "3", "-l", "0"
    )

    assert code == 0
    assert err == "warning: cv=5 is more than the rows of a class, or the groups, allow: using 3\n"


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr(sys, "argv", ["spile", "doctor"])
    monkeypatch.setattr("spile.diagnosis.diagnose", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = spile(capsys, "doctor", "--json")

    assert code == 0
    assert {"python", "torch", "pylance"} <= {part["part"] for part in json.loads(out)["parts"]}


def test_as_a_module_with_a_reader_that_stops_early(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    module = f"{sys.executable} -m spile"

    piped = subprocess.run(
        f"{module} doctor --json | true; {module} probe {tmp_path}/no.lance; echo $?",
        shell=True,
        capture_output=True,
        text=True,
        env=environment,
    )

    assert piped.stdout == "1\n"
    assert "Traceback" not in piped.stderr and "Broken" not in piped.stderr
    assert [line[:7] for line in piped.stderr.splitlines()] == ["error: "]


def test_help_loads_no_framework() -> None:
    code = (
        "import sys; sys.argv = ['spile', '--help']\n"
        "import spile.cli\n"
        "try: spile.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'lance', 'sklearn', 'pyarrow', 'pandas', 'keras', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_threads_wait_without_spinning_unless_told_otherwise() -> None:
    show = (
        "import os, sys; sys.argv = ['spile', '--help']; import spile.cli\n"
        "try: spile.cli.main()\n"
        "except SystemExit: print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | (
            {"OMP_WAIT_POLICY": given} if given else {}
        )
        found = subprocess.run(
            [sys.executable, "-c", show], capture_output=True, text=True, check=True, env=env
        )
        assert found.stdout.split()[-1] == expected
