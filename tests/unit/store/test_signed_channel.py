"""A pod of a speculator that lost its root starts with the newest record that its own operator signed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_protocol.errors import UnsignedRecord
from aurora_protocol.signatures import all_keys
from aurora_store import Keys, Registry
from aurora_store.keys import first_owner
from aurora_store.records.draft_store import MAX_UNSIGNED_TRIED
from tests.unit.training import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OTHER = RootOwner(id="0ther000", namespace="n", name="other", since=NOW)
THIRD = RootOwner(id="3rd00000", namespace="n", name="third", since=NOW)
KEYS = {name: all_keys(name.encode()) for name in ("first", OTHER.name, THIRD.name)}


class CountedObjects(tiny.MemoryObjects):
    """Objects in a dictionary that count how often one is read."""

    reads = 0

    def get(self, key: str, *arguments: object, **options: object) -> bytes:
        self.reads += 1
        return super().get(key, *arguments, **options)  # type: ignore[arg-type]


@pytest.fixture
def objects() -> CountedObjects:
    return CountedObjects()


def write(objects: CountedObjects, owners: Sequence[RootOwner | None]) -> None:
    """A record of the channel for each owner, each signed with the keys of its owner."""
    former: list[str] = []
    for number, owner in enumerate(owners):
        if number and owner != (before := owners[number - 1]):
            former.append(before.id if before is not None else first_owner(objects.config.root))
        record = Channel(
            epoch=number + 1,
            lineage=1,
            active=number,
            reason=ChannelReason.PROMOTED,
            created=NOW,
            owner=owner,
            former_owners=tuple(former),
        )
        Registry(objects, KEYS[owner.name if owner else "first"]).advance_channel(record)


@pytest.mark.parametrize("foreign", [1, MAX_UNSIGNED_TRIED, 5 * MAX_UNSIGNED_TRIED, 50 * MAX_UNSIGNED_TRIED])
def test_a_pod_of_a_former_owner_finds_the_version_before_the_takeover(objects: CountedObjects, foreign: int) -> None:
    write(objects, [None, None, None, *[OTHER] * foreign])
    found = Registry(objects, KEYS["first"]).signed_channel()
    assert found is not None
    assert found.epoch == 3
    assert objects.reads <= 2 * MAX_UNSIGNED_TRIED, "the search is bounded"


def test_an_owner_between_two_others_finds_its_own_version(objects: CountedObjects) -> None:
    write(objects, [None, None, OTHER, OTHER, *[THIRD] * (2 * MAX_UNSIGNED_TRIED)])
    objects.owner = OTHER.id
    found = Registry(objects, KEYS[OTHER.name]).signed_channel()
    assert found is not None
    assert found.epoch == 4


def test_a_root_in_which_nothing_is_signed_names_the_newest_record(objects: CountedObjects) -> None:
    count = 2 * MAX_UNSIGNED_TRIED
    write(objects, [None] * count)
    with pytest.raises(UnsignedRecord, match=Keys.channel(count)):
        Registry(objects, KEYS[OTHER.name]).signed_channel()
    assert objects.reads <= MAX_UNSIGNED_TRIED + count.bit_length(), "without a takeover, no record is tried twice"
    write_after_takeover = [OTHER] * count
    objects.data.clear()
    write(objects, [None, *write_after_takeover])
    with pytest.raises(UnsignedRecord, match=Keys.channel(count + 1)):
        Registry(objects, KEYS[THIRD.name]).signed_channel()
