"""What the demo tells: one line of progress from the custom resource, and the evidence behind a speedup."""

from __future__ import annotations

from typing import Any

from aurora_protocol.evidence_records import Evidence
from tests.traffic.report import Summary


def served_everywhere(resource: dict[str, Any]) -> bool:
    """Whether an earned draft is active and every replica serves it."""
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
    """One line: traffic, trainer, live acceptance, candidate, rollout."""
    status = resource.get("status", {})
    training, candidate = status.get("training", {}), status.get("candidate")
    parts = [
        f"{traffic.requests} requests ({traffic.failed} failed, {traffic.answer_tokens} tokens)",
        f"trainer {training.get('phase') or 'Starting'}: step {training.get('step', 0)}, "
        f"{training.get('trainedTokens', 0)} positions, "
        f"held-out acceptance {training.get('heldOutAcceptLength') or '-'}, "
        f"vocabulary coverage {training.get('vocabularyCoverage') or '-'}",
        f"live acceptance {status.get('acceptLength') or '-'}",
        f"active {status.get('active', {}).get('version', '-')}",
    ]
    if candidate:
        parts.append(f"candidate {candidate['version']} {candidate['phase']} {candidate.get('message', '')}".rstrip())
    rollout = status.get("rollout", {})
    if rollout.get("phase", "Idle") != "Idle":
        parts.append(f"rollout {rollout['phase']} {rollout.get('updated', 0)}/{rollout.get('total', 0)}")
    return "; ".join(parts)


def evidence_table(evidence: Evidence) -> str:
    """The measurement of a version, as a person would check it."""
    where = evidence.environment
    lines = [
        f"evidence for draft {evidence.version} against draft {evidence.active_version} and no speculation "
        f"({where.device}: {where.hardware}, SGLang {where.engine}, {where.dtype}, load {where.load_average:.1f}):",
        "  ratio                 concurrency  estimate  95% interval     rounds",
    ]
    lines += [
        f"  {f'{r.numerator}/{r.denominator}':<22}{r.concurrency:>11}{r.estimate:>9.2f}x  "
        f"[{r.low:.2f}, {r.high:.2f}]{r.rounds:>10}{'' if r.paired else '  unpaired'}"
        for r in evidence.verdict.ratios
    ]
    lengths = ", ".join(f"{arm} {length:.2f}" for arm, length in sorted(evidence.accept_length.items()))
    lines.append(f"  acceptance length: {lengths}")
    lines += [
        f"  greedy answers, {e.arm} against {e.reference}: {e.identical} of {e.prompts} identical, "
        f"{e.near_ties} differ first at a near tie (largest margin {e.largest_margin:.3f}), "
        f"{e.different} differ otherwise"
        for e in evidence.equality
    ]
    lines.append(f"  verdict {evidence.verdict.kind}: {'; '.join(evidence.verdict.reasons)}")
    return "\n".join(lines)
