"""What was measured as Markdown tables, and what it says: the targets, and where NGRAM wins and why.

Speed is acceptance length over the cost of a round, so a difference in speed comes from one or the other, and both
stand beside each other in figures. Invariant: a target is met, and an arm wins, only where the interval says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.bench.served.live import Checkpoint, Seen
from tests.bench.served.measure import Cell, Measured, Plan

from aurora_protocol.evidence_records import AnswerEquality, RatioEstimate


@dataclass(frozen=True)
class Target:
    """The speed over off that is asked for, by concurrency, within ``tokens`` answer tokens of traffic."""

    tokens: int
    ratios: Mapping[int, float]


TARGETS: Final = {
    "json": Target(20_000, {1: 2.5, 4: 1.8}),
    "docstrings": Target(80_000, {1: 1.6, 4: 1.1}),
}


@dataclass(frozen=True)
class Outcome:
    """One kind of traffic, measured; arms by their names in ``plan``'s order."""

    traffic: str
    plan: Plan
    measured: Measured
    checkpoints: Sequence[Checkpoint]
    live: Sequence[Seen]
    """The versions that served the traffic."""
    off: str
    ngrams: Sequence[str]
    trained: Sequence[str]
    """The draft that learnt from the most, in each shape."""
    vocabulary: int
    """Entries of the drafts' vocabulary map."""
    unrolled: int
    """Depth of their training."""


def table(outcome: Outcome) -> str:
    """One row per arm and concurrency."""
    lines = [
        "| concurrency | arm | tok/s | against off [95 %] | acceptance length | ms a round | break-even acceptance |",
        "|---|---|---|---|---|---|---|",
    ]
    for concurrency in outcome.plan.concurrencies:
        step = outcome.measured.cell(outcome.off, concurrency).round_ms
        for arm in outcome.plan.arms:
            cell = outcome.measured.cell(arm.name, concurrency)
            against = outcome.measured.ratio(arm.name, outcome.off, concurrency) if arm.name != outcome.off else None
            cells = [
                str(concurrency),
                arm.name,
                f"{cell.tokens_per_second:.1f}",
                said_ratio(against) if against else "",
                f"{cell.accept_length:.2f}" if cell.accept_length else "",
                f"{cell.round_ms:.1f}",
                f"{cell.round_ms / step:.2f}" if against else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def target_lines(outcome: Outcome) -> list[str]:
    """Whether the trained draft is as fast as was asked for, in each shape."""
    asked = [(*one, name) for one in TARGETS[outcome.traffic].ratios.items() for name in outcome.trained]
    return [line for concurrency, ratio, name in asked if (line := _target(outcome, name, concurrency, ratio))]


def _target(outcome: Outcome, name: str, concurrency: int, asked: float) -> str:
    found, allowed = ratio_of(outcome, name, outcome.off, concurrency), TARGETS[outcome.traffic].tokens
    if found is None:
        return ""
    if outcome.checkpoints[-1].learnt.tokens > allowed:
        says = f"no answer: it learnt from more than {allowed} answer tokens"
    elif found.low >= asked:
        says = "met"
    elif found.high < asked:
        says = "missed"
    else:
        says = "undecided: the interval straddles it"
    what = f"target {asked}x within {allowed} answer tokens, concurrency {concurrency}"
    return f"{what}: {says} ({name}: {said_ratio(found)})"


def ngram_lines(outcome: Outcome) -> list[str]:
    """Whether the fastest NGRAM or the trained draft wins, and whether by acceptance or by the cost of a round."""
    asked = [(concurrency, name) for concurrency in outcome.plan.concurrencies for name in outcome.trained]
    return [line for concurrency, name in asked if (line := _beside_ngram(outcome, name, concurrency))]


def _beside_ngram(outcome: Outcome, name: str, concurrency: int) -> str:
    cells = {one: outcome.measured.cell(one, concurrency) for one in (*outcome.ngrams, name)}
    best = max(outcome.ngrams, key=lambda one: cells[one].tokens_per_second)
    found = ratio_of(outcome, name, best, concurrency)
    if found is None:
        return ""
    if found.low > 1:
        says = f"{name} beats {best}"
    elif found.high < 1:
        says = f"{best} still wins"
    else:
        says = f"{name} and {best} cannot be told apart"
    why = explained(cells[name], cells[best])
    return f"concurrency {concurrency}: {says}, {name} is {said_ratio(found)} as fast: {why}"


def explained(draft: Cell, ngram: Cell) -> str:
    """Acceptance against the cost of a round. Streams' rounds know no prefill, so the two need not multiply to the
    speed."""
    if not draft.accept_length or not ngram.accept_length:
        return "one of them had no rounds"
    gain, cost = draft.accept_length / ngram.accept_length, draft.round_ms / ngram.round_ms
    even = ngram.accept_length * cost
    return (
        f"acceptance length {draft.accept_length:.2f} against {ngram.accept_length:.2f} ({gain:.2f}x), "
        f"a round costs {draft.round_ms:.1f} against {ngram.round_ms:.1f} ms ({cost:.2f}x); "
        f"at these costs the draft needs {even:.2f} to be as fast"
    )


def equality_table(equality: Mapping[str, AnswerEquality]) -> str:
    """Answers compared with those without speculation."""
    lines = ["| answers compared with off's | prompts | identical | near ties | different |", "|---|---|---|---|---|"]
    for name, one in equality.items():
        lines.append(f"| {name} | {one.prompts} | {one.identical} | {one.near_ties} | {one.different} |")
    return "\n".join(lines)


def caption(outcome: Outcome) -> str:
    """What was asked, and what the drafts had learnt from."""
    plan, measured = outcome.plan, outcome.measured
    last = outcome.checkpoints[-1].learnt
    distinct = "-" if measured.distinct_4grams is None else f"{measured.distinct_4grams:.2f}"
    return (
        f"**{outcome.traffic}**: {plan.rounds} rounds, {plan.prompts_needed} prompts that neither draft nor NGRAM had "
        f"seen; off's answers: distinct 4-grams {distinct}, {100 * measured.distinct_answers:.0f} % of them unlike any "
        f"other. The last draft learnt from {last.requests} live requests ({last.tokens} answer tokens, held-out ones "
        f"included) in {last.steps} steps, {last.positions / 1000:.0f}k positions and {last.cpu_seconds:.0f} CPU "
        f"seconds, which ended {last.settled_seconds:.0f} s after the last request, unrolled {outcome.unrolled} deep, "
        f"with a vocabulary map of {outcome.vocabulary:,} tokens; NGRAM answered the same requests before. No server "
        "captures while it is measured. Tok/s hold the prefill; a round is measured on streams between their first and "
        "last output (median)."
    )


def live_line(live: Sequence[Seen]) -> str:
    """Acceptance length as the pod counted it, version by version, by answer tokens of traffic."""
    told = [
        f"{'untrained' if one.version == 0 else f'version {one.version}'} until {one.until_tokens / 1000:.1f}k: "
        f"{one.accept_length:.2f}"
        for one in live
        if one.accept_length is not None
    ]
    return "acceptance length of the live traffic: " + ", ".join(told)


def section(outcome: Outcome) -> str:
    """Everything about one kind of traffic."""
    lines = [*target_lines(outcome), *ngram_lines(outcome), live_line(outcome.live)]
    parts = [caption(outcome), table(outcome), "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join([*parts, equality_table(outcome.measured.equality)])


def as_json(outcome: Outcome, where: str) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "where": where,
        "traffic": outcome.traffic,
        "learnt": {one.name: asdict(one.learnt) for one in outcome.checkpoints},
        "live": [asdict(one) for one in outcome.live],
        "samples": [asdict(sample) for sample in outcome.measured.samples],
        "equality": {name: one.model_dump(mode="json") for name, one in outcome.measured.equality.items()},
        "distinct_4grams": outcome.measured.distinct_4grams,
        "distinct_answers": outcome.measured.distinct_answers,
    }


def ratio_of(outcome: Outcome, arm: str, other: str, concurrency: int) -> RatioEstimate | None:
    """Throughput of one arm over another's; None where that was not measured."""
    return outcome.measured.ratio(arm, other, concurrency) if concurrency in outcome.plan.concurrencies else None


def said_ratio(ratio: RatioEstimate | None) -> str:
    """A ratio with its interval."""
    return f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "not measured"
