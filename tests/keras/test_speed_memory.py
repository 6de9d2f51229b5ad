"""Extraction to disk takes the same memory for few and for many samples; `predict` takes more for more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.zoo, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "keras_memory.py"
NOISE = 60
"""MiB by which two runs of the same may differ."""
FEATURES = 4096 * 4 / 2**20
"""MiB of float32 that one sample gives."""


def peak(way: str, samples: int) -> float:
    """In MiB, in a process of its own."""
    command = [sys.executable, str(SCRIPT), "--one", way, str(samples)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(run.stdout.splitlines()[-1])["peak"])


def test_extraction_to_disk_takes_no_more_memory_for_50000_samples() -> None:
    assert peak("extract", 50_000) - peak("extract", 5_000) < NOISE


def test_predict_takes_more() -> None:
    """What is measured does show memory that grows."""
    assert peak("predict", 15_000) - peak("predict", 5_000) > 10_000 * FEATURES - NOISE
