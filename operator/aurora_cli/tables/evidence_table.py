"""``kubectl aurora evidence``: one measurement in tables. Pure.

Invariant: the verdict is shown as the record states it, and where its own samples do not show a Pass under the present
bars, that is said. The record is not verified: the key that validators sign with is the operator's, and no person needs
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from aurora_cli.tables.plain_text import age, plain, table
from aurora_protocol.evidence_records import Arm, Evidence, RatioEstimate, Sample, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_protocol.gate.verdict import recomputed

_ARMS = tuple(Arm)
_VERDICT_STYLES = {VerdictKind.PASS: "good", VerdictKind.REJECT: "bad", VerdictKind.INCONCLUSIVE: "warning"}


def detail(evidence: Evidence, key: str, policy: GatePolicy, now: datetime) -> RenderableType:
    """The verdict with its reasons, every ratio with its interval, the arms, and the machine.

    Args:
        policy: the bars of the present spec.
    """
    verdict = evidence.verdict
    heading = Text.assemble(
        plain(f"version {evidence.version}, attempt {evidence.attempt}: ", "strong"),
        plain(verdict.kind, _VERDICT_STYLES.get(verdict.kind, "")),
        plain(f" against version {evidence.active_version}, {age(evidence.finished, now)} ago"),
    )
    parts: list[RenderableType] = [heading, plain(key, "quiet")]
    if doubt := _doubt(evidence, policy):
        parts.append(plain(doubt, "bad"))
    parts += [plain(f"  {reason}") for reason in verdict.reasons]
    if evidence.end is not None:
        parts.append(plain(f"  ended: {evidence.end}"))
    parts += [Text(""), ratios(verdict.ratios), Text(""), arms(evidence), Text(""), _answers(evidence)]
    return Group(*parts, Text(""), table("", "", rows=list(_environment(evidence))))


def _doubt(evidence: Evidence, policy: GatePolicy) -> str:
    """What the operator would say of a stated Pass now; empty when it would believe it."""
    if evidence.verdict.kind is not VerdictKind.PASS:
        return ""
    found = recomputed(evidence, policy).verdict
    return "" if found.kind is VerdictKind.PASS else "; ".join(found.reasons)


def ratios(estimates: Sequence[RatioEstimate]) -> RenderableType:
    """The throughput ratios with their 95 % intervals."""
    rows = [
        (
            f"{one.numerator}/{one.denominator}",
            one.concurrency,
            plain(f"{one.estimate:.3f}x", _ratio_style(one)),
            f"{one.low:.3f}-{one.high:.3f}",
            one.rounds,
        )
        for one in estimates
    ]
    return table("RATIO", "CONCURRENCY", "ESTIMATE", "INTERVAL", "ROUNDS", rows=rows, last_wraps=False)


def _ratio_style(one: RatioEstimate) -> str:
    if one.low > 1.0:
        return "good"
    return "bad" if one.high < 1.0 else ""


def arms(evidence: Evidence) -> RenderableType:
    """Speed and failures of each arm at each concurrency, over all its batches."""
    return table(
        *("ARM", "CONCURRENCY", "TOKENS/S", "BATCHES", "FAILED", "ACCEPT-LEN"),
        rows=list(_arm_rows(evidence)),
        last_wraps=False,
    )


def _arm_rows(evidence: Evidence) -> Iterator[Sequence[Any]]:
    groups: dict[tuple[int, Arm], list[Sample]] = {}
    for sample in evidence.samples:
        groups.setdefault((sample.concurrency, sample.arm), []).append(sample)
    for (concurrency, arm), own in sorted(groups.items(), key=lambda group: (group[0][0], _ARMS.index(group[0][1]))):
        speed = sum(one.tokens for one in own) / sum(one.seconds for one in own)
        length = evidence.acceptance_length.get(arm)
        yield (
            arm,
            concurrency,
            f"{speed:.1f}",
            len(own),
            sum(one.failures for one in own),
            f"{length:.2f}" if length is not None else None,
        )


def _answers(evidence: Evidence) -> RenderableType:
    rows = [(one.arm, one.prompts, one.identical, one.near_ties, one.different) for one in evidence.equality]
    columns = ("ANSWERS OF", "PROMPTS", "IDENTICAL", "NEAR TIES", "DIFFERENT")
    return table(*columns, rows=rows, last_wraps=False)


def _environment(evidence: Evidence) -> Iterator[tuple[Any, Any]]:
    machine = evidence.environment
    yield plain("machine", "strong"), f"{machine.device}: {machine.hardware}, load {machine.load_average:.1f}"
    yield plain("engine", "strong"), f"SGLang {machine.engine}, torch {machine.torch}, {machine.dtype}"
    draft = f"{machine.draft_shape}: {machine.draft_steps} steps"
    yield plain("draft", "strong"), f"{draft}, {machine.draft_tokens} tokens a round, lookup {machine.lookup}"
    duration = (evidence.finished - evidence.started).total_seconds()
    yield (
        plain("measured", "strong"),
        f"{evidence.started:%Y-%m-%d %H:%M} to {evidence.finished:%H:%M}, {duration:.0f} s",
    )
