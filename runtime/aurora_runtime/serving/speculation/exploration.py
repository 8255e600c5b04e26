"""How much the controller may spend on learning: a token bucket of milliseconds.

An exploring round may lose time against the round that seemed best. The bucket pays that loss. It earns a fixed share
of the time that passes and holds a few rounds at most. So in any stretch of traffic, exploration loses at most the
share of the stretch's time and one full bucket. A round that explores and wins costs nothing.

Invariant: a round explores only when the bucket covers the loss that it would have if nothing were accepted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExplorationSettings:
    """Bounds of exploration.

    Attributes:
        share: share of the time that exploration may lose.
        burst_rounds: rounds' worth of time that the bucket holds at most.
    """

    share: float = 0.008
    burst_rounds: float = 1.5


class ExplorationBudget:
    """Milliseconds that exploration may still lose."""

    def __init__(self, settings: ExplorationSettings) -> None:
        self._settings = settings
        self._credit = 0.0

    @property
    def credit_milliseconds(self) -> float:
        return self._credit

    def earn(self, milliseconds: float, round_milliseconds: float) -> None:
        """A round has passed. ``round_milliseconds`` is the time of a round without speculation."""
        limit = self._settings.burst_rounds * round_milliseconds
        self._credit = min(limit, self._credit + self._settings.share * milliseconds)

    def spend(self, milliseconds: float) -> None:
        """Pay the loss of a round that explored. A gain is not credited."""
        self._credit -= max(0.0, milliseconds)
