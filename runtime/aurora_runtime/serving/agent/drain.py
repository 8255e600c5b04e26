"""When the last client of a withdrawn pod has gone: its endpoints do not say, so time and the engine's counter do.

Invariant: never before every proxy has had the time to see that the pod is not ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

LEAVE_S: Final = 15.0
"""Within this time a pod that is not ready is seen as such (6 s of probes) and gone from every endpoint."""
QUIET_S: Final = 5.0
"""Requests have ended when none came for so long: more than the engine keeps an idle connection open."""


@dataclass
class Drain:
    """One withdrawal from the Service."""

    clock: Callable[[], float]
    leave: float = LEAVE_S
    quiet: float = QUIET_S
    _began: float = field(init=False)
    _seen: tuple[int, float] | None = None  # requests that the engine had answered, and since when

    def __post_init__(self) -> None:
        self._began = self.clock()

    def over(self, requests: int) -> bool:
        """Whether clients have gone, with ``requests`` answered by the engine so far."""
        now = self.clock()
        if self._seen is None or self._seen[0] != requests:
            self._seen = (requests, now)
        return now - self._began >= self.leave and now - self._seen[1] >= self.quiet
