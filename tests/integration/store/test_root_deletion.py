"""A root of a real S3 is deleted whole, and nothing else, whatever comes between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_store import FencedObjectStore, Keys, ObjectStore, Registry, StoreConfig
from aurora_store.errors import NotRootOwner, StoreError
from aurora_store.keys import owner_id
from aurora_store.root.deletable_objects import DeletableObjects
from aurora_store.root.root_deletion import DeletionProgress, RootDeletion
from aurora_store.root.root_ownership import write_refusal
from tests.assets.s3 import S3
from tests.integration.operator.recovery_rig import NEW, OLD, Speculator, keys_of, root, s3
from tests.unit.operator.worlds import channel
from tests.unit.training import tiny

__all__ = ["root", "s3"]


class KilledError(Exception):
    """The operator is killed at this call."""


class KilledStore(DeletableObjects):
    """Ends with :class:`KilledError` before a write or delete, once ``writes_left`` of them were made."""

    def __init__(self, config: StoreConfig, writes_left: int) -> None:
        super().__init__(config)
        self.writes_left = writes_left

    def _count(self) -> None:
        if self.writes_left == 0:
            raise KilledError
        self.writes_left -= 1

    def create(self, key: str, data: bytes) -> None:
        self._count()
        super().create(key, data)

    def delete_batch(self, items: Any) -> Any:
        self._count()
        return super().delete_batch(items)


def finish(deletion: RootDeletion, *, expects_records: bool = False) -> DeletionProgress:
    for _ in range(20):
        progress = deletion.step(5.0, expects_records=expects_records)
        if progress.done or progress.kept or progress.only_record_left or progress.no_records:
            return progress
    raise AssertionError("the deletion does not end")


def neighbours(s3: S3, root: str) -> list[ObjectStore]:
    """Roots whose keys begin like those of ``root``, each with an object."""
    stores = [ObjectStore(s3.config(root=name)) for name in (f"{root}-2", f"{root}a", root.rsplit("/", 1)[0] + "/b-1")]
    for store in stores:
        store.put("traces/x", b"1")
    return stores


def test_a_deletion_deletes_every_object_of_its_root_and_no_other(s3: S3, root: str) -> None:
    old = Speculator(s3, OLD, root)
    for seq in range(3):
        tiny.put_shard(old.registry, seq, [tiny.trace(0)])
    near = neighbours(s3, root)
    count = len(list(old.pods.list("")))
    progress = finish(old.deletion)
    assert progress.done
    assert progress.objects == count + 1, "and the record that closed the root"
    assert progress.size_bytes > 0
    assert list(old.pods.list("")) == []
    for store in near:
        assert list(store.list("")) == ["traces/x"]
    assert finish(old.deletion).done, "again, with nothing left"


def test_a_deletion_goes_on_after_a_kill_at_any_write(s3: S3, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_store.root.deletion_pass.OBJECTS_PER_REQUEST", 2)
    config, kills = s3.config(root=root), 0
    while kills < 40:
        try:
            progress = finish(RootDeletion(KilledStore(config, 1), owner_id(OLD.uid)))
        except KilledError:
            kills += 1
            left = list(ObjectStore(config).list(""))
            assert any(key.startswith(Keys.CHANNEL) for key in left), "the root is known to be closed to the end"
            new = Speculator(s3, NEW, root)
            assert new.look().advance is None, "a root that is half deleted is not restored"
        else:
            assert progress.done
            break
    assert 3 < kills < 40
    assert list(ObjectStore(config).list("")) == []


def test_pods_that_still_run_write_nothing_below_a_deleted_root(s3: S3, root: str) -> None:
    old = Speculator(s3, OLD, root)
    old.registry.objects.put("probe/x", b"1")
    with pytest.raises(KilledError):
        finish(RootDeletion(KilledStore(s3.config(root=root), 1), owner_id(OLD.uid)))
    old.later()
    with pytest.raises(NotRootOwner, match="is being deleted"):
        tiny.put_shard(old.registry, 0, [tiny.trace(0)])
    assert finish(old.deletion).done
    with pytest.raises(NotRootOwner, match="was deleted"):
        tiny.put_shard(old.registry, 0, [tiny.trace(0)])
    assert list(old.pods.list("")) == []


def test_an_agent_that_restarts_on_a_cut_off_node_writes_nothing_below_a_deleted_root(s3: S3, root: str) -> None:
    old = Speculator(s3, OLD, root)
    agent = FencedObjectStore(s3.config(root=root), expects_channel=True)
    agent.put("traces/0", b"1")
    assert finish(old.deletion).done
    restarted = FencedObjectStore(s3.config(root=root), expects_channel=True)
    with pytest.raises(NotRootOwner, match="was deleted"):
        restarted.put("traces/1", b"1")
    assert list(old.pods.list("")) == []


def test_a_root_that_was_taken_over_is_not_deleted(s3: S3, root: str) -> None:
    old, new = Speculator(s3, OLD, root), Speculator(s3, NEW, root)
    new.look()
    before = list(new.pods.list(""))
    progress = finish(old.deletion)
    assert "AuroraSpeculator green/chat" in progress.kept
    assert list(new.pods.list("")) == before
    assert finish(new.deletion).done


def test_a_takeover_between_the_look_and_the_closing_record_keeps_the_root(s3: S3, root: str) -> None:
    old, new = Speculator(s3, OLD, root), Speculator(s3, NEW, root)

    class Overtaken(DeletableObjects):
        """Another speculator takes the root over right before this one closes the root."""

        def create(self, key: str, data: bytes) -> None:
            if write_refusal(new.registry.channel(), root, owner_id(NEW.uid)):
                new.look()
            super().create(key, data)

    progress = finish(RootDeletion(Overtaken(s3.config(root=root)), owner_id(OLD.uid)))
    assert "AuroraSpeculator green/chat" in progress.kept
    assert new.storage_reason() == "Ready"
    assert old.storage_reason() == "TakenOver"


def test_a_speculator_that_never_took_its_root_over_deletes_nothing(s3: S3, root: str) -> None:
    new = Speculator(s3, NEW, root)
    before = list(new.pods.list(""))
    assert "uid 01d00000…" in finish(new.deletion).kept
    assert list(new.pods.list("")) == before


def test_a_shared_prefix_is_never_deleted(s3: S3) -> None:
    for shared in ("", "/", "aurora", "aurora/"):
        with pytest.raises(StoreError, match="is not the root of a speculator"):
            RootDeletion(DeletableObjects(s3.config(root=shared)), "01d00000")


@contextmanager
def bucket_that_keeps(s3: S3, bucket: str, root: str, *, locks: bool = False) -> Iterator[DeletableObjects]:
    """A bucket with versioning, and a root in it with older versions, delete markers and an unfinished upload."""
    objects = DeletableObjects(s3.config(bucket=bucket, root=root))
    objects._s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locks)
    objects._s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for text in (b"a", b"bb"):
        for number in range(3):
            objects.put(f"traces/{number}", text)
    objects.delete("traces/1")
    upload = objects._s3.create_multipart_upload(Bucket=bucket, Key=f"{root}/traces/big")
    part = {"UploadId": upload["UploadId"], "PartNumber": 1, "Body": b"x" * (5 << 20)}
    objects._s3.upload_part(Bucket=bucket, Key=f"{root}/traces/big", **part)  # type: ignore[arg-type]
    registry = Registry(objects, keys_of(OLD))
    registry.advance_channel(channel(0))
    registry.advance_channel(channel(1, epoch=2, previous=0))
    yield objects


def test_a_bucket_with_versioning_keeps_no_version_and_no_unfinished_upload(
    s3: S3, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurora_store.root.deletion_pass.OBJECTS_PER_REQUEST", 2)
    monkeypatch.setattr("aurora_store.root.deletable_objects.OBJECTS_PER_REQUEST", 2)
    with bucket_that_keeps(s3, "versioned", root) as objects:
        near = DeletableObjects(s3.config(bucket="versioned", root=f"{root}-2"))
        near.put("traces/x", b"1")
        near.delete("traces/x")
        assert len(list(objects.list_uploads())) == 1
        deletion = RootDeletion(objects, owner_id(OLD.uid))
        while not (progress := deletion.step(0, expects_records=True)).only_record_left:
            assert progress == replace(progress, done=False, no_records=False)
        last = list(objects.list_versions(""))
        assert {version.key for version in last} == {Keys.channel(3)}
        size_bytes = progress.size_bytes + sum(version.size_bytes for version in last)
        progress = finish(deletion)
        assert (progress.objects, progress.remains) == (2 + 3, "")
        # Two versions of each trace and two markers, one of each record, and the markers of this deletion.
        assert progress.versions == 6 + 1 + 3 + 5
        assert progress.size_bytes == size_bytes, "each version counts once, although it was an object first"
        assert list(objects.list_versions("")) == []
        assert list(objects.list_uploads()) == []
        assert len(list(near.list_versions(""))) == 2, "another root keeps its versions"


def lock(objects: DeletableObjects, key: str) -> None:
    retention: Any = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(hours=1)}
    objects._s3.put_object_retention(**objects._target(key), Retention=retention)


@pytest.mark.parametrize("key", ["evidence/1", Keys.channel(3)], ids=["evidence", "last record"])
def test_a_version_that_is_locked_is_told_and_not_waited_for(s3: S3, root: str, key: str) -> None:
    with bucket_that_keeps(s3, f"locked-{len(key)}", root, locks=True) as objects:
        objects.put("evidence/1", b"1")
        deletion = RootDeletion(objects, owner_id(OLD.uid))
        if key == "evidence/1":
            lock(objects, key)
        assert finish(deletion, expects_records=True).only_record_left
        if key != "evidence/1":
            lock(objects, key)
        progress = finish(deletion)
        assert f"refused to delete 1 older versions, the first one of {key} (AccessDenied)" in progress.remains
        assert [version.key for version in objects.list_versions("") if version.size_bytes] == [key]
        assert list(objects.list("")) == [], "its delete marker hides it"
        again = finish(RootDeletion(objects, owner_id(OLD.uid)))
        assert again.remains == progress.remains, "another operator"


def test_a_store_that_never_held_the_root_ends_no_deletion(s3: S3, root: str) -> None:
    """As after a wrong edit of ``store.endpoint``."""
    old = Speculator(s3, OLD, root)
    elsewhere = DeletableObjects(s3.config(bucket="elsewhere", root=root))
    elsewhere.ensure_bucket()
    wrong = RootDeletion(elsewhere, owner_id(OLD.uid))
    assert finish(wrong, expects_records=True).no_records
    elsewhere.put("traces/0", b"1")  # by a pod that started with the wrong settings
    assert finish(wrong, expects_records=True).no_records
    assert list(elsewhere.list("")) == []
    assert finish(old.deletion, expects_records=True).only_record_left
    assert finish(old.deletion).done
