"""A root of a real S3 is deleted whole, and nothing else, whatever comes between."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_protocol.draft_records import RootOwner
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import FencedObjectStore, Keys, ObjectStore
from aurora_store.errors import NotRootOwner, StoreError
from aurora_store.keys import owner_id
from aurora_store.root_deletion import DeletionProgress, RootDeletion
from aurora_store.root_ownership import write_refusal
from tests.assets.s3 import S3
from tests.integration.operator.recovery_rig import NEW, OLD, Speculator, keys_of, root, s3
from tests.unit.operator.worlds import channel, root_owner
from tests.unit.training import tiny

__all__ = ["root", "s3"]


class KilledError(Exception):
    """The operator is killed at this call."""


class KilledDeletion(RootDeletion):
    """Ends with :class:`KilledError` before a write or delete, once ``writes_left`` of them were made."""

    writes_left = 1

    def create(self, key: str, data: bytes) -> None:
        self._count()
        super().create(key, data)

    def _request_deletion(self, objects: Any) -> Any:
        self._count()
        return super()._request_deletion(objects[:2])  # a page of a listing has all objects of these tests

    def _count(self) -> None:
        if self.writes_left == 0:
            raise KilledError
        self.writes_left -= 1


def finish(deletion: RootDeletion) -> DeletionProgress:
    for _ in range(40):
        progress = deletion.step(0)
        if progress.done:
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
    assert progress.deleted == count + 1, "and the record that closed the root"
    assert list(old.pods.list("")) == []
    for store in near:
        assert list(store.list("")) == ["traces/x"]
    assert finish(old.deletion).done, "again, with nothing left"


def test_a_deletion_goes_on_after_a_kill_at_any_write(s3: S3, root: str) -> None:
    config, kills = s3.config(root=root), 0
    while kills < 40:
        try:
            progress = finish(KilledDeletion(config, owner_id(OLD.uid)))
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
        finish(KilledDeletion(s3.config(root=root), owner_id(OLD.uid)))
    old.later()
    with pytest.raises(NotRootOwner, match="is being deleted"):
        tiny.put_shard(old.registry, 0, [tiny.trace(0)])
    assert finish(old.deletion).done
    with pytest.raises(NotRootOwner, match="was deleted"):
        tiny.put_shard(old.registry, 0, [tiny.trace(0)])
    assert list(old.pods.list("")) == []


def test_an_agent_that_restarts_on_a_cut_off_node_writes_nothing_below_a_deleted_root(s3: S3, root: str) -> None:
    old = Speculator(s3, OLD, root)
    config = replace(s3.config(root=root), owner=owner_id(OLD.uid))
    agent = FencedObjectStore(config, expects_channel=True)
    agent.put("traces/0", b"1")
    assert finish(old.deletion).done
    restarted = FencedObjectStore(config, expects_channel=True)
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
    old.look()

    class Overtaken(RootDeletion):
        """Another speculator takes the root over right before this one closes the root."""

        def create(self, key: str, data: bytes) -> None:
            if write_refusal(new.registry.channel(), root, owner_id(NEW.uid)):
                new.look()
            super().create(key, data)

    overtaken = Overtaken(s3.config(root=root), owner_id(OLD.uid))
    with pytest.raises(StoreError, match="another writer took the next epoch"):
        finish(overtaken)
    progress = finish(overtaken)
    assert "AuroraSpeculator green/chat" in progress.kept
    assert new.storage_reason() == "Ready"
    assert old.storage_reason() == "TakenOver"


def test_a_root_inside_this_one_and_traces_without_a_channel_are_kept(s3: S3, root: str) -> None:
    """Somebody placed a root there with ``store.prefix``. Who owned the traces is not known."""
    inside = ObjectStore(s3.config(root=f"{root}/team/chat"))
    inside.put("traces/x", b"1")
    assert finish(Speculator(s3, OLD, root).deletion).done
    assert list(inside.list("")) == ["traces/x"]
    left = ObjectStore(s3.config(root=root))
    left.put("checkpoints/00000000-0/x", b"1")
    left.put("traces/y", b"1")
    assert "no channel record" in finish(Speculator(s3, NEW, root).deletion).kept
    left.delete("traces/y")
    assert not finish(Speculator(s3, NEW, root).deletion).kept, "of a speculator that never started"
    assert next(left.list("checkpoints/"), None) is None


def test_a_shared_prefix_is_never_deleted(s3: S3) -> None:
    for shared in ("", "/", "aurora", "aurora/"):
        with pytest.raises(StoreError, match="is not the root of a speculator"):
            RootDeletion(s3.config(root=shared), "01d00000")


def versions(objects: ObjectStore, *, markers: bool = False) -> set[str]:
    """The keys of the stored versions below a root."""
    prefix = f"{objects.config.root}/"
    page: Any = objects._s3.list_object_versions(Bucket=objects.config.bucket, Prefix=prefix)
    return {item["Key"].removeprefix(prefix) for item in page.get("DeleteMarkers" if markers else "Versions", ())}


def bucket_that_keeps(s3: S3, bucket: str, root: str, *, locks: bool = False) -> ObjectStore:
    """A bucket with versioning, and a root in it with older versions, delete markers and an unfinished upload."""
    objects = ObjectStore(s3.config(bucket=bucket, root=root))
    objects._s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locks)
    objects._s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for text in (b"a", b"bb"):
        for number in range(3):
            objects.put(f"traces/{number}", text)
    objects.delete("traces/1")
    upload = objects._s3.create_multipart_upload(Bucket=bucket, Key=f"{root}/traces/big")
    part: Any = {"UploadId": upload["UploadId"], "PartNumber": 1, "Body": b"x" * (5 << 20)}
    objects._s3.upload_part(Bucket=bucket, Key=f"{root}/traces/big", **part)
    registry = PodRegistry(objects, keys_of(OLD))
    registry.advance_channel(channel(0, owner=root_owner(OLD)))
    registry.advance_channel(channel(1, epoch=2, previous=0, owner=root_owner(OLD)))
    return objects


def test_a_bucket_with_versioning_keeps_no_version_and_no_unfinished_upload(s3: S3, root: str) -> None:
    objects = bucket_that_keeps(s3, "versioned", root)
    near = ObjectStore(s3.config(bucket="versioned", root=f"{root}-2"))
    near.put("traces/x", b"1")
    near.delete("traces/x")
    progress = finish(RootDeletion(objects.config, owner_id(OLD.uid)))
    # Objects; two versions of each trace and two markers, one of each record, and the markers of this deletion.
    assert (progress.deleted, progress.remains) == (2 + 3 + 6 + 1 + 3 + 5, "")
    assert versions(objects) | versions(objects, markers=True) == set()
    uploads: Any = objects._s3.list_multipart_uploads(Bucket="versioned", Prefix=f"{root}/")
    assert not uploads.get("Uploads")
    assert versions(near) | versions(near, markers=True) == {"traces/x"}, "another root keeps its versions"


def test_a_version_that_is_locked_is_told_and_not_waited_for(s3: S3, root: str) -> None:
    objects = bucket_that_keeps(s3, "locked", root, locks=True)
    objects.put("evidence/1", b"1")
    retention: Any = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(hours=1)}
    objects._s3.put_object_retention(**objects._target("evidence/1"), Retention=retention)
    for _ in range(2):  # another operator finds the same
        progress = finish(RootDeletion(objects.config, owner_id(OLD.uid)))
        assert "the store refused to delete older versions" in progress.remains
        assert "evidence/1" in progress.remains
        assert versions(objects) == {"evidence/1"}
        assert list(objects.list("")) == [], "its delete marker hides it"


def test_an_object_that_is_refused_protects_no_other_and_is_named(
    s3: S3, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RootDeletion._request_deletion

    def refusing(deletion: RootDeletion, objects: Any) -> Any:
        refused = [item for item in objects if "/registry/" in item["Key"]]
        request(deletion, [item for item in objects if item not in refused])
        return [{**item, "Code": "AccessDenied"} for item in refused]

    old = Speculator(s3, OLD, root)
    monkeypatch.setattr(RootDeletion, "_request_deletion", refusing)
    with pytest.raises(StoreError, match=r"delete registry/00000000\.json: AccessDenied"):
        finish(old.deletion)
    left = {key.split("/")[0] for key in old.pods.list("")}
    assert left == {"registry", "channel"}, "the channel goes last"
    monkeypatch.undo()
    assert finish(old.deletion).done


@pytest.mark.parametrize("name", ["99999999.json", "00005000.json", "notes.json", "zzz", "sub/00000004.json"])
def test_a_foreign_object_in_the_channel_decides_nothing_and_is_deleted(s3: S3, root: str, name: str) -> None:
    old = Speculator(s3, OLD, root)
    thief = RootOwner(id="0ther000", namespace="n", name="other", since=datetime.now(UTC))
    objects = ObjectStore(s3.config(root=root))
    objects.put(Keys.CHANNEL + name, channel(0, epoch=3, owner=thief).to_json())
    assert not finish(old.deletion).kept
    assert list(objects.list("")) == []


def test_a_next_record_that_tells_nothing_keeps_the_root_until_it_is_removed(s3: S3, root: str) -> None:
    old, objects = Speculator(s3, OLD, root), ObjectStore(s3.config(root=root))
    objects.put(Keys.channel(3), b"hello")
    with pytest.raises(StoreError, match=f"{Keys.channel(3)}.*; delete it"):
        finish(old.deletion)
    objects.delete(Keys.channel(3))
    assert finish(old.deletion).done
