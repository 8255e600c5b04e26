"""Waiting that ends: retries through outages, and a stop request that wakes every wait.

Invariant: an outage of the store or the hub delays the trainer and never ends it; a stop request ends any wait at once.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from aurora_runtime.errors import Interrupted, TargetUnavailable
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing, StoreError, StoreUnsupported

log = logging.getLogger(__name__)
T = TypeVar("T")
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
_ANSWERS: Final = (DigestMismatch, ObjectExists, ObjectMissing, StoreUnsupported)
"""What the store says when it is well: a retry would hear it again."""


class Retrier:
    """Retries calls until they succeed or :meth:`stop` is called."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def sleep(self, seconds: float) -> None:
        """Wait, or return at once when asked to stop."""
        self._stop.wait(seconds)

    def call(self, what: str, function: Callable[[], T], failed: Callable[[str], None] | None = None) -> T:
        """``function()``, again with growing, jittered waits while the store or the hub is out of reach.

        ``failed`` is told each time what failed and why. Raises :class:`Interrupted` when asked to stop before it
        succeeded, and whatever the store *answers*.
        """
        wait = FIRST_WAIT_S
        while True:
            try:
                return function()
            except _ANSWERS:
                raise
            except (StoreError, TargetUnavailable) as error:
                log.warning("%s failed, next try in about %.0f s: %s", what, wait, error)
                if failed is not None:
                    failed(f"{what} failed: {error}")
            self._stop.wait(wait * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
            if self._stop.is_set():
                raise Interrupted(f"asked to stop while waiting: {what}")
            wait = min(2 * wait, LONGEST_WAIT_S)
