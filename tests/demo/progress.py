"""The lines of the demo: its stages, and what happens to the drafts, by resource, clients' counts and evidence.

The operator fills the status bit by bit. Invariant: a field that is missing or null is no error.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aurora_protocol.evidence_records import Evidence
from tests.traffic.report import Summary

MAX_MESSAGE_CHARACTERS = 80
FIGURES_SECONDS = 60.0


class Story:
    """Prints the lines of one run, each with the minutes and seconds since the demo began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.stage_now = ""
        """The stage that runs or that failed."""

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(f"[{minutes:02d}:{seconds:02d}] {text}", flush=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Tell when the block begins, and how long it took when it ends well."""
        self.stage_now, began = title, time.monotonic()
        self.say(f"begun: {title}")
        yield
        self.say(f"done: {title}, in {time.monotonic() - began:.0f} s")


def learned_draft_serves_everywhere(resource: dict[str, Any]) -> bool:
    """Whether a learned draft (version 1 or later) is active, every replica serves it, and no rollout is going on."""
    status = resource.get("status") or {}
    version = _part(resource, "active").get("version") or 0
    pods = status.get("pods") or []
    return (
        version >= 1
        and len(pods) == resource["spec"]["serving"]["replicas"]
        and all(pod.get("version") == version for pod in pods)
        and _part(resource, "rollout").get("phase") == "Idle"
    )


def progress_line(resource: dict[str, Any], traffic: Summary) -> str:
    """One line: what happens to the most advanced draft, the version that serves, and the clients' counts."""
    status = resource.get("status") or {}
    serving = f"serving version {_part(resource, 'active').get('version', '-')}"
    if status.get("acceptLength"):
        serving += f", acceptance length {status['acceptLength']}"
    if status.get("estimatedSpeedup"):
        serving += f", estimated at {status['estimatedSpeedup']} of no speculation"
    clients = f"{traffic.requests} requests, {traffic.failed} failed, {traffic.tokens_per_second:.1f} tok/s"
    return f"{_activity(resource)} | {serving} | {clients}"


def _part(resource: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = (resource.get("status") or {}).get(name) or {}
    return found


def _activity(resource: dict[str, Any]) -> str:
    rollout, candidate, training = (_part(resource, name) for name in ("rollout", "candidate", "training"))
    if rollout.get("phase", "Idle") != "Idle":
        return _rollout_line(rollout)
    if candidate.get("phase") == "Validating":
        return f"measuring version {candidate.get('version')}"
    length = training.get("heldOutAcceptLength")
    return f"training: step {training.get('step', 0)}" + (f", held-out acceptance length {length}" if length else "")


def _rollout_line(rollout: dict[str, Any]) -> str:
    pods = f"{rollout.get('updated', 0)} of {rollout.get('total', 0)} pods"
    return f"rollout of version {rollout.get('version', '-')}: {rollout.get('phase')}, {pods}"


class News:
    """Finds what is new since the last look at the resource, and has the figures once a minute."""

    def __init__(self) -> None:
        self._told = dict[str, object]()
        self._figures_at = float("-inf")

    def lines(self, resource: dict[str, Any], traffic: Summary) -> list[str]:
        """The lines to print after this look."""
        active, candidate, rollout = (_part(resource, name) for name in ("active", "candidate", "rollout"))
        phase, message = candidate.get("phase"), str(candidate.get("message") or "")[:MAX_MESSAGE_CHARACTERS]
        ending = f": {message}" if message and phase != "Validating" else ""
        facts = {
            "active": f"version {active.get('version')} is the active draft" if "version" in active else "",
            "candidate": f"version {candidate.get('version')} is {phase}{ending}" if phase else "",
            "rollout": _rollout_line(rollout) if rollout.get("phase", "Idle") != "Idle" else "",
            "failures": f"requests failed: {traffic.failed} of {traffic.requests}" if traffic.failed else "",
        }
        news = [text for name, text in facts.items() if text and text != self._told.get(name)]
        self._told.update(facts)
        if time.monotonic() - self._figures_at >= FIGURES_SECONDS:
            self._figures_at = time.monotonic()
            news.append(progress_line(resource, traffic))
        return news


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
        f"[{r.low:.2f}, {r.high:.2f}]{r.rounds:>10}"
        for r in evidence.verdict.ratios
    ]
    lengths = ", ".join(f"{arm} {length:.2f}" for arm, length in sorted(evidence.acceptance_length.items()))
    lines.append(f"  acceptance length: {lengths}")
    lines += [
        f"  greedy answers of {e.arm} and off: {e.identical} of {e.prompts} identical, {e.near_ties} differ "
        f"at a near tie, {e.different} differ for another reason"
        for e in evidence.equality
    ]
    lines.append(f"  verdict: {evidence.verdict.kind}: {'; '.join(evidence.verdict.reasons)}")
    return "\n".join(lines)
