"""How far each stage of the demo is, and how long it has taken.

A clock is a value: a change makes a new one, so that the thread that draws sees either the old state or the new one.
Stages may run side by side, and a stage may run again: after a rejected candidate the draft learns on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from tests.demo.jobs import JobState, Outcome


class StageState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class StageTime:
    """The state of one stage. Times are on the clock of time.monotonic(), in seconds."""

    key: str
    state: StageState = StageState.WAITING
    started: float = 0.0
    """When the stage last began to run."""
    spent_seconds: float = 0.0
    """The time of runs that have ended."""

    def elapsed_seconds(self, now: float) -> float:
        running = max(0.0, now - self.started) if self.state is StageState.RUNNING else 0.0
        return self.spent_seconds + running


@dataclass(frozen=True)
class StageClock:
    """The stages in the order in which they are shown."""

    times: tuple[StageTime, ...]

    @classmethod
    def of(cls, keys: Sequence[str]) -> StageClock:
        return cls(tuple(StageTime(key) for key in keys))

    def __getitem__(self, key: str) -> StageTime:
        return next(time for time in self.times if time.key == key)

    def __contains__(self, key: str) -> bool:
        return any(time.key == key for time in self.times)

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(time.key for time in self.times if time.state is StageState.RUNNING)

    @property
    def failed(self) -> str | None:
        """The first stage that failed."""
        return next((time.key for time in self.times if time.state is StageState.FAILED), None)

    @property
    def left(self) -> tuple[str, ...]:
        """The stages that ran when the demo ended, or failed."""
        return tuple(time.key for time in self.times if time.state in (StageState.RUNNING, StageState.FAILED))

    def start(self, key: str, now: float) -> StageClock:
        """Begin a stage, or begin it again. A running stage goes on."""
        if self[key].state is StageState.RUNNING:
            return self
        return self._with(replace(self[key], state=StageState.RUNNING, started=now))

    def finish(self, key: str, now: float) -> StageClock:
        """End a stage well. A stage that never ran counts as done in no time."""
        return self._end(key, StageState.DONE, now)

    def fail(self, key: str, now: float) -> StageClock:
        return self._end(key, StageState.FAILED, now)

    def with_failure(self, now: float) -> StageClock:
        """The demo ends by an error. If no stage is known to have failed, the first that runs has; others stop."""
        clock, culprit = self, None if self.failed else next(iter(self.running), None)
        for key in self.running:
            clock = clock.fail(key, now) if key == culprit else clock.pause(key, now)
        return clock

    def pause(self, key: str, now: float) -> StageClock:
        """Let a running stage wait, with the time that it has spent."""
        return self._end(key, StageState.WAITING, now) if self[key].state is StageState.RUNNING else self

    def _end(self, key: str, state: StageState, now: float) -> StageClock:
        return self._with(replace(self[key], state=state, spent_seconds=self[key].elapsed_seconds(now)))

    def _with(self, changed: StageTime) -> StageClock:
        return StageClock(tuple(changed if time.key == changed.key else time for time in self.times))


def with_outcomes(clock: StageClock, outcomes: Mapping[str, Outcome]) -> StageClock:
    """The clock after a look at jobs of the same names. Jobs that are no stages are left out.

    A stage that runs already keeps its start: the build of Kubernetes may have begun before its job.
    """
    for key, outcome in outcomes.items():
        if key not in clock or outcome.started is None or clock[key].state in (StageState.DONE, StageState.FAILED):
            continue
        clock = clock.start(key, outcome.started)
        ended = outcome.started if outcome.ended is None else outcome.ended
        if outcome.state is JobState.DONE:
            clock = clock.finish(key, ended)
        elif outcome.state is JobState.FAILED:
            clock = clock.fail(key, ended)
        elif outcome.state is JobState.STOPPED:
            clock = clock.pause(key, ended)
    return clock
