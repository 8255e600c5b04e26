"""Measures how many optimizer steps the trainer makes per minute, so that a trainer that starves shows.

A trainer that shares its processor with serving and measuring can fall to a fraction of its pace, while new traces
wait. Nothing fails then, and the draft only learns too late.

Invariant: only time in which the trainer trained counts. A trainer that waits for traces is not slow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

WINDOW_SECONDS: Final = 60.0
"""Least time in training behind a figure."""


@dataclass
class TrainingPace:
    """The trainer's pace, from observations in the order of time."""

    steps_per_minute: float | None = None
    """Over the last :data:`WINDOW_SECONDS` or more of training. None before."""
    highest_steps_per_minute: float | None = None
    """Highest pace since the trainer's process started."""
    pending_shards: int = 0
    """Shards of new traces that wait to be trained."""
    _last: tuple[float, int, bool] | None = field(default=None, init=False)
    """Time, step and whether the trainer trains from then on, of the last observation."""
    _window: tuple[float, int] = field(default=(0.0, 0), init=False)
    """Seconds and steps since the last figure."""

    def observe(self, seconds: float, step: int, *, trains: bool, pending_shards: int) -> None:
        """Take an observation.

        Args:
            seconds: a clock that never goes back.
            step: optimizer steps so far.
            trains: whether the trainer trains from now on, and does not wait.
            pending_shards: shards of new traces that wait.
        """
        if self._last is not None and self._last[2]:
            before, step_before, _ = self._last
            self._window = (self._window[0] + seconds - before, self._window[1] + max(0, step - step_before))
        self._last, self.pending_shards = (seconds, step, trains), pending_shards
        counted_seconds, steps = self._window
        if counted_seconds >= WINDOW_SECONDS:
            self.steps_per_minute = 60 * steps / counted_seconds
            self.highest_steps_per_minute = max(self.steps_per_minute, self.highest_steps_per_minute or 0.0)
            self._window = (0.0, 0)
