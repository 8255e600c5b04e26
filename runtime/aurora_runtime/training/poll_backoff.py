"""How long the trainer waits between two listings of the store while it has nothing to do. Pure.

Why: a listing is a request that the store's owner may pay for. A trainer without traffic would make 30 a minute, for
ever.

Invariants: no pause is shorter than the shortest one, and none is longer than the longest one. After
:meth:`PollBackoff.reset`, pauses are the shortest ones until they took ``hold_seconds``. So a flow of shards that are
closer together than that is always seen after the shortest pause.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

JITTER_SHARE: Final = 0.2
"""A pause is shortened by a random part of this share at most, so that the trainers of many speculators that started
together do not list together for ever."""


class PollBackoff:
    """Pauses that double from the shortest to the longest one while nothing new arrives."""

    def __init__(
        self,
        min_seconds: float,
        max_seconds: float,
        hold_seconds: float,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._min_seconds, self._max_seconds = min_seconds, max(min_seconds, max_seconds)
        self._hold_seconds, self._jitter = hold_seconds, jitter
        self._seconds, self._waited_seconds = min_seconds, 0.0

    def reset(self) -> None:
        """Begin again with the shortest pause."""
        self._seconds, self._waited_seconds = self._min_seconds, 0.0

    def next_pause(self) -> float:
        """The seconds to wait now: once the hold is over, about twice as many as the last time."""
        if self._waited_seconds >= self._hold_seconds:
            self._seconds = min(2 * self._seconds, self._max_seconds)
        pause = max(self._min_seconds, self._jitter((1 - JITTER_SHARE) * self._seconds, self._seconds))
        self._waited_seconds += pause
        return pause
