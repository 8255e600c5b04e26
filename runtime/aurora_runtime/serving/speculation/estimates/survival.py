"""How likely the next proposed token is right when all tokens before it were: the raw material of every estimate.

Verification accepts a proposal up to its first wrong token. So a proposal of ``a`` accepted tokens out of ``k`` gives
``a`` successes at the positions 1 to ``a`` and, unless all were accepted, one failure at position ``a + 1``. Nothing
is learned about later positions. All numbers of steps share these rates, so that a short round teaches about long ones.

Invariant: expected accepted tokens never fall with the number of steps, and rise by at most one per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt
from typing import Final

PRIOR_WEIGHT: Final = 2.0
"""Observations that the prior counts for."""
UNKNOWN_WEIGHT: Final = 0.3
"""Observations that a bound rests on when there are none. So the bounds of an unknown rate are nearly 0 and 1."""
_MAX_SCALE: Final = 1e9


class SurvivalRates:
    """Rates by position, estimated from recent proposals. Older proposals count less."""

    def __init__(self, positions: Sequence[int], prior: float) -> None:
        """``positions[d]`` is the group that position ``d + 1`` belongs to. Groups are 0, 1, … without gaps.

        ``prior`` is the rate of group 0 before any observation. A later group's prior is the rate of the group before.
        """
        self._positions = tuple(positions)
        groups = max(self._positions) + 1
        self._prior = prior
        # Each group's prior since observations of the group were first forgotten.
        self._own_priors: list[float | None] = [None] * groups
        self._successes = [0.0] * groups
        self._trials = [0.0] * groups
        # New observations count for ever more, which is cheaper than to reduce all old ones each time.
        self._scale = 1.0

    def trials(self, position: int) -> float:
        """The weight of the observations at a position, counted from 0."""
        return self._trials[self._positions[position]] / self._scale

    def fade(self, by: float) -> None:
        """Reduce the weight of all observations so far to ``exp(-by)`` of what it was."""
        self._scale *= exp(by)
        if self._scale > _MAX_SCALE:
            self._successes = [value / self._scale for value in self._successes]
            self._trials = [value / self._scale for value in self._trials]
            self._scale = 1.0

    def forget(self, by: float) -> None:
        """Reduce the weight of all observations so far as :meth:`fade` does, but change no rate.

        Otherwise each rate would return to its prior, which is low. A good source that is seldom used would seem bad.
        """
        left = exp(-by)
        for group, (prior, rate, trials) in enumerate(self._by_group()):
            if trials:
                self._own_priors[group] = rate + left * (prior - rate)
        self.fade(by)

    def add(self, accepted: int, proposed: int) -> None:
        """Learn from one proposal."""
        positions, successes, trials, one = self._positions, self._successes, self._trials, self._scale
        last = len(positions)
        for group in positions[:accepted]:
            successes[group] += one
            trials[group] += one
        if accepted < proposed and accepted < last:
            trials[positions[accepted]] += one

    def rates(self, z: float = 0.0) -> list[float]:
        """The rate by position. ``z`` standard errors above the estimate, or below where ``z`` is negative."""
        by_group = [
            wilson_bound(rate, trials + UNKNOWN_WEIGHT, z) if z else rate for _, rate, trials in self._by_group()
        ]
        return [by_group[group] for group in self._positions]

    def _by_group(self) -> list[tuple[float, float, float]]:
        """Prior, rate and weight of the observations of each group."""
        found, prior, scale = list[tuple[float, float, float]](), self._prior, self._scale
        for successes, trials, own in zip(self._successes, self._trials, self._own_priors, strict=True):
            prior = prior if own is None else own
            rate = (successes / scale + PRIOR_WEIGHT * prior) / (trials / scale + PRIOR_WEIGHT)
            found.append((prior, rate, trials / scale))
            prior = rate
        return found


def wilson_bound(rate: float, weight: float, z: float) -> float:
    """The end of Wilson's interval of a rate that rests on ``weight`` observations.

    Unlike a bound from the normal distribution, this bound stays between 0 and 1 and holds up with few observations.
    """
    square = z * z / weight
    half_width = z * sqrt(max(0.0, rate * (1 - rate) / weight + square / (4 * weight)))
    return min(1.0, max(0.0, (rate + square / 2 + half_width) / (1 + square)))


def expected_accepted(rates: Sequence[float], odds: float = 1.0) -> tuple[float, ...]:
    """Expected accepted tokens by number of steps, from 0 to ``len(rates)`` steps.

    ``odds`` multiplies the odds of every rate: above 1 for a request whose proposals are better than the others'.
    """
    total, reached = 0.0, 1.0
    curve = [0.0]
    for rate in rates:
        reached *= rate * odds / (1.0 - rate + rate * odds) if rate < 1.0 else 1.0
        total += reached
        curve.append(total)
    return tuple(curve)
