"""The Python blocks of the pages about Keras, in order, on the backend of this process; and the examples."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (pytest.param("keras.md", marks=pytest.mark.zoo), "supervision_keras.md", "augmentation_keras.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": Path(name).stem}
    blocks = BLOCK.findall((ROOT / "docs" / name).read_text())
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}, block {number}", "exec"), names)


@pytest.mark.zoo
def test_deep_supervision_of_a_resnet() -> None:
    example = runpy.run_path(str(ROOT / "examples" / "deep_supervision_keras.py"))
    history = example["main"](samples=32)
    for head in ("conv1_relu", "conv3_block4_out", "conv5_block3_out"):
        assert history[f"{head}/weight"] == pytest.approx([0.3, 0.3])
        assert history[f"{head}/labels"][-1] > 0


@pytest.mark.zoo
def test_guided_augmentation_by_vgg16(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "guided_augmentation_keras.py"))
    history = example["main"](example["parser"].parse_args(["--samples", "32", "--epochs", "1"]))
    assert len(history["loss"]) == 1
    lines = [
        line.split(":") for line in capsys.readouterr().out.splitlines() if line.startswith("mean change")
    ]
    active, elsewhere = (float(text.split()[0]) for _, text in lines)
    assert elsewhere > 1.5 * active > 0
