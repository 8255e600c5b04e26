"""``python3 -m tests.demo.start``: `make demo` on a machine that may have nothing in its cache.

Two things take long then: the installation of Python packages, and the build of Kubernetes from source. They run side
by side. The demo begins when the packages are there, while the build goes on. The demo waits for the build by the lock
of the build, so it does not matter which of the two processes builds.

Only the standard library is imported, because the packages are not there yet. Invariant: every program that this
process started has ended when this process ends, unless it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType

from tests.assets.cache import cache_root
from tests.cluster.file_lock import lock_at_once
from tests.demo.failure import failure_lines, interruption_lines
from tests.demo.handover import Handover
from tests.demo.jobs import Job, JobFailedError, JobRunner, Outcome
from tests.demo.lines import timed_line
from tests.demo.machine_check import obstacles
from tests.demo.stage_clock import StageClock, with_outcomes
from tests.demo.stage_lines import MIN_STAGE_SECONDS, stage_events, stage_reminders
from tests.demo.stages import LOGS, PYTHON, ROOT
from tests.demo.stop_signals import exit_on_stop_signals, on_stop_signals

START_LOGS = LOGS / "start"
"""Apart from the logs of the demo, which runs the job `kubernetes` again and finds it done or waits for it."""


def start_jobs(python: str) -> tuple[Job, ...]:
    """The preparations that need no packages. ``python`` is the interpreter that runs this module."""
    bootstrap = Job("bootstrap", ("bash", "-c", "set -euo pipefail; . tests/setup/environments.sh"))
    packages = Job("packages", ("tests/setup/python.sh",), after=frozenset({"bootstrap"}))
    # After bootstrap, because both may call apt-get, which refuses to run twice.
    prerequisites = Job(
        "prerequisites", (python, "-m", "tests.cluster", "prerequisites"), after=frozenset({"bootstrap"})
    )
    build = Job("kubernetes", (python, "-m", "tests.cluster", "build"), after=frozenset({"prerequisites"}))
    return bootstrap, prerequisites, packages, build


class _Printer:
    """Prints what the jobs do as plain lines: a live view needs packages."""

    def __init__(self, jobs: tuple[Job, ...], started: float) -> None:
        self._clock, self._at, self._started = StageClock.of([job.name for job in jobs]), started, started

    def update(self, outcomes: Mapping[str, Outcome]) -> None:
        now = time.monotonic()
        clock = with_outcomes(self._clock, outcomes)
        for line in [
            *stage_events(self._clock, self._at, clock, now),
            *stage_reminders(self._clock, self._at, clock, now),
        ]:
            print(timed_line(line, now - self._started), flush=True)
        self._clock, self._at = clock, now

    @property
    def running(self) -> tuple[str, ...]:
        return self._clock.running


def main() -> int:
    started = time.monotonic()
    os.chdir(ROOT)
    exit_on_stop_signals()
    with lock_at_once(cache_root() / "demo.lock") as alone:
        found = obstacles(os.environ) if alone else ["another `make demo` runs on this machine: wait for its end"]
        if not found:
            return prepare_and_show(started)
    print("\n".join(f"error: {one}" for one in found), file=sys.stderr, flush=True)
    return 1


def prepare_and_show(started: float) -> int:
    """Prepare what needs no packages, and run the demo. Returns the exit status."""
    jobs = start_jobs(sys.executable)
    printer = _Printer(jobs, started)
    print(timed_line(f"preparing; steps longer than {MIN_STAGE_SECONDS:.0f} s are listed", 0.0), flush=True)
    with JobRunner(jobs, START_LOGS) as runner:
        try:
            runner.wait_for({"packages", "prerequisites"}, printer.update)
        except JobFailedError as error:
            print("\n".join(failure_lines(error.failed.name, error)), file=sys.stderr, flush=True)
            return 1
        except KeyboardInterrupt:
            print("\n".join(interruption_lines(printer.running)), file=sys.stderr, flush=True)
            return 128 + signal.SIGINT
        handover = Handover.of(started, runner.outcomes)
        return run_show((PYTHON, "-m", "tests.demo", "--handover", handover.to_json()))


def run_show(command: tuple[str, ...]) -> int:
    """Run the demo in the foreground and return its exit status.

    Ctrl-C reaches the demo too. SIGTERM and SIGHUP are passed on. In all cases the demo removes its cluster, and this
    process waits for that.
    """
    show: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        if show is not None:
            show.send_signal(number)

    on_stop_signals(pass_on)  # before the demo begins, so that no signal ends this process alone
    show = subprocess.Popen(command)
    if received:
        show.send_signal(received[0])
    while True:
        try:
            status = show.wait()
        except KeyboardInterrupt:
            continue
        return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
