"""Reports the measurements as Markdown: a table of the arms, and the controller against the best of the other arms.

Speed is acceptance length over the cost of a round. Every difference in speed comes from one of the two, so the table
has both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.markdown import markdown_table
from tests.bench.served.live_training import LiveTraining, VersionPeriod
from tests.bench.served.paired_rounds import Measured, MeasurementPlan, Sample

from aurora_protocol.evidence_records import AnswerEquality, RatioEstimate


@dataclass(frozen=True)
class Outcome:
    """The measurement of one domain.

    Attributes:
        answered_before: conversations that the experienced servers had before they were measured.
    """

    domain: str
    plan: MeasurementPlan
    measured: Measured
    training: LiveTraining
    answered_before: int


def speed_table(outcome: Outcome) -> str:
    """One row per arm and concurrency."""
    head = ["concurrency", "arm", "tok/s", "against off [95 %]", "acceptance length", "ms per round"]
    rows = []
    for concurrency in outcome.plan.concurrencies:
        for arm in outcome.plan.arms:
            summary = outcome.measured.summary(arm.name, concurrency)
            against_off = outcome.measured.ratio(arm.name, outcome.plan.off.name, concurrency)
            rows.append(
                [
                    str(concurrency),
                    arm.name,
                    f"{summary.tokens_per_second:.1f}",
                    describe_ratio(against_off) if arm != outcome.plan.off else "",
                    f"{summary.acceptance_length:.2f}" if summary.acceptance_length else "",
                    f"{summary.milliseconds_per_step:.1f}",
                ]
            )
    return markdown_table(head, rows)


def controller_lines(outcome: Outcome) -> list[str]:
    """The controller against the best stock arm, off included, at each concurrency."""
    lines = []
    for concurrency in outcome.plan.concurrencies:
        best = best_stock_arm(outcome, concurrency)
        ratio = describe_ratio(outcome.measured.ratio("controller", best, concurrency))
        lines.append(f"concurrency {concurrency}: the controller is {ratio} as fast as the best stock arm ({best})")
    return lines


def best_stock_arm(outcome: Outcome, concurrency: int) -> str:
    """The fastest arm without the controller."""
    stock = [arm.name for arm in outcome.plan.arms if arm.is_stock]
    return max(stock, key=lambda name: outcome.measured.summary(name, concurrency).tokens_per_second)


def equality_table(equality: Mapping[str, AnswerEquality]) -> str:
    """The answers of each arm compared with those without speculation."""
    head = ["answers compared with off's", "prompts", "identical", "near ties", "different"]
    rows = [[name, one.prompts, one.identical, one.near_ties, one.different] for name, one in equality.items()]
    return markdown_table(head, rows)


def caption(outcome: Outcome) -> str:
    """A paragraph about the conversations and the training of the draft."""
    plan, training = outcome.plan, outcome.training
    last = training.checkpoints[-1].record
    return (
        f"**{outcome.domain}**: {plan.rounds} rounds on {plan.needed} conversations that neither the draft nor a server"
        f" had seen. The draft learned from {last.requests} live requests ({last.tokens} answer tokens, held-out ones"
        f" included) in {last.steps} steps, {last.positions / 1000:.0f}k positions and {last.cpu_seconds:.0f} CPU"
        f" seconds. Learning ended {last.settled_seconds:.0f} s after the last request. All servers but the fresh pod's"
        f" had answered the first {outcome.answered_before} conversations of this traffic. Answers are greedy."
        " The controller's servers capture traces, as pods do by default. Tokens per second include the prefill."
        " The cost of a round is the median over streams, between their first and their last output."
    )


def period_line(periods: Sequence[VersionPeriod]) -> str:
    """The acceptance length that the pod counted, by version and by answer tokens of traffic. Empty without traffic."""
    lengths = [
        f"{'untrained' if one.version == 0 else f'version {one.version}'} until {one.until_tokens / 1000:.1f}k: "
        f"{one.acceptance_length:.2f}"
        for one in periods
        if one.acceptance_length is not None
    ]
    return "acceptance length of the live traffic: " + ", ".join(lengths) if lengths else ""


def section(outcome: Outcome) -> str:
    """The whole report on one domain."""
    lines = [*controller_lines(outcome), period_line(outcome.training.periods)]
    parts = [caption(outcome), speed_table(outcome), "\n".join(f"- {line}" for line in lines if line)]
    return "\n\n".join([*parts, equality_table(outcome.measured.equality)])


def as_json(outcome: Outcome, provenance: str) -> dict[str, Any]:
    """All measurements. ``provenance`` names the command, the machine, the commit and the load."""
    measured, training = outcome.measured, outcome.training
    return {
        "provenance": provenance,
        "domain": outcome.domain,
        "checkpoints": {one.name: asdict(one.record) for one in training.checkpoints},
        "periods": [asdict(period) for period in training.periods],
        "samples": [_flat(sample) for sample in measured.samples],
        "equality": {name: one.model_dump(mode="json") for name, one in measured.equality.items()},
    }


def _flat(sample: Sample) -> dict[str, Any]:
    fields = asdict(sample)
    return {**fields.pop("counts"), **fields}


def describe_ratio(ratio: RatioEstimate | None) -> str:
    """A ratio with its interval."""
    return f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "not measured"


def count_failures(outcome: Outcome) -> int:
    """Different answers and failed requests."""
    different = sum(one.different for one in outcome.measured.equality.values())
    return different + sum(sample.counts.failures for sample in outcome.measured.samples)
