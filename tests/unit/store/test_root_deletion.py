"""What a deletion of a root makes of foreign objects, of refusals, and of a store without the expected records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_store import Keys
from aurora_store.errors import AccessRefused, StoreError
from aurora_store.keys import first_owner
from aurora_store.objects import ObjectInfo
from aurora_store.root import deletion_pass
from aurora_store.root.deletable_objects import DeletableObjects, ObjectVersion, Page, UnfinishedUpload
from aurora_store.root.root_deletion import DeletionProgress, RootDeletion
from aurora_store.s3_calls.batch_deletion import RefusedDeletions
from tests.unit.training import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class DeletedObjects(tiny.MemoryObjects, DeletableObjects):
    """Objects in a dictionary that are deleted in batches, and some refused."""

    refused: str = "none"
    """Begin of the keys that the store refuses to delete."""

    def delete_batch(self, items: Sequence[ObjectInfo | ObjectVersion]) -> RefusedDeletions | None:
        refused = [place for place, item in enumerate(items) if item.key.startswith(self.refused)]
        for place, item in enumerate(items):
            if place not in refused:
                self.delete(item.key)
        return RefusedDeletions(len(refused), frozenset(refused), refused[0], "AccessDenied") if refused else None

    def version_pages(self, prefix: str) -> Iterator[Page[ObjectVersion]]:
        versions = [ObjectVersion(item.key, item.size_bytes, "null") for item in self.list_objects(prefix)]
        yield Page(versions, is_last=True)

    def list_uploads(self) -> Iterator[UnfinishedUpload]:
        return iter(())


def channel(epoch: int, owner: RootOwner | None = None) -> Channel:
    return Channel(epoch=epoch, lineage=1, active=0, reason=ChannelReason.PROMOTED, created=NOW, owner=owner)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> DeletedObjects:
    """A root with three records of the channel and ten other objects, of which a step deletes two."""
    monkeypatch.setattr(deletion_pass, "OBJECTS_PER_REQUEST", 2)
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


def steps(deletion: RootDeletion, *, expects_records: bool = False) -> DeletionProgress:
    """Step until the deletion ends or waits for its caller. Each step has time for one batch."""
    for _ in range(40):
        progress = deletion.step(0, expects_records=expects_records)
        if progress.done or progress.kept or progress.no_records or progress.only_record_left:
            return progress
    raise AssertionError("the deletion does not end")


def deletion_of(objects: DeletableObjects) -> RootDeletion:
    return RootDeletion(objects, first_owner(objects.config.root))


def test_objects_behind_refused_ones_are_deleted_and_counted(objects: DeletedObjects) -> None:
    for number in range(9):
        objects.put(f"evidence/{number}", b"1")
    objects.refused = "evidence/"
    deletion = deletion_of(objects)
    with pytest.raises(AccessRefused, match=r"^delete evidence/0: .*\(9 objects were refused\)$"):
        steps(deletion)
    assert [key for key in objects.data if not key.startswith("evidence/")] == [Keys.channel(4)]
    with pytest.raises(AccessRefused):
        steps(deletion)
    objects.refused = "none"
    progress = steps(deletion)
    assert (progress.objects, objects.data) == (10 + 9 + 4, {})


@pytest.mark.parametrize("leftover", [{}, {"traces/9": b"1"}], ids=["empty", "pods wrote"])
def test_a_root_without_the_expected_records_proves_nothing(
    objects: DeletedObjects, leftover: dict[str, bytes]
) -> None:
    objects.data = {}
    for key, data in leftover.items():
        objects.put(key, data)
    progress = steps(deletion_of(objects), expects_records=True)
    assert (progress.no_records, progress.done) == (True, False)
    assert objects.data == {}


def test_a_restored_root_without_records_proves_nothing_and_stays(objects: DeletedObjects) -> None:
    objects.data = {}
    objects.put("traces/9", b"1")
    assert steps(RootDeletion(objects, OTHER.id), expects_records=True).no_records
    assert list(objects.data) == ["traces/9"]


def test_the_last_record_stays_until_no_records_are_expected(objects: DeletedObjects) -> None:
    deletion = deletion_of(objects)
    assert steps(deletion, expects_records=True).only_record_left
    assert list(objects.data) == [Keys.channel(4)]
    assert steps(deletion).done
    assert steps(deletion_of(objects)).done, "another operator, before the finalizer was removed"


def test_what_a_pod_writes_during_the_deletion_is_deleted_too(
    objects: DeletedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_late() -> Iterator[UnfinishedUpload]:
        if "traces/0" not in objects.data and not late:
            late.append("traces/0")
            objects.put("traces/0", b"1")
        return iter(())

    late: list[str] = []
    monkeypatch.setattr(objects, "list_uploads", written_late)
    assert steps(deletion_of(objects)).done
    assert (late, objects.data) == (["traces/0"], {})


def test_versions_without_an_object_are_kept_if_the_root_had_another_owner(objects: DeletedObjects) -> None:
    """An owner that deleted by accident what its bucket still keeps."""
    objects.data = {}
    deleted: list[object] = []
    objects.list_versions = lambda prefix: iter([ObjectVersion("traces/0", 1, "v1")])  # type: ignore[method-assign]
    objects.delete_batch = deleted.append  # type: ignore[method-assign,assignment]
    progress = RootDeletion(objects, OTHER.id).step(0)
    assert progress.done
    assert "older versions are stored there, and no record is left that names their owner" in progress.remains
    assert deleted == []
