"""A root has one owner at a time, and a speculator that lost a root never gets it back."""

from __future__ import annotations

from datetime import UTC, datetime

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_store.root_ownership import current_owner, lost, write_refusal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = "aurora/team/chat-11111111"
FIRST, SECOND, THIRD = "11111111", "22222222", "33333333"


def channel(owner: str | None = None, *former: str, reason: ChannelReason = ChannelReason.INITIAL) -> Channel:
    holder = None if owner is None else RootOwner(id=owner, namespace="team", name="new", since=NOW)
    return Channel(
        epoch=4,
        lineage=1,
        active=2,
        reason=reason,
        owner=holder,
        former_owners=former,
        created=NOW,
    )


def test_a_root_belongs_to_the_speculator_that_it_is_named_after() -> None:
    for known in (None, channel()):
        assert current_owner(known, ROOT) == FIRST
        assert write_refusal(known, ROOT, FIRST) == ""
        assert not lost(known, ROOT, FIRST)


def test_after_a_takeover_only_the_new_owner_writes_and_the_refusal_names_it() -> None:
    taken = channel(SECOND, FIRST)
    assert write_refusal(taken, ROOT, SECOND) == ""
    assert lost(taken, ROOT, FIRST)
    assert "AuroraSpeculator team/new (uid 22222222…)" in write_refusal(taken, ROOT, FIRST)


def test_of_two_speculators_that_restore_a_root_the_first_never_takes_it_back() -> None:
    twice = channel(THIRD, FIRST, SECOND)
    assert lost(twice, ROOT, FIRST)
    assert lost(twice, ROOT, SECOND)
    assert not lost(twice, ROOT, THIRD)


def test_a_speculator_whose_operator_has_not_taken_the_root_over_yet_waits() -> None:
    for known in (None, channel()):
        assert not lost(known, ROOT, SECOND)
        assert "has not taken the root" in write_refusal(known, ROOT, SECOND)


def test_nobody_writes_below_a_root_that_is_being_deleted() -> None:
    closed = channel(reason=ChannelReason.DELETING)
    assert "is being deleted" in write_refusal(closed, ROOT, FIRST)
    assert "is being deleted" in write_refusal(closed, ROOT, SECOND)
