"""Every Python block of the README and the docs is executed, in order, in a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KERAS = (
    "keras.md",
    "supervision_keras.md",
    "augmentation_keras.md",
)  # their blocks run in tests/keras, once for each backend
SLOW = (
    "addresses.md",
    "diagnosis.md",
    "supervision.md",
    "training.md",
    "transfer.md",
)  # their blocks run with the zoo
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


# The pages' own data has some, and the page on transfer says what the warning means.
@pytest.mark.filterwarnings("ignore:.*near-duplicate")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=pytest.mark.zoo if page.name in SLOW else ())
        for page in PAGES
        if page.name not in KERAS
    ],
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_no_block_escapes() -> None:
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if line.startswith("```") and line != "```"]
        assert set(fences) <= {"```python", "```console", "```text"}, page
        results = page.name == "benchmarks.md" or page.stem.endswith("_results")
        assert len([f for f in fences if f == "```python"]) == len(blocks(page)) and (blocks(page) or results)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
