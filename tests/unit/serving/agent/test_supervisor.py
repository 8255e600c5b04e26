"""The agent's container does not end when the agent crashes, and ends with the agent when the pod stops."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHILD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
number = len(list(folder.iterdir()))
(folder / f"{number}-{os.getpid()}").touch()
if number < 2:
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[2])))
(folder / "ready").touch()
time.sleep(60)
"""
SUPERVISED = """
import sys
from aurora_runtime.serving.agent.supervisor import supervise
sys.exit(supervise([sys.executable, "-c", *sys.argv[1:]], pause_seconds=0.05))
"""


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    path = tmp_path / "starts"
    path.mkdir()
    return path


@pytest.fixture(params=[0, 7])
def supervisor(request: pytest.FixtureRequest, starts: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A supervisor whose command crashes twice, and the exit code of its command on SIGTERM."""
    process = subprocess.Popen([sys.executable, "-c", SUPERVISED, CHILD, str(starts), str(request.param)])
    yield process, request.param
    process.terminate()
    process.wait(60)


def test_a_crash_does_not_end_the_container(supervisor: tuple[subprocess.Popen[bytes], int], starts: Path) -> None:
    process, code = supervisor
    _wait_until((starts / "ready").exists)
    assert len(list(starts.glob("*-*"))) == 3, "two crashes, and the start that lives"
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == code


def test_a_container_that_stops_between_two_starts_starts_nothing_more(tmp_path: Path) -> None:
    program = SUPERVISED.replace("0.05", "60")
    child = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.exit(3)"
    process = subprocess.Popen([sys.executable, "-c", program, child, str(tmp_path / "began")])
    _wait_until((tmp_path / "began").exists)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 3
