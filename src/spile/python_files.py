"""Models that a function in the user's own Python file returns, of whatever framework."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spile.backend import framework_of
from spile.errors import ModelError
from spile.loading import did_you_mean, first_line
from spile.preprocessing import Preprocessing


def made_by(path: str, factory: str) -> tuple[Any, Preprocessing | None]:
    """What ``factory()`` in the Python file returns: a model, or one and its preprocessing."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ModelError(f"There is no Python file {path}")
    with _user_code(file):
        module = _import_file(file)
        make = getattr(module, factory, None)
        made = make() if callable(make) else None
    if not callable(make):
        own = (
            (key, getattr(value, "__module__", "")) for key, value in vars(module).items() if callable(value)
        )
        known = [key for key, origin in own if origin == module.__name__]
        raise ModelError(f"{path} has no function {factory!r}. {did_you_mean(f'{path}:', factory, known)}")
    model, spec = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if framework_of(model) is None or not isinstance(spec, Preprocessing | None):
        raise ModelError(
            f"{path}:{factory} returned {_kinds(made)}; it must return a torch.nn.Module or a keras.Model, "
            "or a pair of one and an ImagePreprocessing or TextPreprocessing"
        )
    return model, spec


def imported() -> tuple[str, ...]:
    """The files of the user that models came from, in this process."""
    return tuple(str(module.__file__) for name, module in sys.modules.items() if name.startswith(_PREFIX))


def import_again(files: Iterable[str]) -> None:
    """Make the classes of these files known under the names that `made_by` gave them in another process."""
    for path in files:
        with _user_code(Path(path)):
            _import_file(Path(path))


_PREFIX = "spile_file_"


def _import_file(file: Path) -> Any:
    """Run the file as a module of its own, with its folder importable, as ``python file.py`` would."""
    name = f"{_PREFIX}{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _user_code(file: Path) -> Iterator[None]:
    """Name the line of `file` that an exception came through."""
    sys.path.insert(0, str(file.parent))
    try:
        yield
    except Exception as error:
        passed = traceback.extract_tb(error.__traceback__)
        numbers = [frame.lineno for frame in passed if frame.filename == str(file)]
        if isinstance(error, SyntaxError) and error.filename == str(file):
            numbers.append(error.lineno)
        place = f"{file}, line {numbers[-1]}" if numbers else str(file)
        raise ModelError(f"{place}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(str(file.parent))


def _kinds(made: Any) -> str:
    return ", ".join(type(item).__name__ for item in made) if isinstance(made, tuple) else type(made).__name__
