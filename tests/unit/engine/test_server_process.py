"""Compared servers differ in speculation alone, and no process of a server outlives its stop."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.engine.server_process import STOP_SECONDS, EngineProcess, EngineSpec, error_in_log
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.errors import EngineFault
from tests.cluster.command import wait_until

SPEC = EngineSpec(model="/m", device="cpu", kv_tokens=4096, dtype="float32", extra_args=("--log-level", "error"))
EAGLE = Eagle3(Path("/d"), 3, DraftSpec())


def test_compared_servers_differ_in_speculation_only() -> None:
    off, eagle, ngram = (SPEC.arguments(21000, s, 0.4) for s in (None, EAGLE, Ngram(4)))
    extra = "--speculative-draft-attention-backend"
    port = off.index("--nccl-port") + 1
    for other in (eagle, ngram):
        other[port] = off[port]
        assert [a for a in off if a not in other] == []
    assert "--speculative-algorithm" not in off
    assert extra not in off
    assert eagle[eagle.index("--weight-version") + 1] == "3"


def test_credentials_do_not_reach_the_engine() -> None:
    variables = SPEC.environment(
        {"AWS_SECRET_ACCESS_KEY": "s", "AWS_ACCESS_KEY_ID": "a", "AURORA_STORE_KEYS": "/keys", "PATH": "/bin"}
    )
    assert variables["PATH"] == "/bin"
    assert not [name for name in variables if name.startswith("AWS_") or name == "AURORA_STORE_KEYS"]


def test_an_engine_that_dies_is_reported_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys; print('no such model'); sys.exit(3)"
    monkeypatch.setattr(EngineSpec, "arguments", lambda *_: [sys.executable, "-c", script])
    process = EngineProcess("off", tmp_path / "log")
    process.start(SPEC, None)
    try:
        with pytest.raises(EngineFault, match="no such model"):
            process.wait_ready(time.monotonic() + 30)
    finally:
        process.stop()


def test_the_first_line_names_the_error_that_ended_an_engine() -> None:
    """Kubernetes shows only the first line of our termination message."""
    log = "[rank 0] loading\nTraceback (most recent call last):\n  ...\ntorch.OutOfMemoryError: 2 GiB\nkilled\nbye"
    assert error_in_log(log) == ": torch.OutOfMemoryError: 2 GiB"
    assert error_in_log("no such model") == ""


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.startswith("Z") or not state.strip()


def running(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> EngineProcess:
    """A server whose program is ``script``, which has printed `up`."""
    monkeypatch.setattr(EngineSpec, "arguments", lambda *_: [sys.executable, "-c", script])
    process = EngineProcess("off", folder / "log")
    process.start(SPEC, None)
    deadline = time.monotonic() + 20
    while "up" not in process.log_tail() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_a_server_asked_to_stop_gets_sigterm_in_its_main_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(0)))\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = running(script, tmp_path, monkeypatch)
    process.stop()
    process.stop()
    assert process.log_tail().splitlines() == ["up", "asked"]


def test_a_server_that_gets_no_time_is_killed_at_once_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('up', child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = running(script, tmp_path, monkeypatch)
    child, began = int(process.log_tail().split()[1]), time.monotonic()
    process.stop(0.0)
    assert not process.is_alive()
    assert time.monotonic() - began < STOP_SECONDS
    wait_until("the child is gone", lambda: _gone(child), 5)
