"""The folder of a saved model: where it lies, what describes it, and what it may name. Pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spile.errors import ModelError

FORMAT = 2
DESCRIPTION, WEIGHTS, CONFIG = "model.json", "network.safetensors", "config.json"
NETWORKS = ("network.pt2", "network.keras")
"""What a network that is saved with its layers is called, by framework."""
HERE = "hf:."
"""The reference of a Hugging Face model whose configuration lies in the folder itself."""
_KEYS = {"reference", "points", "preprocessing", "classes", "ridge"}


def folder_of(path: str | Path) -> Path | None:
    """Where the description lies, in ``run/model`` or ``run``; ``None`` where there is none."""
    try:
        folders = (Path(path), Path(path) / "model")
        return next((folder for folder in folders if (folder / DESCRIPTION).is_file()), None)
    except (OSError, ValueError):  # a text that is no path
        return None


def read_description(folder: Path) -> dict[str, Any]:
    """What ``model.json`` says. Raises `ModelError` where it is broken or of another format."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = description.get("format")
    except (ValueError, AttributeError):
        raise ModelError(f"{path} is broken (no JSON object): make the run again") from None
    if version != FORMAT:
        raise ModelError(
            f"{path} has format {version!r}; this spile reads {FORMAT}: pip install --upgrade spile"
        )
    if missing := _KEYS - set(description):
        raise ModelError(f"{path} is broken (no {', '.join(sorted(missing))}): make the run again")
    return dict(description)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write ``model.json``, at once: a folder that has it is whole."""
    draft = folder / f".{DESCRIPTION}.part"
    text = json.dumps({"format": FORMAT, **description}, indent=2, ensure_ascii=False) + "\n"
    draft.write_text(text, encoding="utf-8")
    draft.replace(folder / DESCRIPTION)
