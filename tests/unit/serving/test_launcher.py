"""The launcher imports little, ends with its engine, and reports what happened to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_runtime.errors import EngineFault
from aurora_runtime.serving import launcher
from aurora_runtime.serving.launcher import EngineSupervisor, ReadinessCheck
from aurora_runtime.serving.pod_files import Withdrawal, write_atomically
from tests.unit.serving.engine_starts import engine_start


def test_the_launcher_imports_neither_torch_nor_sglang() -> None:
    code = "import sys, aurora_runtime.serving.launcher; sys.exit(bool({'torch', 'sglang'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits, and the signal handlers of this process restored."""
    monkeypatch.setattr(launcher, "CRASH_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "ORDER_POLL_SECONDS", 0.05)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def supervisor(path: Path, command: str) -> EngineSupervisor:
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    return EngineSupervisor(engine_start(path), process)


@pytest.mark.parametrize("code", [0, 7])
def test_an_engine_that_ends_by_itself_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(ReadinessCheck, "run", lambda _: None)
    engine = supervisor(tmp_path, f"sleep 0.3; exit {code}")
    assert engine.run() == (code or 1)
    state = engine._start.options.folder.read_engine_state()
    assert state is not None
    assert not state.ready


def test_a_launcher_that_is_asked_to_stop_before_the_engine_runs_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the launcher went on")

    monkeypatch.setattr(launcher, "require_sglang", lambda _: "0.5.23")
    monkeypatch.setattr(launcher, "prepare_start", stop)
    start = engine_start(tmp_path)
    with pytest.raises(SystemExit) as ended:
        launcher.serve(start.settings, start.options)
    assert ended.value.code == 0


@pytest.mark.parametrize("error", [EngineFault("the redaction hook is not in place"), RuntimeError("a bug")])
def test_a_check_that_fails_ends_the_engine_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Otherwise the pod would stay out of service, and nothing would restart it."""

    def fail(_: ReadinessCheck) -> None:
        raise error

    monkeypatch.setattr(ReadinessCheck, "run", fail)
    with pytest.raises(EngineFault, match=r"redaction hook|RuntimeError"):
        supervisor(tmp_path, "exec sleep 600").run()


def test_a_launcher_that_is_asked_to_stop_ends_the_engine_and_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadinessCheck, "run", lambda _: None)
    engine = supervisor(tmp_path, "exec sleep 600")
    folder = engine._start.options.folder

    def stop_when_ready() -> None:
        while (state := folder.read_engine_state()) is None or not state.ready:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    assert engine.run() == 0


@pytest.mark.parametrize("damaged", [False, True])
def test_an_engine_that_cannot_restore_its_draft_is_ended_and_the_launcher_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    monkeypatch.setattr(ReadinessCheck, "run", lambda _: None)
    engine = supervisor(tmp_path, "exec sleep 600")
    folder, boot = engine._start.options.folder, engine._start.state.boot
    withdrawal = Withdrawal(
        measurement="job",
        boot=boot,
        current_digest="0" * 64,
        current_checksum="sum",
        restart=True,
        pass_sha256="0" * 64,
    )
    write_atomically(folder.withdrawal, b"" if damaged else withdrawal.to_json())
    assert engine.run() == 0
