"""The demo's output: one line of progress from the custom resource, and the evidence behind a speedup."""

from __future__ import annotations

from typing import Any

from aurora_protocol.evidence_records import Evidence
from tests.traffic.report import Summary

MAX_MESSAGE_CHARACTERS = 80


def learned_draft_serves_everywhere(resource: dict[str, Any]) -> bool:
    """Whether a learned draft (version 1 or later) is active, every replica serves it, and no rollout is going on."""
    status = resource.get("status", {})
    version = status.get("active", {}).get("version", 0)
    pods = status.get("pods", [])
    return (
        version >= 1
        and len(pods) == resource["spec"]["serving"]["replicas"]
        and all(pod.get("version") == version for pod in pods)
        and status["rollout"]["phase"] == "Idle"
    )


def progress_line(resource: dict[str, Any], traffic: Summary) -> str:
    """One short line: the current activity, the version that serves, and the client's counts."""
    status = resource.get("status", {})
    version = status.get("active", {}).get("version", "-")
    serving = f"serving version {version}"
    if status.get("acceptLength"):
        serving += f", acceptance length {status['acceptLength']}"
    if status.get("estimatedSpeedup"):
        serving += f", estimated at {status['estimatedSpeedup']} of no speculation"
    return f"{_activity(status)} | {serving} | {traffic.requests} requests, {traffic.failed} failed"


def _activity(status: dict[str, Any]) -> str:
    """The most advanced stage that a draft is in: rollout, else validation, else training."""
    rollout, candidate = status.get("rollout", {}), status.get("candidate")
    if rollout.get("phase", "Idle") != "Idle":
        pods = f"{rollout.get('updated', 0)} of {rollout.get('total', 0)} pods"
        return f"rollout of version {rollout.get('version', '-')}: {rollout['phase']}, {pods}"
    if candidate and candidate["phase"] == "Validating":
        active = status.get("active", {}).get("version", "-")
        return f"measuring version {candidate['version']} against version {active}"
    training = status.get("training", {})
    trained = f"training: step {training.get('step', 0)}"
    if training.get("heldOutAcceptLength"):
        trained += f", held-out acceptance length {training['heldOutAcceptLength']}"
    if candidate:
        message = _shorten(candidate.get("message", ""))
        trained += f" | version {candidate['version']} {candidate['phase']}" + (f": {message}" if message else "")
    return trained


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[: MAX_MESSAGE_CHARACTERS - 1]}…"


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
