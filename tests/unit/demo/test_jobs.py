"""Jobs run in order and side by side; one failure stops the others; each job's output is kept."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.demo.jobs import Job, JobFailedError, JobRunner, JobState, Outcome
from tests.demo.stage_clock import StageClock, with_outcomes


def shell(name: str, script: str, *after: str) -> Job:
    return Job(name, ("/bin/sh", "-c", script), frozenset(after))


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, f"process {pid} outlived its runner"
        time.sleep(0.02)


def test_a_job_starts_after_the_jobs_that_it_needs(tmp_path: Path) -> None:
    order = tmp_path / "order"
    jobs = [
        shell("slow", f"sleep 0.3; echo slow >>{order}"),
        shell("free", f"echo free >>{order}"),
        shell("last", f"echo last >>{order}", "slow", "free"),
    ]
    with JobRunner(jobs, tmp_path / "logs") as runner:
        runner.wait_for({"last"})
    assert order.read_text().split() == ["free", "slow", "last"]


def test_no_more_jobs_run_at_a_time_than_there_are_slots(tmp_path: Path) -> None:
    most = 0

    def count(outcomes: Mapping[str, Outcome]) -> None:
        nonlocal most
        most = max(most, sum(outcome.state is JobState.RUNNING for outcome in outcomes.values()))

    jobs = [shell(f"job{number}", "sleep 0.3") for number in range(4)]
    with JobRunner(jobs, tmp_path, slots=2) as runner:
        runner.wait_for({job.name for job in jobs}, count)
    assert most == 2


def test_the_output_of_each_job_is_kept(tmp_path: Path) -> None:
    jobs = [shell("one", "echo out; echo err >&2"), shell("two", "echo two")]
    with JobRunner(jobs, tmp_path) as runner:
        runner.wait_for({"one", "two"})
        assert runner.outcomes["one"].log_tail() == ("out", "err")
        assert runner.outcomes["two"].log.read_text() == "two\n"


def test_a_failure_stops_the_others_with_their_children_and_reports_all(tmp_path: Path) -> None:
    child = tmp_path / "child"
    jobs = [
        shell("build", f"sleep 60 & echo $! >{child}; wait"),
        shell("model", f"while [ ! -s {child} ]; do sleep 0.02; done; echo no space left; exit 3"),
        shell("later", "true", "model"),
    ]
    with JobRunner(jobs, tmp_path / "logs") as runner, pytest.raises(JobFailedError) as caught:
        runner.wait_for({"build", "model", "later"})
    assert str(caught.value) == "model exited 3: no space left"
    assert {outcome.name: outcome.state for outcome in caught.value.others} == {
        "build": JobState.STOPPED,
        "later": JobState.WAITING,
    }
    wait_until_gone(int(child.read_text()))


def test_a_failure_counts_even_while_other_jobs_are_waited_for(tmp_path: Path) -> None:
    jobs = [shell("wanted", "sleep 60"), shell("beside", "exit 1")]
    with JobRunner(jobs, tmp_path) as runner, pytest.raises(JobFailedError, match="beside exited 1: no output"):
        runner.wait_for({"wanted"})


def test_jobs_that_nobody_waits_for_go_on_until_the_end_of_the_block(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    jobs = [shell("quick", "true"), shell("long", f"echo $$ >{pid}; exec sleep 60")]
    with JobRunner(jobs, tmp_path) as runner:
        runner.wait_for({"quick"})
        assert runner.outcomes["long"].ended is None
        while not pid.exists() or not pid.read_text():
            time.sleep(0.02)
    assert runner.outcomes["long"].state is JobState.STOPPED
    wait_until_gone(int(pid.read_text()))


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.demo.jobs.STOP_SECONDS", 0.2)
    ready = tmp_path / "ready"
    job = shell("stubborn", f"trap '' TERM; touch {ready}; while true; do sleep 0.1; done")
    with JobRunner([job], tmp_path) as runner:
        runner.wait_for(())
        while not ready.exists():
            time.sleep(0.02)
    assert runner.outcomes["stubborn"].exit_status == -signal.SIGKILL


def test_an_interruption_of_the_stop_kills_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tmp_path / "ready"
    job = shell("stubborn", f"trap '' TERM; echo $$ >{ready}; while true; do sleep 0.1; done")
    with JobRunner([job], tmp_path) as runner:
        runner.wait_for(())
        while not ready.exists() or not ready.read_text():
            time.sleep(0.02)
        begun = time.monotonic()
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            runner.stop()
        timer.join()
        assert time.monotonic() - begun < 5
        assert runner.outcomes["stubborn"].exit_status == -signal.SIGKILL
    wait_until_gone(int(ready.read_text()))


@pytest.mark.parametrize("script", ["", "wait"])
def test_a_program_that_its_job_left_behind_is_killed(tmp_path: Path, script: str) -> None:
    """After the job's own end, and after the end that stop() asks for. The program ignores SIGTERM."""
    child = tmp_path / "child"
    stubborn = f"(trap '' TERM; exec sleep 60) & echo $! >{child}.part; mv {child}.part {child}; {script}"
    with JobRunner([shell("parent", stubborn)], tmp_path / "logs") as runner:
        runner.wait_for(() if script else {"parent"})
        while not child.exists():
            time.sleep(0.02)
    wait_until_gone(int(child.read_text()))


def test_an_interrupt_stops_the_jobs(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupt(outcomes: Mapping[str, Outcome]) -> None:
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt

    jobs = [shell("long", f"echo $$ >{pid}; exec sleep 60")]
    with pytest.raises(KeyboardInterrupt), JobRunner(jobs, tmp_path / "logs") as runner:
        runner.wait_for({"long"}, interrupt)
    wait_until_gone(int(pid.read_text()))


def test_jobs_run_in_groups_of_their_own_so_that_ctrl_c_reaches_only_the_runner(tmp_path: Path) -> None:
    with JobRunner([shell("group", "ps -o pgid= -p $$")], tmp_path) as runner:
        runner.wait_for({"group"})
        assert int(runner.outcomes["group"].log.read_text()) != os.getpgrp()


@pytest.mark.parametrize("jobs", [[shell("a", "true", "b"), shell("b", "true")], [shell("a", ""), shell("a", "")]])
def test_jobs_that_could_never_run_are_refused(jobs: list[Job], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="job a: list it once"):
        JobRunner(jobs, tmp_path)


def test_the_clock_follows_the_jobs_and_keeps_an_earlier_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    clock = StageClock.of(["kubernetes", "model", "image", "cluster"]).start("kubernetes", 5.0)
    clock = with_outcomes(
        clock,
        {
            "kubernetes": Outcome("kubernetes", log, JobState.DONE, started=60.0, ended=400.0),
            "model": Outcome("model", log, JobState.FAILED, started=60.0, ended=61.0, exit_status=1),
            "image": Outcome("image", log, JobState.STOPPED, started=60.0, ended=62.0, exit_status=-15),
            "bootstrap": Outcome("bootstrap", log, JobState.DONE, started=0.0, ended=1.0),
        },
    )
    assert clock["kubernetes"].elapsed_seconds(500.0) == 395.0
    assert clock.failed == "model"
    assert clock["image"].elapsed_seconds(500.0) == 2.0
    assert not clock.running
