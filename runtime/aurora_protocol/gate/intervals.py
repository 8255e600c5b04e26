"""Confidence intervals of a mean and of a difference of two means.

Each interval covers two others: the one of the percentile bootstrap, and the one of Student's t. With few rounds the
bootstrap alone is too narrow. In 600 simulated measurements whose true ratio lay on the bar, 15 % passed with 3 rounds
and 6.5 % with 5, where 2.5 % may pass. With Student's t, 3 % and 1.5 % passed. The bootstrap stays for skewed samples.

There are two levels. :attr:`Confidence.FINAL` decides after the last round. :attr:`Confidence.EARLY` decides after an
earlier one. A measurement is looked at after each round, and a candidate on the bar has a new chance at each look. At
the final level 11 % of such candidates would pass within 24 rounds, with the two levels 3.3 %.

Invariant: the bootstrap is seeded, so the same values always give the same interval.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

RESAMPLES = 2000
_T_QUANTILES = {
    0.95: (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262),
    0.995: (127.321, 14.089, 7.453, 5.598, 4.773, 4.317, 4.029, 3.833, 3.690),
}
"""Two-sided quantiles of Student's t by confidence, for 1 to 9 degrees of freedom."""


class Confidence(Enum):
    """The share of intervals that hold the true value."""

    FINAL = 0.95
    EARLY = 0.995


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def mean_interval(values: Sequence[float], seed: int, confidence: Confidence = Confidence.FINAL) -> Interval:
    """An interval for the mean of ``values``, of which there is at least one. Covers the bootstrap's and Student's."""
    mean = sum(values) / len(values)
    rng = random.Random(seed)  # noqa: S311 - resampling, not security
    bootstrap = _percentile_interval(
        [sum(rng.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES)], confidence
    )
    half_width = 0.0
    if len(values) > 1:
        half_width = t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(min(bootstrap.low, mean - half_width), max(bootstrap.high, mean + half_width))


def difference_interval(
    first: Sequence[float], second: Sequence[float], seed: int, confidence: Confidence = Confidence.FINAL
) -> Interval:
    """An interval for mean(``first``) - mean(``second``), which were measured independently.

    Covers the bootstrap's interval and that of Welch's t (1947). The variances differ, so Welch estimates the degrees
    of freedom. This function rounds them down.
    """
    difference = statistics.fmean(first) - statistics.fmean(second)
    rng = random.Random(seed)  # noqa: S311 - resampling, not security
    bootstrap = _percentile_interval(
        [
            statistics.fmean(rng.choices(first, k=len(first))) - statistics.fmean(rng.choices(second, k=len(second)))
            for _ in range(RESAMPLES)
        ],
        confidence,
    )
    # For each side: the variance of its mean, and its degrees of freedom. A side of one value has no variance.
    sides = [(statistics.variance(side) / len(side), len(side) - 1) for side in (first, second) if len(side) > 1]
    variance = sum(side_variance for side_variance, _ in sides)
    half_width = 0.0
    if variance > 0:
        # Each side's variance is divided by the sum before it is squared, so that no square overflows or underflows.
        degrees = 1 / sum((side_variance / variance) ** 2 / side_degrees for side_variance, side_degrees in sides)
        half_width = t_quantile(max(1, int(degrees)), confidence) * math.sqrt(variance)
    return Interval(min(bootstrap.low, difference - half_width), max(bootstrap.high, difference + half_width))


def _percentile_interval(resampled: Sequence[float], confidence: Confidence) -> Interval:
    ordered = sorted(resampled)
    tail = (1 - confidence.value) / 2
    return Interval(ordered[int(tail * RESAMPLES)], ordered[min(RESAMPLES - 1, int((1 - tail) * RESAMPLES))])


def t_quantile(degrees: int, confidence: Confidence = Confidence.FINAL) -> float:
    """The two-sided quantile of Student's t with ``degrees`` of freedom, at least 1."""
    table = _T_QUANTILES[confidence.value]
    if degrees <= len(table):
        return table[degrees - 1]
    z = statistics.NormalDist().inv_cdf((1 + confidence.value) / 2)
    # Cornish-Fisher expansion, within 0.03 from 10 degrees of freedom on.
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
