"""The bars of the gate, and the verdict.

Rules, each of which leaves a readable reason:

====================================================  =======================  =========================
rule                                                  violated                 cannot be decided
====================================================  =======================  =========================
each ratio of :func:`bars` reaches its minimum        Reject                   Inconclusive
no request failed on the candidate                    Reject
no request failed on an arm that it is compared with                           Inconclusive
greedy answers were compared                                                   Inconclusive
no greedy answer differs beyond a near tie            Reject
====================================================  =======================  =========================

No declared concurrency may be slower than without speculation (promise 6, "Never slower"). Where speculation does not
pay, the engine turns it off, and the true ratio to off is 1. No interval clears a bar that the true ratio lies on, so
the bar is :data:`NEVER_SLOWER` where the candidate need not gain.

Invariants (promise 1, "Earned"): the worst outcome decides. A ratio reaches its minimum only when the *lower* bound of
its interval does. A bar inside the interval cannot be decided, and ``Inconclusive`` never promotes. Stored evidence
that says Pass is judged again from its samples (:func:`recomputed`), because a bucket writer can write Pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from aurora_api.v1alpha1.validation import MIN_ROUNDS, ValidationSpec
from aurora_protocol.evidence_records import (
    AnswerEquality,
    Arm,
    Evidence,
    RatioEstimate,
    Sample,
    Verdict,
    VerdictKind,
)
from aurora_protocol.gate.throughput_ratios import Confidence, paired_ratio

NEVER_SLOWER: Final = 0.98
"""Throughput over no speculation that every draft must reach at every declared concurrency. No setting lowers it."""
FEWEST_ROUNDS: Final = 3
"""Fewest rounds with which a reader believes a verdict, whatever the validator's policy was."""
_WORST_FIRST = (VerdictKind.REJECT, VerdictKind.INCONCLUSIVE, VerdictKind.PASS)


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """The gate's requirements. Improvement and tolerances are shares of throughput: 0.05 means five percent."""

    concurrencies: tuple[int, ...]
    """The concurrencies to measure at, the primary one first."""
    min_improvement: float
    """Share by which the candidate must be faster than the active draft at the primary concurrency."""
    tolerance: float
    """Share by which the candidate may be slower than the active draft at the other concurrencies. It does not lower
    the bars against no speculation."""
    min_rounds: int = MIN_ROUNDS
    """Fewest rounds with which a ratio is decided."""

    @classmethod
    def of(cls, spec: ValidationSpec) -> Self:
        """The requirements of a resource."""
        return cls(tuple(spec.concurrencies), float(spec.min_improvement), float(spec.tolerance))

    @property
    def primary(self) -> int:
        """The first of the concurrencies, at which the candidate must be faster."""
        return self.concurrencies[0]


@dataclass(frozen=True)
class Bar:
    """The throughput of ``numerator`` over that of ``denominator`` must be at least ``minimum_ratio``."""

    numerator: Arm
    denominator: Arm
    concurrency: int
    minimum_ratio: float


def bars(policy: GatePolicy) -> tuple[Bar, ...]:
    """The ratios that decide: two at each concurrency, the primary one first."""
    return (
        Bar(Arm.CANDIDATE, Arm.ACTIVE, policy.primary, 1 + policy.min_improvement),
        Bar(Arm.CANDIDATE, Arm.OFF, policy.primary, 1.0),
        *(
            bar
            for concurrency in policy.concurrencies[1:]
            for bar in (
                Bar(Arm.CANDIDATE, Arm.ACTIVE, concurrency, 1 - policy.tolerance),
                Bar(Arm.CANDIDATE, Arm.OFF, concurrency, NEVER_SLOWER),
            )
        ),
    )


def reported_ratios(policy: GatePolicy) -> Iterator[tuple[Arm, Arm, int]]:
    """Numerator, denominator and concurrency of the ratios that are reported but decide nothing."""
    for concurrency in policy.concurrencies:
        yield Arm.ACTIVE, Arm.OFF, concurrency
        yield Arm.CANDIDATE, Arm.NGRAM, concurrency


@dataclass(frozen=True)
class Outcome:
    """The conclusion of one rule, with its reason."""

    kind: VerdictKind
    reason: str


def judge(
    samples: Sequence[Sample],
    equality: Sequence[AnswerEquality],
    policy: GatePolicy,
    confidence: Confidence = Confidence.FINAL,
) -> Verdict:
    """Apply every rule. The worst outcome decides.

    Args:
        samples: all batches of the measurement.
        equality: comparisons of greedy answers, one for each arm.
        confidence: of the ratios' intervals. The stored verdict is final.
    """

    def ratio(numerator: Arm, denominator: Arm, concurrency: int) -> RatioEstimate | None:
        return paired_ratio(samples, numerator, denominator, concurrency, confidence)

    decided = [(bar, ratio(bar.numerator, bar.denominator, bar.concurrency)) for bar in bars(policy)]
    reported = [ratio(*names) for names in reported_ratios(policy)]
    outcomes = [
        *(_judge_bar(bar, measured, policy.min_rounds) for bar, measured in decided),
        *_judge_failures(samples),
        *_judge_answers(equality),
    ]
    kinds = {outcome.kind for outcome in outcomes}
    return Verdict(
        kind=next(kind for kind in _WORST_FIRST if kind in kinds),
        reasons=tuple(outcome.reason for outcome in outcomes),
        ratios=tuple(found for found in (*(measured for _, measured in decided), *reported) if found is not None),
    )


def recomputed(evidence: Evidence, policy: GatePolicy) -> Evidence:
    """``evidence`` with the verdict of its own samples, where it says Pass. Other verdicts promote nothing."""
    if evidence.verdict.kind is not VerdictKind.PASS:
        return evidence
    verdict = judge(evidence.samples, evidence.equality, policy)
    if verdict.kind is not VerdictKind.PASS:
        note = "the evidence says Pass, but its samples do not show that under the present bars"
        verdict = verdict.model_copy(update={"reasons": (note, *verdict.reasons)})
    return evidence.model_copy(update={"verdict": verdict})


def least_policy(evidence: Evidence) -> GatePolicy:
    """The bars that no setting lowers, at the concurrencies of the samples, the stated primary one first.

    With them a reader tells whether a version ever passed, although the spec has other bars or concurrencies by now.
    """
    stated = (ratio.concurrency for ratio in evidence.verdict.ratios[:1])
    measured = sorted({sample.concurrency for sample in evidence.samples if sample.arm is Arm.CANDIDATE})
    concurrencies = tuple(dict.fromkeys((*stated, *measured))) or (1,)
    return GatePolicy(concurrencies, min_improvement=0.0, tolerance=1.0, min_rounds=FEWEST_ROUNDS)


def _judge_bar(bar: Bar, ratio: RatioEstimate | None, min_rounds: int) -> Outcome:
    name = f"{bar.numerator}/{bar.denominator} at concurrency {bar.concurrency}"
    if ratio is None:
        return Outcome(VerdictKind.INCONCLUSIVE, f"{name}: not measured")
    if ratio.rounds < min_rounds:
        return Outcome(VerdictKind.INCONCLUSIVE, f"{name}: {ratio.rounds} of {min_rounds} rounds")
    text = f"{name} {ratio.estimate:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"
    if ratio.low >= bar.minimum_ratio:
        return Outcome(VerdictKind.PASS, f"{text} >= {bar.minimum_ratio:.3f}")
    if ratio.high < bar.minimum_ratio:
        return Outcome(VerdictKind.REJECT, f"{text} < {bar.minimum_ratio:.3f}")
    return Outcome(VerdictKind.INCONCLUSIVE, f"{text} straddles {bar.minimum_ratio:.3f}")


def _judge_failures(samples: Sequence[Sample]) -> Iterator[Outcome]:
    """Failed requests reject the candidate. On an arm that it is compared with, they would flatter the candidate."""
    for arm, kind in (
        (Arm.CANDIDATE, VerdictKind.REJECT),
        (Arm.ACTIVE, VerdictKind.INCONCLUSIVE),
        (Arm.OFF, VerdictKind.INCONCLUSIVE),
    ):
        if failures := sum(sample.failures for sample in samples if sample.arm is arm):
            yield Outcome(kind, f"{failures} requests failed on {arm}")


def _judge_answers(equality: Sequence[AnswerEquality]) -> Iterator[Outcome]:
    """The candidate's greedy answers must have been compared and must not differ beyond a near tie."""
    compared = [comparison for comparison in equality if comparison.arm is Arm.CANDIDATE]
    if not any(comparison.prompts for comparison in compared):
        yield Outcome(VerdictKind.INCONCLUSIVE, "greedy answers were not compared")
    for comparison in compared:
        if comparison.different:
            yield Outcome(
                VerdictKind.REJECT,
                f"{comparison.different} of {comparison.prompts} greedy answers differ beyond a near tie",
            )
