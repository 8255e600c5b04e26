"""Tells when the last client has left a withdrawn pod.

No API says so: a pod cannot see when every proxy has removed its endpoint. So the drain is complete after the time that
the removal takes, once the engine's counter of answered requests has stopped. Invariant: a drain is never complete
before every proxy has had the time to see that the pod is not ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

ENDPOINT_REMOVAL_SECONDS: Final = 15.0
"""Within this time a pod that is not ready is seen as such (6 s of probes) and is gone from every endpoint."""
QUIET_SECONDS: Final = 5.0
"""No request for this long means that requests have ended: the engine keeps no idle connection open for longer."""


@dataclass
class Drain:
    """The drain of one pod that was just withdrawn from its Service."""

    clock: Callable[[], float]
    endpoint_removal_seconds: float = ENDPOINT_REMOVAL_SECONDS
    quiet_seconds: float = QUIET_SECONDS
    _began: float = field(init=False)
    _last_change: tuple[int, float] | None = None  # answered requests, and since when their number is the same

    def __post_init__(self) -> None:
        self._began = self.clock()

    def is_complete(self, answered_requests: int) -> bool:
        """Whether all clients have left; ``answered_requests`` is the engine's counter now."""
        now = self.clock()
        if self._last_change is None or self._last_change[0] != answered_requests:
            self._last_change = (answered_requests, now)
        quiet = now - self._last_change[1] >= self.quiet_seconds
        return quiet and now - self._began >= self.endpoint_removal_seconds
