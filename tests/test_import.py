"""What importing spile loads, and the inventory of what it offers.

``python tests/test_import.py`` writes the inventory anew after a change that is meant.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import spile

INVENTORY = Path(__file__).with_name("api_surface.json")
FRAMEWORKS = {"torch", "torchvision", "timm", "transformers", "keras", "tensorflow", "jax", "ray"}
HEAVY = FRAMEWORKS | {
    *(
        "numpy",
        "scipy",
        "sklearn",
        "skops",
        "pandas",
        "pyarrow",
        "lance",
        "duckdb",
        "datasets",
        "PIL",
        "skimage",
    ),
    *("mlxtend", "matplotlib", "rich", "typer", "jinja2", "safetensors"),
}
OPTIONAL = FRAMEWORKS | {"pandas", "duckdb", "datasets", "skimage", "mlxtend", "matplotlib"}


def fresh(code: str) -> str:
    """What `code` prints in an interpreter that has loaded nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": ""},
    )
    return done.stdout


def loaded_by(code: str, *, among: set[str]) -> set[str]:
    return set(
        json.loads(
            fresh(f"import json, sys\n{code}\nprint(json.dumps(sorted({among!r} & sys.modules.keys())))")
        )
    )


def modules(without: tuple[str, ...] = ()) -> list[str]:
    found = pkgutil.walk_packages(spile.__path__, "spile.")
    return [module.name for module in found if not module.name.startswith(without)]


# ----------------------------------------------------------------------------------------- importing


def test_importing_spile_loads_nothing_but_the_standard_library() -> None:
    assert loaded_by("import spile", among=HEAVY) == set()


def test_the_check_would_notice() -> None:
    assert loaded_by("import spile, numpy", among=HEAVY) == {"numpy"}
    assert loaded_by("import spile; spile.extract", among={"pyarrow"}) == {"pyarrow"}


def test_no_module_outside_the_frameworks_own_loads_one_or_an_optional_package() -> None:
    # scikit-learn's base classes load pandas where it is installed.
    apart = ("spile.torch", "spile.keras", "spile.testing", "spile.sklearn", "spile.__main__")
    names = modules(without=apart)
    assert "spile.taps" in names
    assert loaded_by(f"import {', '.join(names)}", among=OPTIONAL) == set()


def test_importing_spile_is_quick() -> None:
    seconds = float(
        fresh("import time; t = time.perf_counter(); import spile; print(time.perf_counter() - t)")
    )
    assert seconds < 0.5


def test_every_public_name_resolves_and_is_listed() -> None:
    for name in spile.__all__:
        assert getattr(spile, name) is getattr(spile, name)
    assert set(spile.__all__) < set(dir(spile))


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'spile' has no attribute 'taps2'; there is Activations, .*tap"
    ):
        _ = spile.taps2


def test_type_checkers_see_the_names_that_python_loads() -> None:
    tree = ast.parse(Path(spile.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen, renamed = {}, {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign):
            (target,), value = node.targets, node.value
            renamed[target.id] = value.id  # type: ignore[attr-defined]
    seen |= {name: seen.pop(original) for name, original in renamed.items()}
    assert seen == spile._HOME_OF | dict.fromkeys(spile._ROOMS, "spile")
    assert renamed == spile._RENAMED


def test_packages_of_specs_need_no_import_of_their_own() -> None:
    assert fresh("import spile; print(spile.supervision.Constant(0.3).total)") == "0.3\n"


# ----------------------------------------------------------------------------------------- inventory


def surface() -> dict[str, Any]:
    """Every public name: the signature of a function, the bases, constructor and members of a class."""
    return {name: described(getattr(spile, name)) for name in spile.__all__}


def described(value: Any) -> Any:
    if not inspect.isclass(value):
        return str(inspect.signature(value))
    ours = [c for c in reversed(value.__mro__) if c.__module__.startswith("spile")]
    own = dict.fromkeys(name for c in ours for name in inspect.get_annotations(c))
    own |= {name: member for c in ours for name, member in vars(c).items()}
    members = {
        name: str(inspect.signature(member)) if inspect.isfunction(member) else "attribute"
        for name, member in sorted(own.items())
        if name == "__init__" or not name.startswith("_")
    }
    return {"bases": [base.__name__ for base in value.__bases__], "members": members}


def test_the_public_names_and_signatures_are_those_of_the_inventory() -> None:
    assert surface() == json.loads(INVENTORY.read_text()), "if this is meant: python tests/test_import.py"


def test_the_inventory_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(INVENTORY.read_text())
    monkeypatch.setattr(spile, "tap", lambda model, address: None)
    assert surface() != listed
    monkeypatch.undo()
    monkeypatch.setattr(spile, "__all__", [name for name in spile.__all__ if name != "extract"])
    assert listed.keys() - surface().keys() == {"extract"}


if __name__ == "__main__":
    INVENTORY.write_text(json.dumps(surface(), indent=1) + "\n")
