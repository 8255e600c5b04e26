"""Tells when the last client has left a withdrawn pod.

A pod cannot see when every proxy has removed its endpoint, because no API reports this. So a drain is complete when the
time of the removal has passed and the engine's counter of answered requests no longer grows. Invariant: a drain is
never complete before every proxy has had the time to see that the pod is not ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

ENDPOINT_REMOVAL_SECONDS: Final = 15.0
"""Time for Kubernetes to notice that a pod is not ready (6 s of probes) and to remove the pod from every endpoint."""
QUIET_SECONDS: Final = 5.0
"""After this time without a request no more come, because the engine closes connections that idle for so long."""


@dataclass
class Drain:
    """The drain of one pod that was just withdrawn from its Service."""

    clock: Callable[[], float]
    endpoint_removal_seconds: float = ENDPOINT_REMOVAL_SECONDS
    quiet_seconds: float = QUIET_SECONDS
    _began: float = field(init=False)
    _last_change: tuple[int, float] | None = None  # answered requests, and the time at which their number changed

    def __post_init__(self) -> None:
        self._began = self.clock()

    def is_complete(self, answered_requests: int) -> bool:
        """Whether all clients have left. ``answered_requests`` is the current value of the engine's counter."""
        now = self.clock()
        if self._last_change is None or self._last_change[0] != answered_requests:
            self._last_change = (answered_requests, now)
        quiet = now - self._last_change[1] >= self.quiet_seconds
        return quiet and now - self._began >= self.endpoint_removal_seconds
