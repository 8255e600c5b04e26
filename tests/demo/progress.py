"""A line of progress from the custom resource, when the loop has reached its end, and the evidence of a speedup."""

from __future__ import annotations

from typing import Any

from aurora_protocol.evidence_records import Evidence
from tests.demo.lines import shorten
from tests.demo.show.draft_lines import activity
from tests.demo.show.observation import Observation, observe
from tests.traffic.report import Summary

MAX_MESSAGE_CHARACTERS = 80


def learned_draft_serves_everywhere(resource: dict[str, Any]) -> bool:
    """Whether a learned draft (version 1 or later) is active, every replica serves it, and no rollout is going on."""
    status = resource.get("status") or {}
    version = (status.get("active") or {}).get("version") or 0
    pods = status.get("pods") or []
    return (
        version >= 1
        and len(pods) == resource["spec"]["serving"]["replicas"]
        and all(pod.get("version") == version for pod in pods)
        and (status.get("rollout") or {}).get("phase") == "Idle"
    )


def progress_line(resource: dict[str, Any], traffic: Summary) -> str:
    """One line for tests and benches: the current activity, the version that serves, and the clients' counts."""
    seen = observe(resource, traffic)
    serving = f"serving version {'-' if seen.version is None else seen.version}"
    if seen.acceptance is not None:
        serving += f", acceptance length {seen.acceptance:.2f}"
    if seen.against_off is not None:
        serving += f", estimated at ~{seen.against_off:.1f}x of no speculation"
    return f"{_activity(seen)} | {serving} | {seen.traffic.requests} requests, {seen.traffic.failed} failed"


def _activity(seen: Observation) -> str:
    """The activity, and how the last candidate ended while the next one is trained."""
    candidate = seen.candidate
    if seen.stage != "learn" or candidate is None:
        return activity(seen)
    message = shorten(candidate.message, MAX_MESSAGE_CHARACTERS)
    return f"{activity(seen)} | version {candidate.version} {candidate.phase}{f': {message}' if message else ''}"


def evidence_table(evidence: Evidence) -> str:
    """The measurement behind a version's verdict, with everything that a reader needs to check the verdict."""
    machine = evidence.environment
    lines = [
        f"Evidence: draft {evidence.version} against draft {evidence.active_version} and against no speculation",
        f"  machine: {machine.device}, {machine.hardware}, SGLang {machine.engine}, {machine.dtype}, "
        f"load {machine.load_average:.1f}",
        "  throughput ratio      concurrency  estimate  95% interval     rounds",
    ]
    lines += [
        f"  {f'{r.numerator}/{r.denominator}':<22}{r.concurrency:>11}{r.estimate:>9.2f}x  "
        f"[{r.low:.2f}, {r.high:.2f}]{r.rounds:>10}{'' if r.paired else '  unpaired'}"
        for r in evidence.verdict.ratios
    ]
    lengths = ", ".join(f"{arm} {length:.2f}" for arm, length in sorted(evidence.acceptance_length.items()))
    lines.append(f"  acceptance length: {lengths}")
    lines += [
        f"  greedy answers of {e.arm} and {e.reference}: {e.identical} of {e.prompts} identical, {e.near_ties} differ "
        f"at a near tie (largest margin {e.largest_margin:.3f}), {e.different} differ for another reason"
        for e in evidence.equality
    ]
    lines.append(f"  verdict: {evidence.verdict.kind}: {'; '.join(evidence.verdict.reasons)}")
    return "\n".join(lines)
