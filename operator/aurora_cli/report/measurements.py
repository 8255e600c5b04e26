"""Turns stored evidence into figures of a report. Pure.

Invariant: the verdict is shown as the record states it. Where the record says Pass and its own samples show no Pass
under any bars that the API allows, that is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from aurora_cli.report.report import Answers, Measurement, Ratio, Throughput, VersionSpeed, utc
from aurora_cli.tables.evidence_table import MAX_TOKENS
from aurora_protocol.evidence_records import Arm, Evidence, RatioEstimate, Sample, VerdictKind
from aurora_protocol.gate.recompute import least_policies, recomputed

MAX_ROWS: Final = 64
"""Most ratios, reasons and compared arms of one measurement. A validator writes fewer."""
_CREDIBLE_RATIO: Final = (1e-3, 1e3)
_ARMS: Final = tuple(Arm)


def measurement(evidence: Evidence) -> Measurement:
    """The figures of one attempt."""
    machine, baseline = evidence.environment, evidence.baseline
    return Measurement(
        version=evidence.version,
        attempt=evidence.attempt,
        active_version=evidence.active_version,
        verdict=evidence.verdict.kind,
        reasons=evidence.verdict.reasons[:MAX_ROWS],
        doubt=_doubt(evidence),
        ratios=tuple(_ratio(one) for one in evidence.verdict.ratios[:MAX_ROWS] if _is_credible(one)),
        throughputs=(
            *_throughputs(evidence.samples, cached=False),
            *(_throughputs(baseline.samples, cached=True) if baseline else ()),
        ),
        answers=tuple(
            Answers(one.arm, one.reference, one.prompts, one.identical, one.near_ties, one.different)
            for one in evidence.equality[:MAX_ROWS]
        ),
        acceptance_length=tuple(
            (arm, value) for arm, value in evidence.acceptance_length.items() if math.isfinite(value)
        ),
        machine=f"{machine.device}: {machine.hardware}",
        engine=f"SGLang {machine.engine}, torch {machine.torch}, {machine.dtype}",
        draft=f"{machine.draft_shape}: {machine.draft_steps} steps,"
        f" {machine.draft_tokens} tokens a round, lookup {machine.lookup}",
        started=utc(evidence.started),
        finished=utc(evidence.finished),
    )


def version_speeds(measurements: Sequence[Measurement]) -> tuple[VersionSpeed, ...]:
    """The speed of each version over no speculation, by version.

    A version that has no measurement of its own, such as the initial draft, has the figures of the first measurement
    in which it was the active version.
    """
    found = {one.version: VersionSpeed(one.version, over_off(one, Arm.CANDIDATE), outcome(one)) for one in measurements}
    for one in measurements:
        as_active = VersionSpeed(one.active_version, over_off(one, Arm.ACTIVE), f"active beside {one.version}")
        found.setdefault(one.active_version, as_active)
    return tuple(found[version] for version in sorted(found) if found[version].ratios)


def outcome(one: Measurement) -> str:
    """The verdict in words, with the doubt about it."""
    return f"{one.verdict}, which its samples do not show" if one.doubt else one.verdict


def over_off(one: Measurement, arm: Arm) -> tuple[Ratio, ...]:
    """The throughput of an arm over no speculation, one ratio for each concurrency."""
    return tuple(ratio for ratio in one.ratios if (ratio.numerator, ratio.denominator) == (arm, Arm.OFF))


def _doubt(evidence: Evidence) -> str:
    if evidence.verdict.kind is not VerdictKind.PASS:
        return ""
    if recomputed(evidence, least_policies(evidence)).verdict.kind is VerdictKind.PASS:
        return ""
    return "the record says Pass, but its own samples do not meet even the lowest thresholds that the API allows"


def _ratio(one: RatioEstimate) -> Ratio:
    return Ratio(
        one.numerator, one.denominator, one.concurrency, one.estimate, one.low, one.high, one.rounds, one.paired
    )


def _is_credible(one: RatioEstimate) -> bool:
    """Whether a chart can show it. A bound may be far away while there are few rounds."""
    low, high = _CREDIBLE_RATIO
    return all(math.isfinite(value) and 0 <= value <= high for value in (one.low, one.high)) and (
        low <= one.estimate <= high
    )


def _throughputs(samples: Sequence[Sample], *, cached: bool) -> Iterator[Throughput]:
    groups: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        if sample.tokens > MAX_TOKENS:
            continue
        groups.setdefault((sample.concurrency, _ARMS.index(sample.arm)), []).append(sample)
    for (concurrency, number), own in sorted(groups.items())[:MAX_ROWS]:
        speed = sum(one.tokens for one in own) / sum(one.seconds for one in own)
        if math.isfinite(speed):
            yield Throughput(
                _ARMS[number], concurrency, speed, len(own), sum(one.failures for one in own), cached=cached
            )
