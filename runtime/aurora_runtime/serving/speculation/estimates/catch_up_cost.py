"""How long the draft's catch-up takes: learned from the rounds in which the draft was behind.

Rounds that alternate between lookup and the draft pay a catch-up each time the draft proposes again. Where nobody
tells the catch-up's time from the draft arm's own, the arm seems dear, and is chosen less than it deserves.

Invariant: the time is a multiple of a rough estimate, and the multiple is positive and bounded.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

NOISE_VARIANCE: Final = 0.08**2
"""Variance of a round's time, relative to the time."""
PRIOR_WEIGHT: Final = 4.0
"""What the estimate before any measurement counts for, in measurements of its own size over the noise's."""
MEMORY: Final = 0.99
"""Share of what is known that stays with each measurement."""
CLIP: Final = 2.5
"""Standard deviations from which a time counts as an outlier."""
BOUNDS: Final = (0.1, 20.0)


class CatchUpCost:
    """The time of a catch-up as a multiple of a rough estimate: a mean in which long catch-ups weigh more."""

    __slots__ = ("_sum", "_weight")

    def __init__(self, multiple: float = 1.0) -> None:
        self._weight = PRIOR_WEIGHT
        self._sum = PRIOR_WEIGHT * multiple

    @property
    def multiple(self) -> float:
        least, most = BOUNDS
        return max(least, min(self._sum / self._weight, most))

    def learn(self, rough: float, measured: float, round_milliseconds: float, more_variance: float) -> None:
        """Learn from one round.

        Args:
            rough: the rough estimate of the catch-up, in milliseconds.
            measured: how much longer the round took than one without a catch-up, in milliseconds.
            round_milliseconds: the time of a round without a catch-up.
            more_variance: variance of the round's relative time beside :data:`NOISE_VARIANCE`.
        """
        variance = NOISE_VARIANCE + more_variance
        bound = CLIP * sqrt(variance) * round_milliseconds
        expected = self.multiple * rough
        measured = max(expected - bound, min(measured, expected + bound))
        weight = (rough / round_milliseconds) ** 2 / variance
        self._weight = MEMORY * self._weight + weight
        self._sum = MEMORY * self._sum + weight * measured / rough
