"""When which version was active, and why: from the channel's records and the status' history. Pure.

Why both: the store keeps every change of the active version. The status keeps the last 20 decisions, those that changed
no version included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from aurora_api.v1alpha1.status import HistoryEntry
from aurora_cli.report.report import Decision, DecisionKind, ServedSpan, utc
from aurora_protocol.draft_records import Channel, ChannelReason

SAME_DECISION: Final = timedelta(minutes=10)
"""A record of the channel and an entry of the history about the same version within this time are one decision."""
ABORTED_CANDIDATE: Final = "aborted by a person"
"""The operator's message in a record that refuses a version whose roll has not begun."""
_TAKEN_AWAY: Final = frozenset({DecisionKind.ROLLED_BACK, DecisionKind.REJECTED})
"""The history and the channel may name one removal of a version differently."""
_EVENTS: Final = {
    ChannelReason.INITIAL: "Initial",
    ChannelReason.PROMOTED: "Promoted",
    ChannelReason.ROLLED_BACK: "RolledBack",
    ChannelReason.PINNED: "Pinned",
    ChannelReason.REFUSED: "RolledBack",
    ChannelReason.RESTORED: "Restored",
    ChannelReason.DELETING: "Deleting",
    ChannelReason.UNKNOWN: "Unknown",
}
_KINDS: Final = {
    "Promoted": DecisionKind.PROMOTED,
    "RolledBack": DecisionKind.ROLLED_BACK,
    "Rejected": DecisionKind.REJECTED,
    "Inconclusive": DecisionKind.REJECTED,
    "Pinned": DecisionKind.PERSON,
    "Vouched": DecisionKind.PERSON,
    "StartedOver": DecisionKind.PERSON,
    "Paused": DecisionKind.PERSON,
    "Resumed": DecisionKind.PERSON,
}


def decisions(channel: Sequence[Channel], history: Sequence[HistoryEntry]) -> tuple[Decision, ...]:
    """All known decisions, oldest first, each once."""
    told = [_decision(entry.time, entry.event, entry.version, entry.message, "status") for entry in history]
    stored = [one for one in _of_channel(channel) if not any(_is_same(one, other) for other in told)]
    return tuple(sorted((*told, *stored), key=lambda one: one.time))


def _of_channel(channel: Sequence[Channel]) -> Iterator[Decision]:
    """Oldest first. A rollback and a refusal are about the version that was taken away, not about the active one.

    A refusal ends a roll before its promotion, as the history's ``RolledBack`` does, or it rejects a candidate that a
    person aborted. A verdict of a measurement writes no record.
    """
    before: Channel | None = None
    for record in channel:
        event, version = _EVENTS[record.reason], record.active
        if record.reason is ChannelReason.ROLLED_BACK and before is not None:
            version = before.active
        elif record.reason is ChannelReason.REFUSED:
            known = set(before.rejected) if before is not None else set[int]()
            version = max((one for one in record.rejected if one not in known), default=record.active)
            if record.message == ABORTED_CANDIDATE:
                event = "Rejected"
        yield _decision(record.created, event, version, record.message, "channel")
        before = record


def _decision(time: datetime, event: str, version: int, message: str, source: str) -> Decision:
    return Decision(utc(time), _KINDS.get(event, DecisionKind.OTHER), event, version, message, source)


def _is_same(one: Decision, other: Decision) -> bool:
    same_kind = one.kind is other.kind or {one.kind, other.kind} == _TAKEN_AWAY
    return same_kind and one.version == other.version and abs(one.time - other.time) <= SAME_DECISION


def served_spans(channel: Sequence[Channel], now: datetime) -> tuple[ServedSpan, ...]:
    """Which version was active when, oldest first. Epochs that change no version are one stretch."""
    changes: list[tuple[int, datetime]] = []
    for record in channel:
        if not changes or changes[-1][0] != record.active:
            changes.append((record.active, utc(record.created)))
    ends = [*(start for _, start in changes[1:]), now] if changes else []
    return tuple(
        ServedSpan(version, start, max(start, end)) for (version, start), end in zip(changes, ends, strict=True)
    )


def activations(channel: Sequence[Channel]) -> Iterator[tuple[int, datetime]]:
    """Version and time of each change of the active version after the first record."""
    for before, record in pairwise(channel):
        if record.active != before.active:
            yield record.active, record.created
