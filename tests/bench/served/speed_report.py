"""Reports the measurements as Markdown, with their verdicts: the speed goals, and where NGRAM wins and why.

Speed is acceptance length over the cost of a round. Every difference in speed comes from one of the two, so the report
shows both.

Invariant: a goal is met, and an arm wins, only if the whole 95 % interval lies on that side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.bench.markdown import markdown_table
from tests.bench.served.lineup import Lineup
from tests.bench.served.live_training import LiveTraining, VersionPeriod
from tests.bench.served.paired_rounds import ArmSummary, Measured, MeasurementPlan, Sample

from aurora_protocol.evidence_records import AnswerEquality, RatioEstimate


@dataclass(frozen=True)
class SpeedGoal:
    """The goal for a trained draft.

    Attributes:
        tokens: the most answer tokens of traffic that the draft may have learned from.
        ratios: the speed over no speculation, by concurrency.
    """

    tokens: int
    ratios: Mapping[int, float]


GOALS: Final = {
    "json": SpeedGoal(20_000, {1: 2.5, 4: 1.8}),
    "docstrings": SpeedGoal(80_000, {1: 1.6, 4: 1.1}),
}


@dataclass(frozen=True)
class Outcome:
    """The measurement of one kind of traffic.

    Attributes:
        answered_before: requests that the experienced servers of the lineup answered before they were measured.
    """

    traffic: str
    plan: MeasurementPlan
    measured: Measured
    lineup: Lineup
    training: LiveTraining
    answered_before: int


def speed_table(outcome: Outcome) -> str:
    """One row per arm and concurrency."""
    head = ["concurrency", "arm", "tok/s", "against off [95 %]", "acceptance length"]
    head += ["ms per round", "break-even acceptance length"]
    off, rows = outcome.lineup.off, []
    for concurrency in outcome.plan.concurrencies:
        step = outcome.measured.summary(off, concurrency).milliseconds_per_step
        for arm in outcome.plan.arms:
            summary = outcome.measured.summary(arm.name, concurrency)
            against_off = outcome.measured.ratio(arm.name, off, concurrency) if arm.name != off else None
            rows.append(
                [
                    str(concurrency),
                    arm.name,
                    f"{summary.tokens_per_second:.1f}",
                    describe_ratio(against_off) if against_off else "",
                    f"{summary.acceptance_length:.2f}" if summary.acceptance_length else "",
                    f"{summary.milliseconds_per_step:.1f}",
                    f"{summary.milliseconds_per_step / step:.2f}" if against_off else "",
                ]
            )
    return markdown_table(head, rows)


def goal_lines(outcome: Outcome) -> list[str]:
    """Whether the trained draft meets the domain's speed goals, in each shape."""
    if outcome.traffic not in GOALS:
        return []
    goals = [(*goal, name) for goal in GOALS[outcome.traffic].ratios.items() for name in outcome.lineup.trained]
    lines = [_goal_line(outcome, name, concurrency, ratio) for concurrency, ratio, name in goals]
    return [line for line in lines if line]


def _goal_line(outcome: Outcome, name: str, concurrency: int, goal: float) -> str:
    """Empty where the concurrency was not measured."""
    ratio, allowed = ratio_of(outcome, name, outcome.lineup.off, concurrency), GOALS[outcome.traffic].tokens
    if ratio is None:
        return ""
    if outcome.training.checkpoints[-1].record.tokens > allowed:
        verdict = f"not applicable: the draft learned from more than {allowed} answer tokens"
    elif ratio.low >= goal:
        verdict = "met"
    elif ratio.high < goal:
        verdict = "missed"
    else:
        verdict = "undecided: the goal lies within the interval"
    goal_text = f"goal {goal}x within {allowed} answer tokens, concurrency {concurrency}"
    return f"{goal_text}: {verdict} ({name}: {describe_ratio(ratio)})"


def ngram_lines(outcome: Outcome) -> list[str]:
    """Whether the trained draft beats the fastest NGRAM, and why, at each concurrency and in each shape."""
    pairs = [(concurrency, name) for concurrency in outcome.plan.concurrencies for name in outcome.lineup.trained]
    return [line for concurrency, name in pairs if (line := _ngram_line(outcome, name, concurrency))]


def _ngram_line(outcome: Outcome, name: str, concurrency: int) -> str:
    """Empty where the two arms were not measured."""
    ngrams = outcome.lineup.ngrams
    summaries = {one: outcome.measured.summary(one, concurrency) for one in (*ngrams, name)}
    best = max(ngrams, key=lambda one: summaries[one].tokens_per_second)
    ratio = ratio_of(outcome, name, best, concurrency)
    if ratio is None:
        return ""
    if ratio.low > 1:
        verdict = f"{name} beats {best}"
    elif ratio.high < 1:
        verdict = f"{best} still wins"
    else:
        verdict = f"{name} and {best} cannot be told apart"
    reason = explain_difference(summaries[name], summaries[best])
    return f"concurrency {concurrency}: {verdict}, {name} is {describe_ratio(ratio)} as fast: {reason}"


def controller_lines(outcome: Outcome) -> list[str]:
    """The controller against off, and against the best single arm that has the same draft or none."""
    lines = []
    for concurrency in outcome.plan.concurrencies:
        for name in outcome.lineup.controlled:
            best = best_single_arm(outcome, name, concurrency)
            lines.append(
                f"concurrency {concurrency}: {name} is {describe_ratio(ratio_of(outcome, name, best, concurrency))} as"
                f" fast as the best single arm ({best}), and"
                f" {describe_ratio(ratio_of(outcome, name, outcome.lineup.off, concurrency))} as fast as off"
            )
    return lines


def best_single_arm(outcome: Outcome, controlled: str, concurrency: int) -> str:
    """The fastest arm that decides nothing and has the draft of the arm ``controlled``, or no draft."""
    lineup, drafts = outcome.lineup, {arm.name: arm.draft for arm in outcome.plan.arms}
    singles = [
        arm.name
        for arm in outcome.plan.arms
        if arm.name not in lineup.controlled and drafts[arm.name] in (None, drafts[controlled])
    ]
    return max(singles, key=lambda one: outcome.measured.summary(one, concurrency).tokens_per_second)


def explain_difference(draft: ArmSummary, ngram: ArmSummary) -> str:
    """The acceptance lengths and the costs of a round, compared.

    The costs come from streams without their prefill, so the two factors need not multiply to the speed.
    """
    if not draft.acceptance_length or not ngram.acceptance_length:
        return "one of them had no verify rounds"
    gain = draft.acceptance_length / ngram.acceptance_length
    cost = draft.milliseconds_per_step / ngram.milliseconds_per_step
    break_even = ngram.acceptance_length * cost
    return (
        f"acceptance length {draft.acceptance_length:.2f} against {ngram.acceptance_length:.2f} ({gain:.2f}x), "
        f"a round costs {draft.milliseconds_per_step:.1f} against {ngram.milliseconds_per_step:.1f} ms ({cost:.2f}x); "
        f"at these costs the draft needs {break_even:.2f} to be as fast"
    )


def equality_table(equality: Mapping[str, AnswerEquality]) -> str:
    """The answers of each arm compared with those without speculation."""
    head = ["answers compared with off's", "prompts", "identical", "near ties", "different"]
    rows = [[name, one.prompts, one.identical, one.near_ties, one.different] for name, one in equality.items()]
    return markdown_table(head, rows)


def caption(outcome: Outcome) -> str:
    """A paragraph about the prompts, the answers and the training of the drafts."""
    plan, measured, training = outcome.plan, outcome.measured, outcome.training
    last = training.checkpoints[-1].record
    distinct = "-" if measured.distinct_4grams is None else f"{measured.distinct_4grams:.2f}"
    return (
        f"**{outcome.traffic}**: {plan.rounds} rounds on {plan.prompts_needed} prompts that neither the drafts nor "
        f"NGRAM had seen. Answers without speculation: distinct 4-grams {distinct}, "
        f"{100 * measured.distinct_answers:.0f} % of them distinct. The last draft learned from "
        f"{last.requests} live requests ({last.tokens} answer tokens, held-out ones included) in {last.steps} steps, "
        f"{last.positions / 1000:.0f}k positions and {last.cpu_seconds:.0f} CPU seconds. Learning ended "
        f"{last.settled_seconds:.0f} s after the last request. Training unrolled {training.unroll_steps} steps, with a "
        f"vocabulary map of {training.spec.vocab_size:,} tokens. Servers that had answered the first "
        f"{outcome.answered_before} live requests: {', '.join(outcome.lineup.experienced) or 'none'}. No server "
        "captures traces while it is measured. Tokens per second include the prefill. The cost of a round is the "
        "median over streams, between their first and their last output."
    )


def period_line(periods: Sequence[VersionPeriod]) -> str:
    """The acceptance length that the pod counted, by version and by answer tokens of traffic. Empty without traffic."""
    if not periods:
        return ""
    lengths = [
        f"{'untrained' if one.version == 0 else f'version {one.version}'} until {one.until_tokens / 1000:.1f}k: "
        f"{one.acceptance_length:.2f}"
        for one in periods
        if one.acceptance_length is not None
    ]
    return "acceptance length of the live traffic: " + ", ".join(lengths)


def section(outcome: Outcome) -> str:
    """The whole report on one kind of traffic."""
    lines = [
        *goal_lines(outcome),
        *controller_lines(outcome),
        *ngram_lines(outcome),
        period_line(outcome.training.periods),
    ]
    parts = [caption(outcome), speed_table(outcome), "\n".join(f"- {line}" for line in lines if line)]
    return "\n\n".join([*parts, equality_table(outcome.measured.equality)])


def as_json(outcome: Outcome, provenance: str) -> dict[str, Any]:
    """All measurements. ``provenance`` names the command, the machine, the commit and the load."""
    measured, training = outcome.measured, outcome.training
    return {
        "provenance": provenance,
        "traffic": outcome.traffic,
        "checkpoints": {one.name: asdict(one.record) for one in training.checkpoints},
        "periods": [asdict(period) for period in training.periods],
        "samples": [_flat(sample) for sample in measured.samples],
        "equality": {name: one.model_dump(mode="json") for name, one in measured.equality.items()},
        "distinct_4grams": measured.distinct_4grams,
        "distinct_answers": measured.distinct_answers,
    }


def _flat(sample: Sample) -> dict[str, Any]:
    fields = asdict(sample)
    return {**fields.pop("counts"), **fields}


def ratio_of(outcome: Outcome, arm: str, other: str, concurrency: int) -> RatioEstimate | None:
    """Throughput of one arm over another's; None where the concurrency was not measured."""
    return outcome.measured.ratio(arm, other, concurrency) if concurrency in outcome.plan.concurrencies else None


def describe_ratio(ratio: RatioEstimate | None) -> str:
    """A ratio with its interval."""
    return f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "not measured"


def count_failures(outcome: Outcome) -> int:
    """Different answers and failed requests."""
    different = sum(one.different for one in outcome.measured.equality.values())
    return different + sum(sample.counts.failures for sample in outcome.measured.samples)
