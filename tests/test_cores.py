"""How many processors there are to use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from spile.cores import usable_cores

PINNED = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from spile.cores import usable_cores
print(usable_cores())
"""


def test_there_is_at_least_one() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores")
def test_what_the_process_is_bound_to_counts() -> None:
    done = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
