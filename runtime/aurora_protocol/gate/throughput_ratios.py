"""Ratios of the throughput of two arms, with intervals.

All computing is on logarithms of throughput, so a ratio and its inverse are treated alike. The estimate is the
geometric mean over rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from aurora_protocol.evidence_records import Arm, RatioEstimate, Sample
from aurora_protocol.gate.intervals import Confidence, Interval, difference_interval, mean_interval

_MAX_LOG = 700.0
"""Largest logarithm whose exponential a float holds."""


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
        paired=True,
        **_ratios(statistics.fmean(log_ratios), mean_interval(log_ratios, confidence)),
    )


def unpaired_ratio(
    samples: Sequence[Sample],
    numerator: Arm,
    baseline: Sequence[Sample],
    denominator: Arm,
    concurrency: int,
    confidence: Confidence = Confidence.FINAL,
) -> RatioEstimate | None:
    """The throughput ratio of an arm in ``samples`` to one in ``baseline``, which was measured before.

    Nothing cancels here. The spread of both sides counts, over prompts and over minutes, so the interval is wider than
    a paired one. Neither spread shows that the machine was slower during one whole side. Where ``baseline`` holds the
    active draft too, :func:`log_speed_change` measures this change of speed, and the interval covers the ratio with and
    without the change. The need is real: on a crowded machine a random draft measured 1.90x [1.37, 2.64] the
    throughput of an "off" of ten minutes before.

    None when one side has no samples. ``rounds`` of the estimate is the smaller number of the two.
    """
    above = list(_log_speeds(samples, numerator, concurrency).values())
    below = list(_log_speeds(baseline, denominator, concurrency).values())
    if not above or not below:
        return None
    low, high = difference_interval(above, below, confidence)
    change = log_speed_change(samples, baseline, concurrency) or 0.0
    interval = Interval(min(low, low - change), max(high, high - change))
    return RatioEstimate(
        numerator=numerator,
        denominator=denominator,
        concurrency=concurrency,
        rounds=min(len(above), len(below)),
        paired=False,
        **_ratios(statistics.fmean(above) - statistics.fmean(below), interval),
    )


def _ratios(log_mean: float, log_interval: Interval) -> dict[str, float]:
    low, high = max(log_interval.low, -_MAX_LOG), min(log_interval.high, _MAX_LOG)
    return {"estimate": math.exp(log_mean), "low": math.exp(low), "high": math.exp(high)}


def log_speed_change(samples: Sequence[Sample], baseline: Sequence[Sample], concurrency: int) -> float | None:
    """Logarithm of how much faster the active draft is in ``samples`` than in ``baseline``.

    The same draft ran both times, so this is the change of the machine's speed. None when one side lacks the draft.
    """
    now, before = (_log_speeds(side, Arm.ACTIVE, concurrency).values() for side in (samples, baseline))
    return statistics.fmean(now) - statistics.fmean(before) if now and before else None


def _log_speeds(samples: Sequence[Sample], arm: Arm, concurrency: int) -> dict[int, float]:
    """Logarithm of an arm's throughput in each round, in tokens per second. Rounds without tokens are left out."""
    totals: dict[int, tuple[int, float]] = {}
    for sample in samples:
        if sample.concurrency == concurrency and sample.arm is arm and sample.tokens > 0:
            tokens, seconds = totals.get(sample.round, (0, 0.0))
            totals[sample.round] = (tokens + sample.tokens, seconds + sample.seconds)
    return {number: math.log(tokens / seconds) for number, (tokens, seconds) in sorted(totals.items())}
