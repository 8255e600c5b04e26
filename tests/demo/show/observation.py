"""What the demo shows of the speculator and of its clients, read from the custom resource and the load driver.

The operator fills the status bit by bit, and a field may be missing, null or of another type than expected. Invariant:
every status gives an observation, and no text in it has a character that moves the cursor or ends a line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.demo.lines import MAX_TEXT_CHARACTERS, plain_text
from tests.traffic.report import Summary

_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Candidate:
    """The version that is measured, or was measured last."""

    version: int
    phase: str
    message: str


@dataclass(frozen=True)
class Rollout:
    """The present roll, or the last one."""

    phase: str = "Idle"
    version: int | None = None
    updated: int = 0
    total: int = 0


@dataclass(frozen=True)
class Training:
    """The trainer's last report, and how many tokens it learns from before it offers a candidate."""

    phase: str = ""
    step: int = 0
    trained_tokens: int = 0
    held_out_acceptance: float | None = None
    publish_tokens: int | None = None


@dataclass(frozen=True)
class Traffic:
    """The counts of the clients, since the traffic began."""

    seconds: float = 0.0
    requests: int = 0
    failed: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Observation:
    """One look at the service."""

    version: int | None = None
    """The active draft."""
    acceptance: float | None = None
    """Answer tokens per verify round of live traffic."""
    against_off: float | None = None
    """The engines' estimate of the speed against no speculation."""
    candidate: Candidate | None = None
    rollout: Rollout = Rollout()
    training: Training = Training()
    traffic: Traffic = Traffic()

    @property
    def stage(self) -> str:
        """The most advanced stage that a draft is in: roll, else measure, else learn."""
        candidate = self.candidate
        passed = candidate is not None and candidate.phase == "Validated" and candidate.version != self.version
        if passed or self.rollout.phase != "Idle":
            return "roll"
        return "measure" if candidate is not None and candidate.phase == "Validating" else "learn"


def observe(resource: Mapping[str, Any], traffic: Summary | None = None) -> Observation:
    """Read the custom resource and the clients' counts. Nothing that is missing or null is an error."""
    status, spec = _mapping(resource.get("status")), _mapping(resource.get("spec"))
    active, training = _mapping(status.get("active")), _mapping(status.get("training"))
    rollout = _mapping(status.get("rollout"))
    return Observation(
        version=_count(active.get("version")),
        acceptance=_number(status.get("acceptLength")),
        against_off=_number(status.get("estimatedSpeedup")),
        candidate=_candidate(_mapping(status.get("candidate"))),
        rollout=Rollout(
            phase=plain_text(rollout.get("phase")) or "Idle",
            version=_count(rollout.get("version")),
            updated=_count(rollout.get("updated")) or 0,
            total=_count(rollout.get("total")) or 0,
        ),
        training=Training(
            phase=plain_text(training.get("phase")),
            step=_count(training.get("step")) or 0,
            trained_tokens=_count(training.get("trainedTokens")) or 0,
            held_out_acceptance=_number(training.get("heldOutAcceptLength")),
            publish_tokens=_count(_mapping(spec.get("training")).get("publishTokens")),
        ),
        traffic=_traffic(traffic),
    )


def _candidate(value: Mapping[str, Any]) -> Candidate | None:
    version = _count(value.get("version"))
    if version is None:
        return None
    return Candidate(version, plain_text(value.get("phase")), plain_text(value.get("message")))


def _traffic(summary: Summary | None) -> Traffic:
    if summary is None:
        return Traffic()
    return Traffic(summary.duration_seconds, summary.requests, summary.failed, summary.answer_tokens)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: object) -> float | None:
    """A number, or the number in a text such as `~1.8x`."""
    if isinstance(value, str):
        found = _NUMBER.search(value[:MAX_TEXT_CHARACTERS])
        value = float(found[0]) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
