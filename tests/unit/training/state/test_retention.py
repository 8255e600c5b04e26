"""The store stays bounded, and a kill at any moment loses no object that is needed or named."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import pytest

from aurora_runtime.pod_registry import ShardListing
from aurora_runtime.training.state import retention as module
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.state.retention import ABANDONED_UPLOAD_SECONDS, RetentionLimits
from aurora_store.errors import StoreError
from tests.unit.training.state.retention_rig import ROOM_FOR_SIX, SHARD, RetentionRig


def test_the_oldest_consumed_shards_are_deleted_and_the_newest_stay() -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    for _ in range(20):
        rig.turn(1)
        rig.assert_sound()
    assert rig.stored_shards() == rig.written[-len(rig.stored_shards()) :]
    assert 6 <= len(rig.stored_shards()) <= 9, "the bound, and shards that wait for two saves"
    assert rig.trained == rig.written, "each shard was trained once"
    assert rig.ledger.total == 20
    assert len(rig.ledger.consumed) <= 7


def test_a_consumed_shard_is_deleted_only_when_every_stored_state_lists_it_as_retired() -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    rig.turn(4)
    rig.put(3)
    rig.consume_pending()
    assert rig.ledger.retired == (rig.written[0],)
    assert rig.retention.delete_some() == 0
    rig.save()
    assert rig.retention.delete_some() == 0, "the former state still lists the shard as consumed"
    rig.save()
    assert rig.retention.delete_some() == 1
    assert rig.written[0] not in rig.stored_shards()
    rig.save()
    record = rig.registry.trainer_state_record()
    assert record is not None
    assert (record.retired, record.forgotten, rig.ledger.total) == ((), 1, 7)


def test_a_kill_at_any_write_loses_no_shard_and_trains_none_twice() -> None:
    def run_turns(kill: int | None) -> int:
        """Five turns with a kill at the n-th write; returns the number of writes."""
        rig = RetentionRig(ROOM_FOR_SIX)
        rig.turn(4)
        rig.turn(4)
        before = rig.objects.changes
        rig.objects.fail_at = kill
        for _ in range(5):
            try:
                rig.consume_pending()
                rig.save()
                rig.retention.delete_some()
            except KeyboardInterrupt:
                rig.objects.fail_at = None
                rig.assert_sound()
                rig.restart()
            rig.assert_sound()
        changes = rig.objects.changes - before
        rig.objects.fail_at = None
        for _ in range(3):
            rig.turn(1)
            rig.assert_sound()
        assert sorted(rig.trained) == sorted(set(rig.trained))
        assert set(rig.stored_shards()) <= set(rig.written[-9:])
        assert rig.ledger.total == len(rig.written)
        return changes

    changes = run_turns(None)
    assert changes > 10
    for kill in range(changes):
        run_turns(kill)


def test_a_backlog_without_room_is_deleted_untrained_and_counted() -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    rig.turn(4)
    rig.put(12)
    pending = rig.retention.shards_to_train()
    assert pending == rig.written[-4:], "the newest shards"
    assert rig.retention.skipped == 8
    assert rig.retention.shards_to_train() == pending
    assert rig.retention.skipped == 8, "counted once"
    assert rig.retention.delete_some() == 8
    assert len(rig.stored_shards()) == 8
    assert set(rig.ledger.consumed) == set(rig.written[2:4]), "shards reserved for replay stay"
    assert rig.ledger.total == 4, "untrained shards do not count as consumed"
    rig.assert_sound()


def test_the_number_of_shards_is_bounded() -> None:
    rig = RetentionRig(replace(ROOM_FOR_SIX, total_bytes=100 * SHARD, shards=10))
    for _ in range(20):
        rig.turn(1)
    assert len(rig.ledger.consumed) <= 10
    assert len(rig.stored_shards()) <= 13


def test_the_shard_limit_is_at_least_one_per_mebibyte() -> None:
    assert RetentionLimits.of(64 << 30, 1 << 30).shards == 65536
    assert RetentionLimits.of(2 << 30, 1 << 30).shards == 4096


def test_long_listings_are_repeated_less_often() -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    real = rig.registry.list_shards

    def slow(lineage: int) -> ShardListing:
        rig.now += 3.0
        return real(lineage)

    rig.registry.list_shards = slow  # type: ignore[method-assign]
    rig.put(1)
    rig.consume_pending()
    rig.put(1)
    rig.now += 59
    assert rig.retention.shards_to_train() == [], "the consumed shard is not offered again"
    rig.now += 1
    assert rig.retention.shards_to_train() == rig.written[1:]


def test_shards_are_deleted_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELETIONS_PER_CALL", 3)
    rig = RetentionRig(ROOM_FOR_SIX)
    rig.put(12)
    rig.retention.shards_to_train()
    assert [rig.retention.delete_some() for _ in range(4)] == [3, 3, 2, 0]


def test_a_stopping_trainer_deletes_no_more_shards_or_orphans() -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    rig.put(12)
    rig.retention.shards_to_train()
    stopping = iter([False, False])
    assert rig.retention.delete_some(lambda: next(stopping, True)) == 2
    assert len(rig.stored_shards()) == 10
    for name in "ab":
        rig.objects.put(f"checkpoints/00000007-{name}/model.safetensors", b"half")
    assert OrphanCleanup(rig.registry, grace_seconds=0).delete_due(lambda: True) == 0


def test_a_shard_that_cannot_be_deleted_does_not_block_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    rig.put(12)
    rig.retention.shards_to_train()
    real, stuck = rig.objects.delete, rig.written[0]

    def delete(key: str) -> None:
        if key == stuck:
            raise StoreError("AccessDenied")
        real(key)

    monkeypatch.setattr(rig.objects, "delete", delete)
    assert rig.retention.delete_some() == 0
    assert rig.retention.delete_some() == 0, "the pause is not over"
    rig.now += module.RETRY_SECONDS
    assert rig.retention.delete_some() == 7, "all but the undeletable shard"
    monkeypatch.setattr(rig.objects, "delete", real)
    rig.now += module.RETRY_SECONDS
    assert rig.retention.delete_some() == 1
    assert rig.stored_shards() == rig.written[-4:]


def test_an_undeletable_state_does_not_delay_saves_and_keeps_its_shards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    for _ in range(4):
        rig.turn(1)
    real = rig.objects.delete

    def refuse(key: str) -> NoReturn:
        raise StoreError(f"delete {key}: AccessDenied")

    monkeypatch.setattr(rig.objects, "delete", refuse)
    for _ in range(6):
        rig.turn(1)
    assert rig.registry.last_trainer_state_epoch() == 10
    assert len(rig.registry.trainer_state_epochs()) == 8
    assert "old trainer states were not deleted" in caplog.text
    monkeypatch.setattr(rig.objects, "delete", real)
    rig.now += module.RETRY_SECONDS
    assert rig.retention.delete_some() == 0, "the state of epoch 3 names every shard"
    rig.turn(1)
    assert rig.registry.trainer_state_epochs() == [10, 11]
    rig.assert_sound()
    rig.now += module.RETRY_SECONDS
    rig.turn(1)
    assert len(rig.stored_shards()) <= 8
    rig.assert_sound()


def test_data_without_a_manifest_are_deleted_after_a_long_time() -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    rig.put(1)
    left, slow = (f"traces/00000001/2026-01-01/05/pod-1-b-{seq:08d}.safetensors" for seq in range(2))
    rig.objects.put(left, b"left by a pod that ended")
    rig.objects.put(slow, b"under way")
    rig.retention.shards_to_train()
    rig.now += ABANDONED_UPLOAD_SECONDS - 1
    rig.objects.put(slow, b"under way")  # its agent retries
    rig.retention.shards_to_train()
    assert rig.retention.delete_some() == 0
    rig.now += 1
    rig.retention.shards_to_train()
    assert rig.retention.delete_some() == 1
    assert left not in rig.objects.data
    assert slow in rig.objects.data
    assert rig.stored_shards() == rig.written


@pytest.mark.parametrize("listed_again", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_an_upload_that_resumes_late_is_kept(listed_again: bool, finished: bool) -> None:
    rig = RetentionRig(ROOM_FOR_SIX)
    rig.put(1)
    (manifest,) = rig.written
    data = manifest.replace(".json", ".safetensors")
    whole = rig.objects.data[manifest]
    rig.objects.delete(manifest)
    rig.retention.shards_to_train()
    rig.now += ABANDONED_UPLOAD_SECONDS
    assert rig.retention.shards_to_train() == []
    rig.objects.put(data, rig.objects.data[data])
    if finished:
        rig.objects.create(manifest, whole)
    if listed_again:
        assert rig.retention.shards_to_train() == rig.written * finished
    rig.retention.delete_some()
    assert data in rig.objects.data
    assert rig.stored_shards() == rig.written * finished
