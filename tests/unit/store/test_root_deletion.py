"""Objects that somebody else put into the channel decide nothing about the deletion of a root."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_store import Keys
from aurora_store.errors import StoreError
from aurora_store.keys import first_owner
from aurora_store.root import root_deletion
from aurora_store.root.root_deletion import RootDeletion
from tests.unit.training import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class DeletedObjects(tiny.MemoryObjects):
    """Objects in a dictionary that are deleted in batches."""

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)


def channel(epoch: int, owner: RootOwner | None = None) -> Channel:
    return Channel(epoch=epoch, lineage=1, active=0, reason=ChannelReason.PROMOTED, created=NOW, owner=owner)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> DeletedObjects:
    """A root with three records of the channel and ten other objects, of which a step deletes two."""
    monkeypatch.setattr(root_deletion, "OBJECTS_PER_REQUEST", 2)
    objects = DeletedObjects()
    for epoch in (1, 2, 3):
        objects.put(Keys.channel(epoch), channel(epoch).to_json())
    for number in range(10):
        objects.put(f"traces/{number}", b"1")
    return objects


def delete(objects: DeletedObjects) -> list[set[str]]:
    """Delete the root, each step by a new process. Returns which records of the channel each step left."""
    left = []
    for _ in range(30):
        progress = RootDeletion(objects, first_owner(objects.config.root)).step(0)
        assert not progress.kept
        left.append({key for key in objects.data if key.startswith(Keys.CHANNEL)})
        if progress.done:
            return left
    raise AssertionError("the deletion does not end")


OTHER = RootOwner(id="0ther000", namespace="n", name="other", since=NOW)
FOREIGN = {
    "a copy with the last number": {"99999999.json": channel(3).to_json()},
    "a copy out of sequence": {"00005000.json": channel(3).to_json()},
    "another owner out of sequence": {"99999998.json": channel(99_999_998, OTHER).to_json()},
    "a foreign name": {"notes.json": b"hello", "zzz": b"hello"},
    "a folder": {"sub/00000004.json": channel(4, OTHER).to_json()},
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_object_in_the_channel_stops_no_deletion(objects: DeletedObjects, foreign: dict[str, bytes]) -> None:
    for name, data in foreign.items():
        objects.put(Keys.CHANNEL + name, data)
    *before, last = delete(objects)
    assert last == set()
    assert all(Keys.channel(4) in left for left in before), "the record that closed the root goes last"
    assert objects.data == {}


@pytest.mark.parametrize("data", [b"hello", channel(3).to_json()])
def test_a_next_record_that_tells_nothing_is_named(objects: DeletedObjects, data: bytes) -> None:
    objects.put(Keys.channel(4), data)
    with pytest.raises(StoreError, match=f"{Keys.channel(4)}.*; delete it, and find out who wrote it"):
        delete(objects)
    assert len(objects.data) == 14
    objects.delete(Keys.channel(4))
    assert delete(objects)[-1] == set()
