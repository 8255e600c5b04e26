"""Whether time passed under the operator's eyes: only such time counts against a version.

A clock may be set forwards, the process may stand still, the store may be out of reach: what a deadline measured until
then says nothing about the pods. Invariant: a deadline strikes only after looks that decided, none further than
:data:`GAP` from the next, by the wall clock and by one that only moves forwards.
"""

from __future__ import annotations

from datetime import datetime, timedelta

GAP = timedelta(seconds=60)
"""More than a look and the pause after it take, less than any deadline that a user would set."""


class ObservedTime:
    """Remembers the last look that decided. Lost with the process, and then deadlines count anew too."""

    def __init__(self) -> None:
        self._last: tuple[datetime, float] | None = None

    def lapsed(self, now: datetime, monotonic: float) -> bool:
        """Whether nobody looked, or the clock was set, since the last look: deadlines count from now."""
        if self._last is None:
            return True
        wall, steady = now - self._last[0], timedelta(seconds=monotonic - self._last[1])
        return max(abs(wall), steady) > GAP

    def looked(self, now: datetime, monotonic: float, *, decided: bool) -> None:
        """A look was acted upon. ``decided``: with the store in reach; else nothing was, and nobody waited for pods."""
        self._last = (now, monotonic) if decided else None
