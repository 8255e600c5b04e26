"""Ratios of the throughput of two arms, with intervals.

All computing is on logarithms of throughput, so a ratio and its inverse are treated alike. The estimate is the
geometric mean over rounds.

The intervals are Student's t. Of 20,000 simulated measurements whose true ratio lay on the bar, 2.5 % passed with 3
rounds and with 5, as they may. A percentile bootstrap is too narrow with few rounds: of 600 measurements it let 15 %
and 6.5 % pass.

There are two levels. :attr:`Confidence.FINAL` decides after the last round. :attr:`Confidence.EARLY` decides after an
earlier one. A measurement is looked at after each round, and a candidate on the bar has a new chance at each look. At
the final level 10 % of such candidates would pass within 24 rounds, with the two levels 3.4 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from aurora_protocol.evidence_records import Arm, RatioEstimate, Sample

_MAX_LOG = 700.0
"""Largest logarithm whose exponential a float holds."""
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


def paired_ratio(
    samples: Sequence[Sample],
    numerator: Arm,
    denominator: Arm,
    concurrency: int,
    confidence: Confidence = Confidence.FINAL,
) -> RatioEstimate | None:
    """The throughput ratio of two arms that were measured in the same rounds. None when no round has both.

    Pairing by round cancels what slows the whole machine, because the arms alternate within a round.
    """
    above, below = (_log_speeds(samples, arm, concurrency) for arm in (numerator, denominator))
    log_ratios = [log_speed - below[number] for number, log_speed in above.items() if number in below]
    if not log_ratios:
        return None
    return RatioEstimate(
        numerator=numerator,
        denominator=denominator,
        concurrency=concurrency,
        rounds=len(log_ratios),
        **_ratios(statistics.fmean(log_ratios), mean_interval(log_ratios, confidence)),
    )


def _ratios(log_mean: float, log_interval: Interval) -> dict[str, float]:
    low, high = max(log_interval.low, -_MAX_LOG), min(log_interval.high, _MAX_LOG)
    return {"estimate": math.exp(log_mean), "low": math.exp(low), "high": math.exp(high)}


def _log_speeds(samples: Sequence[Sample], arm: Arm, concurrency: int) -> dict[int, float]:
    """Logarithm of an arm's throughput in each round, in tokens per second. Rounds without tokens are left out."""
    totals: dict[int, tuple[int, float]] = {}
    for sample in samples:
        if sample.concurrency == concurrency and sample.arm is arm and sample.tokens > 0:
            tokens, seconds = totals.get(sample.round, (0, 0.0))
            totals[sample.round] = (tokens + sample.tokens, seconds + sample.seconds)
    return {number: math.log(tokens / seconds) for number, (tokens, seconds) in sorted(totals.items())}


def mean_interval(values: Sequence[float], confidence: Confidence = Confidence.FINAL) -> Interval:
    """An interval for the mean of ``values``, of which there is at least one. One value alone has no width."""
    mean, half_width = statistics.fmean(values), 0.0
    if len(values) > 1:
        half_width = t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean - half_width, mean + half_width)


def t_quantile(degrees: int, confidence: Confidence = Confidence.FINAL) -> float:
    """The two-sided quantile of Student's t with ``degrees`` of freedom, at least 1."""
    table = _T_QUANTILES[confidence.value]
    if degrees <= len(table):
        return table[degrees - 1]
    z = statistics.NormalDist().inv_cdf((1 + confidence.value) / 2)
    # Cornish-Fisher expansion, within 0.03 from 10 degrees of freedom on.
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
