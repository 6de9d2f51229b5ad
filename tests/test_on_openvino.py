"""OpenVINO itself: silent, and careful with what belongs to the process."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

import spile
from spile.torch.on_openvino import OpenVINOEngine

SILENT = """
import logging, socket, sys
import numpy as np, torch, spile
from spile.torch.on_openvino import OpenVINOEngine

def refused(*args, **options):
    raise AssertionError("it tried to reach the network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
tap = spile.tap(torch.nn.Sequential(torch.nn.Linear(3, 3)), "0", example=torch.ones(2, 3))
engine = OpenVINOEngine(tap, np.ones((2, 3), "float32"), preprocessing=None, precision="float32")
engine(np.ones((2, 3), "float32"))
assert "openvino" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert not logging.getLogger().handlers
import openvino_telemetry
"""


def test_nothing_is_reported_to_its_makers(tmp_path: Any) -> None:
    """And the package that would is found again by others afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", SILENT],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*")), "it left something in the home folder"


SIGNALLED = """
import faulthandler, os, signal, threading
import numpy as np, torch, spile
from spile.torch.on_openvino import OpenVINOEngine

faulthandler.enable()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
tap = spile.tap(torch.nn.Sequential(torch.nn.Linear(3, 3)), "0", example=torch.ones(2, 3))
held = [OpenVINOEngine(tap, np.ones((2, 3), "float32"), preprocessing=None, precision="float32")]
dropping = threading.Thread(target=held.clear)
dropping.start()
dropping.join()
os.kill(os.getpid(), signal.SIGINT)
"""


def test_an_engine_dropped_by_another_thread_leaves_the_stack_for_signals() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_the_root_logger_is_left_alone() -> None:
    before = list(logging.getLogger().handlers), logging.getLogger().manager.disable
    tap = spile.tap(nn.Sequential(nn.Linear(3, 3)), "0", example=torch.ones(2, 3))
    OpenVINOEngine(tap, np.ones((2, 3), np.float32), preprocessing=None, precision="float32")
    assert (list(logging.getLogger().handlers), logging.getLogger().manager.disable) == before
