"""Builds the Kubernetes Events and the history. Events tell decisions about versions, and faults. Pure.

Invariants: a fault that a person must correct is a Warning from the first reconcile of a speculator on. An Event about
a condition follows from its status and its reason, never from its message alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import HistoryEntry, SpeculatorStatus
from aurora_operator.plan.actions import EventNote
from aurora_operator.plan.candidate import ValidationDecision
from aurora_operator.plan.conditions import is_starting
from aurora_operator.plan.rollout.machine import Step

_TEXTS = {
    "ValidationStarted": "Measuring version {version}",
    "Validated": "Version {version} passed its measurement: {message}",
    "Rejected": "Rejected version {version}: {message}",
    "Inconclusive": "The measurement of version {version} did not decide, so it is not rolled out: {message}",
    "ValidationFailed": "Version {version} could not be measured: {message}",
    "RolloutStarted": "Rolling out version {version}: {message}",
    "CanaryPassed": "The canary of version {version} passed: {message}",
    "Promoted": "Promoted version {version}: {message}",
    "RolloutFailed": "Rolling back version {version}: {message}",
    "RolloutStopped": "Stopped the roll of version {version} without rejecting the version: {message}",
    "Pinned": "Pinned version {version}",
    "Paused": "Paused the roll of version {version}: {message}",
}
DECISIONS: Final = tuple(sorted(_TEXTS))
"""The reasons of all events that tell a decision about a version."""
_HISTORY_EVENTS = {
    "Promoted": "Promoted",
    "RolloutFailed": "RolledBack",
    "RolloutStopped": "RolloutStopped",
    "Paused": "Paused",
    "Rejected": "Rejected",
    "Inconclusive": "Inconclusive",
    "Pinned": "Pinned",
}
"""Event -> history entry, for decisions. A measurement that could not be made decides nothing."""
_WARNINGS = frozenset({"RolloutFailed", "Rejected", "Inconclusive", "ValidationFailed"})


@dataclass(frozen=True)
class VersionEvent:
    """Something that was decided about a version."""

    reason: str
    version: int
    message: str

    @property
    def note(self) -> EventNote:
        text = _TEXTS[self.reason].format(version=self.version, message=self.message)
        return EventNote(self.reason, text.removesuffix(": "), self.reason in _WARNINGS)


def version_events(validation: ValidationDecision, step: Step) -> tuple[VersionEvent, ...]:
    """The decisions of this reconcile: about the candidate first, then about the rollout."""
    events = []
    if validation.event and validation.candidate is not None:
        candidate = validation.candidate
        events.append(VersionEvent(validation.event, candidate.version, candidate.message))
    if step.event and step.rollout.version is not None:
        why = step.rollout.waiting or step.rollout.message
        events.append(VersionEvent(step.event, step.rollout.version, why))
    return tuple(events)


def history_entries(old: SpeculatorStatus, events: Iterable[VersionEvent], now: datetime) -> tuple[HistoryEntry, ...]:
    """The new entries, oldest first.

    An event that repeats the last entry is left out. Otherwise a version that is tried again and again, because its
    swaps do not get through, would push everything else out of the history.
    """
    last = (old.history[-1].event, old.history[-1].version) if old.history else None
    named = [(_HISTORY_EVENTS[event.reason], event) for event in events if event.reason in _HISTORY_EVENTS]
    return tuple(
        HistoryEntry(time=now, event=name, version=event.version, message=event.message)
        for name, event in named
        if (name, event.version) != last
    )


def notes(old: SpeculatorStatus, new: SpeculatorStatus, events: Iterable[VersionEvent]) -> Iterator[EventNote]:
    """The Kubernetes Events: for each decision, for each new fault, and when Ready changes."""
    for event in events:
        yield event.note
    before, after = _by_type(old), _by_type(new)
    faults = [*_faults(before, after)]
    yield from faults
    ready, known = after.get(ConditionType.READY), before.get(ConditionType.READY)
    if ready is None or faults or (known is not None and known.status is ready.status):
        return
    if ready.status is ConditionStatus.TRUE:
        yield EventNote("Ready", ready.message, about_condition=True)
    elif not is_starting(old):
        yield EventNote(ready.reason, ready.message, warning=True, about_condition=True)


def _faults(before: Mapping[str, Condition], after: Mapping[str, Condition]) -> Iterator[EventNote]:
    """A new fault that a person must mend, or else a store that has just become unusable."""
    stalled, storage = after.get(ConditionType.STALLED), after.get(ConditionType.STORAGE_READY)
    if stalled is not None and stalled.status is ConditionStatus.TRUE:
        if not _is_same(before.get(ConditionType.STALLED), stalled):
            yield EventNote(stalled.reason, stalled.message, warning=True, about_condition=True)
        return
    if storage is None or storage.status is ConditionStatus.TRUE:
        return
    if not _is_same(before.get(ConditionType.STORAGE_READY), storage):
        reason = f"Storage{storage.reason}"
        yield EventNote(reason, storage.message, warning=True, about_condition=True)


def _is_same(known: Condition | None, condition: Condition) -> bool:
    return known is not None and (known.status, known.reason) == (condition.status, condition.reason)


def _by_type(status: SpeculatorStatus) -> dict[str, Condition]:
    return {condition.type: condition for condition in status.conditions}
