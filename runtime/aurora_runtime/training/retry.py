"""Retries with exponential backoff, and a stop request that ends every wait.

Invariant: an outage of the store or of the Hugging Face hub delays the trainer and never ends it. A stop request ends
any wait at once. A published head that was refused is read again too, because its files may be corrected.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from aurora_runtime.errors import HeadRefused, Interrupted, TargetUnavailable
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing, StoreError, StoreUnsupported

log = logging.getLogger(__name__)
T = TypeVar("T")
INITIAL_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0
_DEFINITE_ERRORS: Final = (DigestMismatch, ObjectExists, ObjectMissing, StoreUnsupported)
"""Errors that a working store answers with. A retry would get the same answer."""


class Retrier:
    """Retries calls until they succeed or :meth:`stop` is called."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        """End the current wait and all later ones."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``, or return at once when :meth:`stop` is called."""
        self._stop.wait(seconds)

    def call(self, action: str, function: Callable[[], T], on_failure: Callable[[str], None] | None = None) -> T:
        """Call ``function`` until it succeeds, with jittered exponential backoff while store or hub are unreachable.

        ``action`` names the call in logs. ``on_failure`` receives a message for each failed attempt. Raises
        :class:`Interrupted` when stopped before the call succeeded, and at once every error that a working store
        answers with.
        """
        backoff = INITIAL_BACKOFF_SECONDS
        while True:
            try:
                return function()
            except _DEFINITE_ERRORS:
                raise
            except (StoreError, TargetUnavailable, HeadRefused) as error:
                log.warning("%s failed, retrying in about %.0f s: %s", action, backoff, error)
                if on_failure is not None:
                    on_failure(f"{action} failed: {error}")
            self._stop.wait(backoff * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
            if self._stop.is_set():
                raise Interrupted(f"asked to stop while retrying: {action}")
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
