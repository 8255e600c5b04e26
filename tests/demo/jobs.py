"""Runs programs side by side, each with its output in a file of its own.

The demo's preparations do not depend on each other: Kubernetes compiles while packages are installed and the model is
converted. Invariants: no program outlives the runner. A program starts only after the programs that it needs have
succeeded. The first failure stops all other programs.

Only the standard library is imported: the first user of this module is a Python without packages (start.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

SLOTS = max(2, os.cpu_count() or 2)
"""Programs that run at a time. The build of Kubernetes takes every core that is free, at a low priority, so two
programs are enough to keep two cores busy."""
POLL_SECONDS = 0.2
STOP_SECONDS = 10.0
"""How long a program has to end after SIGTERM. Then it gets SIGKILL, as does what is left of its group."""


class JobState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Job:
    """A program, and the jobs that must have succeeded before it starts."""

    name: str
    command: tuple[str, ...]
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """The state of one job."""

    name: str
    log: Path
    """Stdout and stderr of the program. The file is missing until the program starts."""
    state: JobState = JobState.WAITING
    started: float | None = None
    """On the clock of time.monotonic()."""
    ended: float | None = None
    exit_status: int | None = None

    def log_tail(self, lines: int = 5) -> tuple[str, ...]:
        """The last lines of the log that are not empty."""
        if not self.log.exists():
            return ()
        written = self.log.read_text(errors="replace").splitlines()
        return tuple([line.rstrip() for line in written if line.strip()][-lines:])


class JobFailedError(RuntimeError):
    """A program failed, and the others were stopped."""

    def __init__(self, failed: Outcome, others: Sequence[Outcome]) -> None:
        self.failed, self.others = failed, tuple(others)
        reason = failed.log_tail(1)
        super().__init__(f"{failed.name} exited {failed.exit_status}: {reason[0] if reason else 'no output'}")


@dataclass
class JobRunner:
    """Runs jobs until the end of its `with` block, which stops what still runs. wait_for() starts them.

    Raises:
        ValueError: Two jobs have one name, or a job needs a job that is not listed before it.
    """

    jobs: Sequence[Job]
    logs: Path
    """The directory of the jobs' output, `<name>.log` each."""
    slots: int = SLOTS
    directory: Path | None = None
    """The programs' working directory. None: this process's own."""
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)
    _outcomes: dict[str, Outcome] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for job in self.jobs:
            unknown = job.after - self._outcomes.keys()
            if unknown or job.name in self._outcomes:
                raise ValueError(f"job {job.name}: list it once, and after {', '.join(sorted(unknown)) or 'no other'}")
            self._outcomes[job.name] = Outcome(job.name, self.logs / f"{job.name}.log")

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """The state of each job, in the order of `jobs`."""
        return dict(self._outcomes)

    def wait_for(self, names: Collection[str], on_poll: Callable[[Mapping[str, Outcome]], None] | None = None) -> None:
        """Run jobs until those of `names` are done. Other jobs go on.

        Raises:
            JobFailedError: A job failed, of `names` or not. All others have been stopped.
        """
        while True:
            self._poll()
            failed = next((outcome for outcome in self._outcomes.values() if outcome.state is JobState.FAILED), None)
            if failed is not None:
                self.stop()
            if on_poll is not None:
                on_poll(self.outcomes)
            if failed is not None:
                raise JobFailedError(failed, [other for other in self._outcomes.values() if other is not failed])
            if all(self._outcomes[name].state is JobState.DONE for name in names):
                return
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop every program that still runs, with the programs that it started, and wait for their end.

        An interruption while the programs end by themselves, as by Ctrl-C, kills all of them at once.
        """
        try:
            for process in self._processes.values():
                _ask_to_end(process)
            deadline = time.monotonic() + STOP_SECONDS
            for process in self._processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in self._processes.values():
                _kill_group(process)
            for name, process in self._processes.items():
                self._end(name, JobState.STOPPED, process.wait())
            self._processes.clear()

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _poll(self) -> None:
        """Notice the ends of programs, then start programs that may start."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                _kill_group(process)
                del self._processes[name]
                self._end(name, JobState.FAILED if process.returncode else JobState.DONE, process.returncode)
        done = {name for name, outcome in self._outcomes.items() if outcome.state is JobState.DONE}
        if any(outcome.state is JobState.FAILED for outcome in self._outcomes.values()):
            return
        for job in self.jobs:
            may_start = self._outcomes[job.name].state is JobState.WAITING and job.after <= done
            if may_start and len(self._processes) < self.slots:
                self._start(job)

    def _start(self, job: Job) -> None:
        outcome = self._outcomes[job.name]
        outcome.log.parent.mkdir(parents=True, exist_ok=True)
        with outcome.log.open("wb") as log:
            self._processes[job.name] = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,  # a group of its own, so that stop() reaches compilers and installers below it
            )
        self._outcomes[job.name] = replace(outcome, state=JobState.RUNNING, started=time.monotonic())

    def _end(self, name: str, state: JobState, exit_status: int) -> None:
        outcome = self._outcomes[name]
        self._outcomes[name] = replace(outcome, state=state, ended=time.monotonic(), exit_status=exit_status)


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the program and its group, which exists until this process has collected the program's end."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program's group: the program itself, or programs that it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
