"""The conformance suite is for those who have pytest; spile itself is for all."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import spile


def test_nothing_but_the_conformance_suite_needs_pytest() -> None:
    apart = ("spile.testing", "spile.torch", "spile.keras", "spile.__main__")
    modules = [
        m.name for m in pkgutil.walk_packages(spile.__path__, "spile.") if not m.name.startswith(apart)
    ]
    assert "spile.taps" in modules
    without = f"import sys; sys.modules['pytest'] = None; import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", without], check=True)
    with_it = "import sys; sys.modules['pytest'] = None; import spile.testing"
    done = subprocess.run([sys.executable, "-c", with_it], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pytest" in done.stderr


def test_every_test_of_the_suite_is_in_the_class_that_is_subclassed() -> None:
    from spile.testing import BackendTests, addresses, extraction, passes, pools, values

    written = {
        name
        for module in (addresses, extraction, passes, pools, values)
        for each in vars(module).values()
        if isinstance(each, type)
        for name in vars(each)
        if name.startswith("test_")
    }
    assert len(written) > 35
    assert written == {name for name in dir(BackendTests) if name.startswith("test_")}
