"""What is wrong with a speculator, and what to do: rows of ``remedies.yaml`` that its status calls for. Pure.

The same rows are the tables of ``docs/reference/conditions.md``. A unit test checks that every reason that the operator
sets has a row.

Invariant: a command holds names that the API server has validated, and never a message. So a person can paste it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from functools import cache
from importlib import resources
from typing import Any, Final

import yaml

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase
from aurora_cli.speculator import Speculator

DOCTOR: Final = "Doctor"
"""The section of the table for what no condition says."""
USUAL_OPERATOR_NAMESPACE: Final = "aurora-system"
NEW: Final = timedelta(seconds=30)
"""How long a speculator may be without a status."""
TAKEOVER: Final = timedelta(minutes=1)
"""How long after a Lease's end another replica of the operator may need to take the Lease."""
STANDS: Final = timedelta(minutes=10)
"""Long enough for two judgements of any usual traffic."""
_MARKUP: Final = re.compile(r"\[([^]]*)\]\([^)]*\)|`")


class Severity(IntEnum):
    """How much a finding matters. The lowest number comes first."""

    PROBLEM = 1
    """Something does not work, and requires manual action."""
    WARNING = 2
    """Something works less well than it should, or may require manual action."""
    NOTE = 3
    """A person's decision or a state that explains what is seen."""


@dataclass(frozen=True)
class Remedy:
    """One row of the table."""

    meaning: str
    """In Markdown, as :attr:`do`."""
    status: str = ""
    """The condition's status that the reason comes with."""
    do: str = ""
    """What a person can do. Empty: nothing, so the doctor says nothing."""
    severity: Severity = Severity.PROBLEM
    run: tuple[str, ...] = ()
    """Commands with the fields of :func:`_fields`."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that explains what is seen."""

    reason: str
    severity: Severity
    meaning: str
    do: str
    evidence: str
    """How that is known: a condition with its message, or a fact of the status."""
    commands: Sequence[str]


@cache
def remedies() -> Mapping[str, Mapping[str, Remedy]]:
    """The rows by condition and reason, in their order."""
    text = (resources.files("aurora_cli") / "remedies.yaml").read_text(encoding="utf-8")
    return {
        type_: {reason: _remedy(row) for reason, row in rows.items()} for type_, rows in yaml.safe_load(text).items()
    }


def _remedy(row: Mapping[str, Any]) -> Remedy:
    severity = Severity[str(row.get("severity", "problem")).upper()]
    return Remedy(**{**row, "severity": severity, "run": tuple(row.get("run", ()))})


def diagnose(
    one: Speculator, lease: Mapping[str, Any] | None, now: datetime, kubectl_flags: Sequence[str] = ()
) -> Sequence[Finding]:
    """What is wrong, problems first.

    Args:
        lease: ``spec`` of the Lease of the operator that acts on the speculator. None: it could not be read.
        kubectl_flags: flags of the printed commands, which name the cluster.
    """
    facts = [(reason, remedies()[DOCTOR][reason], evidence) for reason, evidence in _facts(one, lease, now)]
    found = [_finding(one, *each, kubectl_flags) for each in (*facts, *_of_conditions(one))]
    return sorted(found, key=lambda finding: finding.severity)


def _of_conditions(one: Speculator) -> Iterator[tuple[str, Remedy, str]]:
    """Reason, row and evidence of each condition that a person can act on. Ready repeats the others."""
    told = set[str]()
    for condition in sorted(one.status.conditions, key=lambda each: each.type == ConditionType.READY):
        row = _row_of(condition)
        if row is not None and row.do and condition.reason not in told:
            told.add(condition.reason)
            yield condition.reason, row, _condition_text(condition)


def _row_of(condition: Condition) -> Remedy | None:
    """The row of a condition. One that is abnormal for a reason without any row has a row of its own."""
    rows, reason = remedies(), condition.reason
    is_known = any(name in of_type for of_type in rows.values() for name in (reason, reason.removeprefix("Storage")))
    bad = ConditionStatus.TRUE if condition.type == ConditionType.STALLED else ConditionStatus.FALSE
    if is_known or condition.status is not bad or condition.type == ConditionType.RECONCILING:
        return rows.get(str(condition.type), {}).get(reason)
    return rows[DOCTOR]["UnknownReason"]


def _condition_text(condition: Condition) -> str:
    text = f"{condition.type}={condition.status} {condition.reason}"
    return f"{text}: {condition.message}" if condition.message else text


def _facts(one: Speculator, lease: Mapping[str, Any] | None, now: datetime) -> Iterator[tuple[str, str]]:
    """Reason and evidence of what no condition says."""
    status, rollout, candidate = one.status, one.status.rollout, one.status.candidate
    if not one.has_status:
        if one.created is None or now - one.created > NEW:
            yield "NoOperator", "the resource has no status"
        return
    if lease is not None and (late := _late(lease, now)):
        yield "OperatorStopped", late
    if status.observed_generation < one.generation:
        yield "SpecUnseen", f"generation {one.generation}, status.observedGeneration {status.observed_generation}"
    if pods := [pod.name for pod in status.pods if pod.state == "AgentUnreachable"]:
        yield "AgentUnreachable", ", ".join(pods)
    since = rollout.progressed or rollout.started
    if rollout.phase is not RolloutPhase.IDLE and not one.paused and since is not None and now - since > STANDS:
        text = f"{rollout.phase} of version {rollout.version} on {rollout.updated} of {rollout.total} pods"
        yield "RollStands", f"{text}: {rollout.waiting or rollout.message}"
    if candidate is not None and candidate.waits_to_begin:
        yield "CandidateWaits", f"version {candidate.version}: {candidate.message}"
    if candidate is not None and candidate.phase is CandidatePhase.FAILED:
        yield "CandidateFailed", f"version {candidate.version}: {candidate.message}"
    if one.paused:
        yield "Paused", "spec.rollout.paused is true"
    if one.pin is not None:
        yield "Pinned", f"spec.rollout.pin is {one.pin}"


def _late(lease: Mapping[str, Any], now: datetime) -> str:
    """How long ago the operator should have renewed its Lease; empty while it does."""
    try:
        renewed = datetime.fromisoformat(str(lease.get("renewTime")))
        lasts = timedelta(seconds=int(lease.get("leaseDurationSeconds") or 0))
    except (ValueError, TypeError, OverflowError):
        return "its Lease does not exist, or was never renewed"
    renewed = renewed if renewed.tzinfo else renewed.replace(tzinfo=UTC)
    late = now - renewed > lasts + TAKEOVER
    return f"its Lease was last renewed at {renewed.isoformat(timespec='seconds')}" if late else ""


def _finding(one: Speculator, reason: str, row: Remedy, evidence: str, kubectl_flags: Sequence[str]) -> Finding:
    commands = [_in_cluster(_filled(command, one), kubectl_flags) for command in row.run]
    return Finding(reason, row.severity, without_markup(row.meaning), without_markup(row.do), evidence, commands)


def without_markup(markdown: str) -> str:
    """A text of the table for a terminal: without code marks and links."""
    return _MARKUP.sub(lambda match: match[1] or "", markdown)


def _in_cluster(command: str, kubectl_flags: Sequence[str]) -> str:
    """``command`` with the flags after each program. kubectl accepts flags of a plugin only after the plugin's name."""
    flags = "".join(f" {shlex.quote(flag)}" for flag in kubectl_flags)
    return re.sub(r"(^|\| )(kubectl aurora|kubectl)(?= )", lambda match: f"{match[0]}{flags}", command)


def _filled(command: str, one: Speculator) -> str:
    credentials = one.section("store").get("credentials") or {}
    candidate, lease = one.status.candidate, one.operator_lease
    fields = {
        "{ns}": one.namespace,
        "{name}": one.name,
        "{operator_ns}": lease[0] if lease else USUAL_OPERATOR_NAMESPACE,
        "{secret}": str((credentials.get("secretRef") or {}).get("name") or "SECRET"),
        "{job}": (candidate.job if candidate else None) or "JOB",
    }
    for field, value in fields.items():
        command = command.replace(field, value)
    return command
