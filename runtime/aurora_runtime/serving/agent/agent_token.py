"""The token that the operator and the validators show to the agent.

The kubelet replaces the mounted file after the Secret was made anew. An agent that kept its first token would refuse
the operator until its pod ends.

Invariants: a wrong token costs at most one read of the file in :data:`READ_SECONDS`. A file that is missing or empty
changes nothing. Once the file was read, the former token is refused.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

READ_SECONDS: Final = 1.0


class AgentToken:
    """The token of this pod's agent.

    Args:
        read: reads the mounted file.
        clock: monotonic seconds.

    Raises :class:`OSError` when the file cannot be read, and :class:`ValueError` when it is empty.
    """

    def __init__(self, read: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self.value = read().strip()
        """The token that is accepted now."""
        if not self.value:
            raise ValueError("the agent's token is empty")
        self._read_seconds = clock()

    def allows(self, authorization: bytes) -> bool:
        """Whether the header ``authorization`` shows the token. Compared in constant time."""
        return self._matches(authorization) or (self._changed() and self._matches(authorization))

    def _matches(self, authorization: bytes) -> bool:
        return hmac.compare_digest(authorization, f"Bearer {self.value}".encode())

    def _changed(self) -> bool:
        """Read the file again, unless it was read a moment ago. Returns whether the token is another one now."""
        if self._clock() - self._read_seconds < READ_SECONDS:
            return False
        self._read_seconds = self._clock()
        try:
            token = self._read().strip()
        except (OSError, UnicodeDecodeError):
            return False
        if token in ("", self.value):
            return False
        self.value = token
        log.info("the Secret with the agents' token has changed: only its new token is accepted from now on")
        return True
