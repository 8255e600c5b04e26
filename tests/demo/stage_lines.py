"""The stages as plain lines: which begin, end and fail, and how long those that run have taken.

A stage gets its first line after three seconds. A shorter stage found its result in the cache.
"""

from __future__ import annotations

from tests.demo.stage_clock import StageClock, StageState, StageTime
from tests.demo.stages import duration, stage

MIN_STAGE_SECONDS = 3.0
REPEAT_SECONDS = 60.0


def stage_events(before: StageClock, before_now: float, after: StageClock, now: float) -> list[str]:
    """What the stages did since `before`."""
    return [
        line for old, new in zip(before.times, after.times, strict=True) for line in _events(old, before_now, new, now)
    ]


def stage_reminders(before: StageClock, before_now: float, after: StageClock, now: float) -> list[str]:
    """How long each running stage has taken, once for each full minute that it takes."""
    return [
        f"{stage(new.key).title}: {duration(new.elapsed_seconds(now))} so far{_usual(new.key)}"
        for old, new in zip(before.times, after.times, strict=True)
        if new.state is StageState.RUNNING and _minutes(old, before_now) < _minutes(new, now)
    ]


def _events(old: StageTime, old_now: float, new: StageTime, now: float) -> list[str]:
    title, elapsed = stage(new.key).title, new.elapsed_seconds(now)
    if new.state is StageState.FAILED and old.state is not StageState.FAILED:
        return [f"failed: {title}, after {duration(elapsed)}"]
    if new.state is StageState.DONE and old.state is not StageState.DONE and elapsed >= MIN_STAGE_SECONDS:
        return [f"done: {title}, in {duration(elapsed)}"]
    is_long = old.elapsed_seconds(old_now) < MIN_STAGE_SECONDS <= elapsed
    return [f"begun: {title}{_usual(new.key)}"] if new.state is StageState.RUNNING and is_long else []


def _minutes(time: StageTime, now: float) -> int:
    return int(time.elapsed_seconds(now) // REPEAT_SECONDS)


def _usual(key: str) -> str:
    measured = stage(key).measured
    return f" ({measured})" if measured else ""
