"""A starting pod takes the newest record of the channel that its own operator signed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_protocol.errors import UnsignedRecord
from aurora_protocol.signatures import KeyName
from aurora_runtime.pod_registry import MAX_UNSIGNED_TRIED, PodRegistry
from aurora_store import Keys
from tests.unit.training import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = RootOwner(id="f1rst000", namespace="n", name="first", since=NOW)
OTHER = RootOwner(id="0ther000", namespace="n", name="other", since=NOW)
KEYS = {name: dict.fromkeys(KeyName, name.encode()) for name in (FIRST.name, OTHER.name)}


class CountedObjects(tiny.MemoryObjects):
    """Objects in a dictionary that count how often one is read."""

    reads = 0

    def get(self, key: str, *arguments: object, **options: object) -> bytes:
        self.reads += 1
        return super().get(key, *arguments, **options)  # type: ignore[arg-type]


@pytest.fixture
def objects() -> CountedObjects:
    return CountedObjects()


def write(objects: CountedObjects, owners: Sequence[RootOwner]) -> None:
    """A record of the channel for each owner, each signed with the keys of its owner."""
    for number, owner in enumerate(owners):
        record = Channel(
            epoch=number + 1,
            lineage=1,
            active=number,
            reason=ChannelReason.PROMOTED,
            created=NOW,
            owner=owner,
        )
        PodRegistry(objects, KEYS[owner.name]).advance_channel(record)


def test_the_newest_record_with_the_own_signature_counts(objects: CountedObjects) -> None:
    write(objects, [FIRST, FIRST, FIRST, *[OTHER] * (MAX_UNSIGNED_TRIED - 1)])
    found = PodRegistry(objects, KEYS[FIRST.name]).signed_channel()
    assert found is not None
    assert found.epoch == 3


def test_a_root_in_which_nothing_is_signed_names_the_newest_record_after_a_bounded_search(
    objects: CountedObjects,
) -> None:
    count = 2 * MAX_UNSIGNED_TRIED
    write(objects, [FIRST] * count)
    with pytest.raises(UnsignedRecord, match=Keys.channel(count)):
        PodRegistry(objects, KEYS[OTHER.name]).signed_channel()
    assert objects.reads == MAX_UNSIGNED_TRIED
