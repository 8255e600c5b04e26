"""A root has one owner at a time, and only the owner writes below it."""

from __future__ import annotations

from datetime import UTC, datetime

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_store.root_ownership import current_owner, write_refusal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = "aurora/team/chat-11111111"
FIRST, SECOND, THIRD = "11111111", "22222222", "33333333"


def channel(owner: str | None = None, reason: ChannelReason = ChannelReason.INITIAL) -> Channel:
    holder = None if owner is None else RootOwner(id=owner, namespace="team", name="new", since=NOW)
    return Channel(epoch=4, lineage=1, active=2, reason=reason, owner=holder, created=NOW)


def test_a_root_belongs_to_the_speculator_that_it_is_named_after() -> None:
    for known in (None, channel()):
        assert current_owner(known, ROOT) == FIRST
        assert write_refusal(known, ROOT, FIRST) == ""
        assert "belongs to the speculator with uid 11111111" in write_refusal(known, ROOT, SECOND)


def test_after_a_takeover_only_the_new_owner_writes_and_the_refusal_names_it() -> None:
    taken = channel(SECOND)
    assert write_refusal(taken, ROOT, SECOND) == ""
    for other in (FIRST, THIRD):
        assert "AuroraSpeculator team/new (uid 22222222…)" in write_refusal(taken, ROOT, other)


def test_nobody_writes_below_a_root_that_is_being_deleted() -> None:
    closed = channel(reason=ChannelReason.DELETING)
    assert "is being deleted" in write_refusal(closed, ROOT, FIRST)
    assert "is being deleted" in write_refusal(closed, ROOT, SECOND)
