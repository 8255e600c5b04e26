"""Tables about servers that are held to fixed arms: what the hooks cost, and what the draft's catch-up costs.

Invariant: every ratio compares samples of one measurement round, in which the arms answered right after each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.bench.markdown import markdown_table
from tests.bench.served.held_arms import HeldArms
from tests.bench.served.paired_rounds import Measured
from tests.bench.served.speed_report import describe_ratio

from aurora_protocol import evidence_records
from aurora_protocol.evidence_records import RatioEstimate
from aurora_protocol.gate import paired_ratio


def plain_table(held: Sequence[tuple[Measured, HeldArms]], concurrencies: Sequence[int]) -> str:
    """Each held server against the plain server that makes the same rounds. A row per server and concurrency."""
    head = ["concurrency", "server", "beside", "tok/s", "speed against it [95 %]"]
    head += ["warm-up ms per round", "warm-up ms beside"]
    rows = []
    for concurrency in concurrencies:
        for measured, one in held:
            summary, plain = (measured.summary(name, concurrency) for name in (one.arm, one.plain))
            rows.append(
                [
                    concurrency,
                    one.arm,
                    one.plain,
                    f"{summary.tokens_per_second:.1f}",
                    _describe(measured.ratio(one.arm, one.plain, concurrency)),
                    f"{summary.milliseconds_per_step:.1f}",
                    f"{plain.milliseconds_per_step:.1f}",
                    _describe(round_ratio(measured, one.arm, [one.plain], concurrency)),
                ]
            )
    return markdown_table([*head, "warm-up ms against it [95 %]"], rows)


def catch_up_table(turns: Sequence[tuple[Measured, HeldArms]], concurrencies: Sequence[int]) -> str:
    """Rounds in turn against the mean of the same arms alone, and the catch-up that follows. A row per concurrency."""
    head = ["concurrency", "server", "warm-up ms per round", "warm-up ms of its arms alone"]
    head += ["warm-up ms against them [95 %]"]
    rows = []
    for concurrency in concurrencies:
        for measured, one in turns:
            arms = [HeldArms((name,)).arm for name in one.names]
            alone = statistics.fmean(measured.summary(arm, concurrency).milliseconds_per_step for arm in arms)
            ratio = round_ratio(measured, one.arm, arms, concurrency)
            milliseconds = measured.summary(one.arm, concurrency).milliseconds_per_step
            cells = [concurrency, one.arm, f"{milliseconds:.1f}", f"{alone:.1f}", _describe(ratio)]
            rows.append([*cells, _describe_catch_up(one, alone, ratio)])
    return markdown_table([*head, "warm-up ms per catch-up [95 %]"], rows)


def round_ratio(measured: Measured, arm: str, others: Sequence[str], concurrency: int) -> RatioEstimate | None:
    """The time of a verify round of ``arm`` over the mean time of a round of ``others``, with the gate's interval.

    Paired by measurement round. A name that ``others`` has twice counts twice. None: they were never measured together.
    """
    times = dict[tuple[str, int], float]()
    for sample in measured.samples:
        if sample.concurrency == concurrency:
            times[sample.arm, sample.round] = statistics.fmean(sample.milliseconds_per_step)
    paired = list[evidence_records.Sample]()
    for (name, number), own in times.items():
        if name == arm and all((other, number) in times for other in others):
            mean = statistics.fmean(times[other, number] for other in others)
            # The gate compares speeds, and the time of a round is one over its speed.
            paired.append(_one_round(evidence_records.Arm.OFF, concurrency, number, own))
            paired.append(_one_round(evidence_records.Arm.CANDIDATE, concurrency, number, mean))
    return paired_ratio(paired, evidence_records.Arm.CANDIDATE, evidence_records.Arm.OFF, concurrency)


def catch_up_milliseconds(held: HeldArms, alone: float, ratio: float) -> float:
    """The time of one catch-up.

    Args:
        alone: mean time of a round of the arms alone, in milliseconds.
        ratio: time of a round in turn over ``alone``.
    """
    return (ratio - 1) * alone * len(held.names) / held.catch_ups


def _one_round(
    arm: evidence_records.Arm, concurrency: int, number: int, milliseconds: float
) -> evidence_records.Sample:
    return evidence_records.Sample(
        arm=arm, concurrency=concurrency, round=number, requests=1, tokens=1, seconds=milliseconds / 1000
    )


def _describe(ratio: RatioEstimate | None) -> str:
    """Three digits, because the hooks cost a few percent at most."""
    return f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else describe_ratio(None)


def _describe_catch_up(held: HeldArms, alone: float, ratio: RatioEstimate | None) -> str:
    if ratio is None:
        return describe_ratio(None)
    middle, low, high = (catch_up_milliseconds(held, alone, one) for one in (ratio.estimate, ratio.low, ratio.high))
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"
