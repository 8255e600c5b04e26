"""Repeats a call of the store that is away for a moment, because a measurement costs far more than the wait.

Invariants: an error that a working store answers with is raised at once, and so is a missing right. The repeats end
with the total deadline around them, and soon after the validator is told to end.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from aurora_store.deadline import is_interrupted, total_seconds_left
from aurora_store.errors import (
    DigestMismatch,
    NotRootOwner,
    ObjectExists,
    ObjectMissing,
    ObjectRefused,
    StoreError,
    StoreInterrupted,
    StoreUnsupported,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

INITIAL_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 15.0
PAUSE_POLL_SECONDS: Final = 0.05
"""How often a pause looks whether the call was interrupted."""
READ_SECONDS: Final = 30.0
"""How long a read is repeated after its first failure."""
_DEFINITE_ERRORS: Final = (
    *(DigestMismatch, NotRootOwner, ObjectExists, ObjectMissing, ObjectRefused, StoreInterrupted, StoreUnsupported),
)


def repeat_while_away(action: str, call: Callable[[], T], seconds: float = READ_SECONDS) -> T:
    """Call ``call`` until it succeeds, with jittered exponential backoff, for ``seconds`` after its first failure.

    ``action`` names the call in logs. Raises the last :class:`StoreError`.
    """
    backoff, give_up_at = INITIAL_BACKOFF_SECONDS, 0.0
    while True:
        try:
            return call()
        except _DEFINITE_ERRORS:
            raise
        except StoreError as error:
            now, pause = time.monotonic(), backoff * random.uniform(0.7, 1.3)  # noqa: S311 - jitter
            give_up_at = give_up_at or now + seconds
            if is_interrupted() or now + pause >= give_up_at or pause >= total_seconds_left():
                raise
            log.warning("%s failed, retrying in about %.0f s: %s", action, backoff, error)
        _sleep(pause)
        backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)


def _sleep(seconds: float) -> None:
    """Wait ``seconds``, or until nobody waits for the call any more."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not is_interrupted():
        time.sleep(min(left, PAUSE_POLL_SECONDS))
