"""The gate: from raw samples to a verdict. Pure, so that an operator and an auditor compute the same.

Invariant (promise 1, "Earned"): ``PASS`` only when the interval's *lower* bound clears every bar. A bar that the
interval straddles makes the verdict ``INCONCLUSIVE``, which never promotes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from aurora_api.records import Arm, Equality, RatioEstimate, Sample, Verdict, VerdictKind

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class GatePolicy:
    """Bars of the gate. Ratios are throughput ratios: 0.05 means five percent."""

    concurrencies: tuple[int, ...]
    min_improvement: float
    tolerance: float
    min_rounds: int

    @property
    def primary(self) -> int:
        """The first declared concurrency: the one at which an improvement must show."""
        return self.concurrencies[0]


def estimate_ratio(
    samples: Sequence[Sample], numerator: Arm, denominator: Arm, concurrency: int
) -> RatioEstimate | None:
    """Geometric mean of the per-round throughput ratios with a percentile bootstrap over rounds.

    Rounds are paired because arms are interleaved inside one: what slows the machine slows both. Returns ``None``
    when no round has both arms. The bootstrap is seeded: the same samples always give the same interval.
    """
    speeds: dict[tuple[Arm, int], tuple[int, float]] = {}
    for sample in samples:
        if sample.concurrency == concurrency and sample.arm in (numerator, denominator) and sample.tokens > 0:
            tokens, seconds = speeds.get((sample.arm, sample.round), (0, 0.0))
            speeds[sample.arm, sample.round] = (tokens + sample.tokens, seconds + sample.seconds)
    logs = []
    for arm, number in sorted(speeds):
        if arm is numerator and (denominator, number) in speeds:
            up_tokens, up_seconds = speeds[numerator, number]
            down_tokens, down_seconds = speeds[denominator, number]
            logs.append(math.log(up_tokens / up_seconds) - math.log(down_tokens / down_seconds))
    if not logs:
        return None
    rng = random.Random(concurrency)  # noqa: S311 - resampling, not security
    means = sorted(sum(rng.choices(logs, k=len(logs))) / len(logs) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    low, high = means[int(tail * RESAMPLES)], means[min(RESAMPLES - 1, int((1 - tail) * RESAMPLES))]
    return RatioEstimate(
        numerator=numerator,
        denominator=denominator,
        concurrency=concurrency,
        rounds=len(logs),
        estimate=math.exp(sum(logs) / len(logs)),
        low=math.exp(low),
        high=math.exp(high),
    )


def _bar(ratio: RatioEstimate | None, bar: float, what: str) -> tuple[VerdictKind, str]:
    if ratio is None:
        return VerdictKind.INCONCLUSIVE, f"{what}: not measured"
    text = f"{what} {ratio.estimate:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"
    if ratio.low >= bar:
        return VerdictKind.PASS, f"{text} >= {bar:.3f}"
    if ratio.high < bar:
        return VerdictKind.REJECT, f"{text} < {bar:.3f}"
    return VerdictKind.INCONCLUSIVE, f"{text} straddles {bar:.3f}"


def judge(samples: Sequence[Sample], equality: Sequence[Equality], policy: GatePolicy) -> Verdict:
    """Apply every bar; the worst outcome decides, and every bar leaves a readable reason."""
    ratios: list[RatioEstimate] = []
    outcomes: list[tuple[VerdictKind, str]] = []

    def bar(numerator: Arm, denominator: Arm, concurrency: int, value: float) -> None:
        ratio = estimate_ratio(samples, numerator, denominator, concurrency)
        if ratio is not None:
            ratios.append(ratio)
            if ratio.rounds < policy.min_rounds:
                outcomes.append((VerdictKind.INCONCLUSIVE, f"only {ratio.rounds} of {policy.min_rounds} rounds"))
        outcomes.append(_bar(ratio, value, f"{numerator}/{denominator} at concurrency {concurrency}"))

    bar(Arm.CANDIDATE, Arm.ACTIVE, policy.primary, 1 + policy.min_improvement)
    bar(Arm.CANDIDATE, Arm.OFF, policy.primary, 1.0)
    for concurrency in policy.concurrencies[1:]:
        bar(Arm.CANDIDATE, Arm.ACTIVE, concurrency, 1 - policy.tolerance)
    for concurrency in policy.concurrencies:
        extra = [(Arm.ACTIVE, Arm.OFF), (Arm.CANDIDATE, Arm.NGRAM)]
        if concurrency != policy.primary:
            extra.append((Arm.CANDIDATE, Arm.OFF))
        ratios += [r for pair in extra if (r := estimate_ratio(samples, *pair, concurrency)) is not None]
    failures = sum(s.failures for s in samples if s.arm is Arm.CANDIDATE)
    if failures:
        outcomes.append((VerdictKind.REJECT, f"{failures} requests failed on the candidate"))
    outcomes += [
        (VerdictKind.REJECT, f"{e.different} of {e.prompts} greedy answers differ beyond a near tie")
        for e in equality
        if e.arm is Arm.CANDIDATE and e.different
    ]
    kinds = {kind for kind, _ in outcomes}
    kind = next(k for k in (VerdictKind.REJECT, VerdictKind.INCONCLUSIVE, VerdictKind.PASS) if k in kinds)
    return Verdict(kind=kind, reasons=tuple(reason for _, reason in outcomes), ratios=tuple(ratios))
