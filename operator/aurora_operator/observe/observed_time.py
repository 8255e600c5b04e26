"""Tells whether the operator observed the pods without a gap, so that deadlines count only observed time.

A wall clock may be set forwards, the process may stand still, and the store may be out of reach or lack the records.
Time that passed in such a gap says nothing about the pods.

Invariant: a deadline expires only after a series of observations that led to decisions, with gaps no longer than
:data:`MAX_GAP`. Both the wall clock and a monotonic clock must agree on that.
"""

from __future__ import annotations

from datetime import datetime, timedelta

MAX_GAP = timedelta(seconds=60)
"""Longer than one reconcile and the pause after it while a deadline runs. Shorter than any deadline that a user sets.

A speculator at rest pauses for longer. No deadline of a roll runs then, and one that begins afterwards begins in full.
"""


class ObservedTime:
    """Remembers the last observation that led to decisions. A restart forgets it, and deadlines then restart too."""

    def __init__(self) -> None:
        self._last: tuple[datetime, float] | None = None

    def has_gap(self, now: datetime, monotonic_seconds: float) -> bool:
        """Whether deadlines restart: the last observation is longer ago than :data:`MAX_GAP`, or the clock was set."""
        if self._last is None:
            return True
        wall, monotonic = now - self._last[0], timedelta(seconds=monotonic_seconds - self._last[1])
        return max(abs(wall), monotonic) > MAX_GAP

    def record(self, now: datetime, monotonic_seconds: float, *, decided: bool) -> None:
        """Remember an observation that was acted upon.

        ``decided`` is False when the store was out of reach, or had lost the records: then nothing was decided about
        versions, and nobody waited for the pods.
        """
        self._last = (now, monotonic_seconds) if decided else None
