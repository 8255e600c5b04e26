"""Tells for how long an event loop has not come to a callback. Another thread asks.

A question is a callback that the loop runs. The time counts from the oldest question without an answer, so a pause
between two questions is no silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Heartbeat:
    """The questions of one thread to one event loop.

    Args:
        call_soon: lets the loop run a callback. Any thread may call it.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._call_soon, self._clock = call_soon, clock
        self._asked_seconds: float | None = None

    def silent_seconds(self) -> float:
        """How long the loop has left a question unanswered. Asks the next one when there is none."""
        asked_seconds, now_seconds = self._asked_seconds, self._clock()
        if asked_seconds is not None:
            return now_seconds - asked_seconds
        self._asked_seconds = now_seconds
        self._call_soon(self._answer)
        return 0.0

    def _answer(self) -> None:
        self._asked_seconds = None
