"""`make demo` starts without packages, prepares in a safe order, and hands its times over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.demo import start
from tests.demo.__main__ import preparations
from tests.demo.handover import Handover
from tests.demo.jobs import Job, JobState, Outcome
from tests.demo.show.show_state import first_state
from tests.demo.stages import ROOT, STAGES
from tests.demo.start import run_show, start_jobs


def test_the_start_and_the_build_need_no_package() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.demo.start, tests.cluster.__main__"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, cwd="/")


def needed_before(jobs: tuple[Job, ...], name: str) -> set[str]:
    """The jobs that end before the job `name` starts."""
    after = set(next(job for job in jobs if job.name == name).after)
    return after.union(*(needed_before(jobs, earlier) for earlier in after)) if after else after


def test_two_calls_of_apt_get_never_run_side_by_side_and_the_builds_do() -> None:
    jobs = start_jobs("python3")
    assert "bootstrap" in needed_before(jobs, "prerequisites")
    assert "kubernetes" not in needed_before(jobs, "packages")
    assert "packages" not in needed_before(jobs, "kubernetes")
    jobs = preparations()
    assert "prerequisites" in needed_before(jobs, "kubernetes")
    assert "prerequisites" in needed_before(jobs, "image"), "a bare machine has no busybox for the image"
    assert not needed_before(jobs, "model")


def test_every_program_is_a_stage_of_the_show() -> None:
    stages = {stage.key for stage in STAGES}
    assert {job.name for job in (*start_jobs("python3"), *preparations())} <= stages


def test_the_show_counts_from_the_beginning_of_make_demo() -> None:
    log = ROOT / "log"
    outcomes = {
        "packages": Outcome("packages", log, JobState.DONE, started=102.0, ended=160.0),
        "kubernetes": Outcome("kubernetes", log, JobState.RUNNING, started=110.0),
    }
    handover = Handover.from_json(Handover.of(100.0, outcomes).to_json())
    state = first_state(handover)
    assert state.elapsed_seconds(200.0) == 100.0
    assert state.clock["packages"].elapsed_seconds(200.0) == 58.0
    assert state.clock["kubernetes"].elapsed_seconds(200.0) == 90.0


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"started": 1.0, "other": 2}'])
def test_a_handover_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"make demo|Expecting value"):
        Handover.from_json(text)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The scripts of the jobs that start.py runs, in place of installers and builds; none fails and none takes long."""
    scripts = {"packages": "true", "prerequisites": "true", "kubernetes": f"echo $$ >{tmp_path}/pid; exec sleep 60"}

    def jobs(python: str) -> tuple[Job, ...]:
        return tuple(Job(name, ("/bin/sh", "-c", script)) for name, script in scripts.items())

    monkeypatch.setattr(start, "start_jobs", jobs)
    monkeypatch.setattr(start, "START_LOGS", tmp_path)
    monkeypatch.setattr(start, "obstacles", lambda environment: [])
    monkeypatch.setattr(start, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(signal, "signal", lambda number, handler: signal.SIG_DFL)
    return scripts


def test_the_show_begins_while_kubernetes_is_built_and_the_build_ends_with_the_show(
    quick: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shows: list[Handover] = []

    def show(command: tuple[str, ...]) -> int:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
        assert Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
        assert command[:3] == (".venv/bin/python", "-m", "tests.demo")
        shows.append(Handover.from_json(command[-1]))
        return 5

    monkeypatch.setattr(start, "run_show", show)
    assert start.main() == 5
    assert shows[0].kubernetes_since is not None
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_packages_that_cannot_be_installed_stop_the_build_and_say_what_to_do(
    quick: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick["packages"] = "echo no route to the index; exit 2"
    monkeypatch.setattr(start, "run_show", lambda command: pytest.fail("there is nothing to run the show with"))
    assert start.main() == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed[:3] == [
        "failed: Python packages",
        "  what happened: exit status 2",
        "                 no route to the index",
    ]
    assert printed[-1] == "  do this: run `make env`, then `make demo` again"


def test_the_exit_status_of_the_show_is_that_of_make_demo() -> None:
    assert run_show((sys.executable, "-c", "raise SystemExit(7)")) == 7
    assert run_show(("/bin/sh", "-c", "kill -KILL $$")) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_show_by_its_own_clean_up(number: signal.Signals, tmp_path: Path) -> None:
    """The show cleans up for half a second, and the process that waits for it lets it."""
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    show = f"""
import pathlib, sys, time
from tests.demo.stop_signals import exit_on_stop_signals
exit_on_stop_signals()
try:
    pathlib.Path({str(ready)!r}).touch()
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
finally:
    time.sleep(0.5)
    pathlib.Path({str(cleaned)!r}).touch()
"""
    waiting = f"import sys; from tests.demo.start import run_show; sys.exit(run_show((sys.executable, '-c', {show!r})))"
    process = subprocess.Popen([sys.executable, "-c", waiting], cwd=ROOT, start_new_session=True)
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.02)
    if number is signal.SIGTERM:
        process.terminate()
    else:
        os.killpg(process.pid, number)  # as Ctrl-C and a closed terminal do: the show gets SIGHUP twice
    assert process.wait(30) == 128 + number
    assert cleaned.exists()


def test_a_stop_signal_that_nohup_ignores_stays_ignored() -> None:
    script = """
import os, signal
from tests.demo.stop_signals import exit_on_stop_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
exit_on_stop_signals()
os.kill(os.getpid(), signal.SIGHUP)
print("goes on", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "goes on\n")


def test_a_signal_that_comes_while_the_show_starts_reaches_the_show(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen

    def signalled(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), signal.SIGTERM)
        return popen(command)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(subprocess, "Popen", signalled)
    try:
        assert run_show(("/bin/sleep", "60")) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])
