"""The verdict of stored evidence, computed again from its samples. Pure.

Why: whoever can write to the bucket can write "Pass". A reader of evidence therefore believes no verdict that helps a
candidate. It believes the other verdicts, because they promote nothing.

Invariants: evidence that says anything but Pass never becomes Pass. :func:`recomputed` answers for every record that
satisfies its model, and estimates each ratio once, from at most :data:`MAX_SAMPLES` samples of each arm.

The computing time is bounded by 4 intervals for each of 8 concurrencies, whatever the policies are. The largest
evidence took 1450 ms of one core of a small virtual machine, evidence of 5 rounds at 2 concurrencies 25 ms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from aurora_protocol.evidence_records import Arm, Evidence, Sample, Verdict, VerdictKind
from aurora_protocol.gate.verdict import FEWEST_ROUNDS, GatePolicy, judge_each

MAX_SAMPLES: Final = 1000
"""Most samples of one arm in a measurement, and in its baseline: the API allows 1000 rounds times concurrencies."""
_MAX_CONCURRENCIES: Final = 8
"""Most concurrencies of a measurement."""
_SECONDS = (1e-6, 1e7)
_MAX_TOKENS = 10**12


def recomputed(evidence: Evidence, policies: Sequence[GatePolicy]) -> Evidence:
    """``evidence`` with the verdict of its own samples, where it says Pass. It passes when one of ``policies`` passes.

    Args:
        policies: at least one. The last one gives the reasons when none passes. They share the ratios, so further
            policies take hardly any time.
    """
    if evidence.verdict.kind is not VerdictKind.PASS:
        return evidence
    if problem := _incredible(evidence):
        return _with_verdict(evidence, Verdict(kind=VerdictKind.INCONCLUSIVE, reasons=(problem,), ratios=()))
    verdicts = []
    for verdict in judge_each(evidence.samples, evidence.equality, policies, evidence.baseline):
        verdicts.append(verdict)
        if verdict.kind is VerdictKind.PASS:
            break
    return _with_verdict(evidence, verdicts[-1])


def _with_verdict(evidence: Evidence, verdict: Verdict) -> Evidence:
    """``evidence`` with ``verdict`` in place of the stated Pass. Says so where they differ."""
    if verdict.kind is not VerdictKind.PASS:
        note = f"the evidence says {evidence.verdict.kind}, but its samples do not show that under the present bars"
        verdict = verdict.model_copy(update={"reasons": (note, *verdict.reasons)})
    return evidence.model_copy(update={"verdict": verdict})


def least_policies(evidence: Evidence) -> tuple[GatePolicy, ...]:
    """The bars that no setting lowers, at the concurrencies of the samples. One policy for each possible primary.

    With them a reader tells whether a version ever passed, although the spec has other bars or concurrencies by now.
    """
    measured = sorted({sample.concurrency for sample in evidence.samples if sample.arm is Arm.CANDIDATE})
    concurrencies = tuple(measured[:_MAX_CONCURRENCIES]) or (1,)
    return tuple(
        GatePolicy(
            concurrencies=(primary, *(c for c in concurrencies if c != primary)),
            min_improvement=0.0,
            tolerance=1.0,
            min_rounds=FEWEST_ROUNDS,
        )
        for primary in concurrencies
    )


def _incredible(evidence: Evidence) -> str:
    """Why no validator can have written the samples; empty when one can have."""
    groups = (evidence.samples, evidence.baseline.samples if evidence.baseline else ())
    if any(count > MAX_SAMPLES for samples in groups for count in Counter(one.arm for one in samples).values()):
        return f"the evidence has more than {MAX_SAMPLES} samples of one arm"
    if not all(_is_credible(sample) for samples in groups for sample in samples):
        return "the evidence has samples with impossible figures"
    if any(one.identical + one.near_ties + one.different != one.prompts for one in evidence.equality):
        return "the evidence compares more or fewer answers than it counts"
    return ""


def _is_credible(sample: Sample) -> bool:
    seconds_fit = math.isfinite(sample.seconds) and _SECONDS[0] <= sample.seconds <= _SECONDS[1]
    return seconds_fit and sample.tokens <= _MAX_TOKENS
