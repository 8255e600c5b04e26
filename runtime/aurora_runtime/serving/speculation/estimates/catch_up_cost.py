"""How long the draft's catch-up takes: learned from the rounds in which the draft was behind.

Rounds that alternate between lookup and the draft pay a catch-up each time the draft proposes again. Where nobody
tells the catch-up's time from the draft arm's own, the arm seems dear, and is chosen less than it deserves.

The rough estimate is that of a small CPU. A GPU may take a tenth of it. So exploration counts on the *least* time,
which is far below the estimate until catch-ups were timed.

Invariant: the time is a multiple of a rough estimate, and the multiple is positive and bounded.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

NOISE_VARIANCE: Final = 0.08**2
"""Variance of a round's time, relative to the time."""
PRIOR_WEIGHT: Final = 4.0
"""What the estimate before any measurement counts for, in measurements of its own size over the noise's. So before any
measurement the multiple's standard deviation is 0.5."""
LEAST_DEVIATIONS: Final = 1.6
"""Standard deviations by which a catch-up may be shorter than its estimate."""
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
        return _bounded(self._sum / self._weight)

    @property
    def least_multiple(self) -> float:
        """A multiple that is not unlikely, although the estimate is larger."""
        return _bounded(self._sum / self._weight - LEAST_DEVIATIONS / sqrt(self._weight))

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
        measured = min(measured, expected + bound)  # nothing makes a round faster than it is
        weight = (rough / round_milliseconds) ** 2 / variance
        self._weight = MEMORY * self._weight + weight
        self._sum = MEMORY * self._sum + weight * measured / rough


def _bounded(multiple: float) -> float:
    least, most = BOUNDS
    return max(least, min(multiple, most))
