"""Counts the API server's writes of this process that have begun and not ended. Threads use it.

Why: a task that is cancelled leaves its thread behind. A write in that thread would arrive after the next leader's,
if the Lease were released before it has ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class WritesUnderWay:
    """The writes of one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Around one write."""
        with self._changed:
            self._number += 1
        try:
            yield
        finally:
            with self._changed:
                self._number -= 1
                self._changed.notify_all()

    def wait_until_none(self, timeout_seconds: float) -> bool:
        """Block until no write is under way, or until the timeout. Returns whether none is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._number == 0, timeout_seconds)
