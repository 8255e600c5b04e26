"""The store stays bounded, and a kill at any moment loses no object that is needed or named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import pytest

from aurora_protocol.training_records import TrainerState
from aurora_runtime.traces import encode
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import retention as module
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.state.retention import ABANDONED_UPLOAD_SECONDS, Retention, RetentionLimits
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_store import Keys
from aurora_store.errors import StoreError
from aurora_store.shard_store import ShardListing
from tests.assets.trainer_output import put_trainer_state
from tests.unit.training import tiny

SHARD = len(encode([tiny.trace(0)]))


class Scene:
    """A trainer without training: it lists, consumes, saves and deletes in the order of the real one."""

    TRACE = tiny.trace(0)

    def __init__(self, limits: RetentionLimits, *, suspended: bool = False) -> None:
        self.registry, self.objects = tiny.memory_registry()
        self.limits, self.suspended = limits, suspended
        self.now = 0.0
        self.written: list[str] = []
        self.read: list[str] = []
        self.start()

    def start(self) -> None:
        """A trainer that resumes from the store."""
        state = self.registry.trainer_state_record()
        self.epoch = self.registry.last_trainer_state_epoch()
        self.ledger = ShardLedger(self.registry, 1, Retrier(), state, clock=lambda: self.now)
        self.retention = Retention(
            self.registry, self.ledger, self.limits, suspended=self.suspended, clock=lambda: self.now
        )
        self.read = [key for key in self.written if key in self.ledger.consumed or key in self.ledger.retired]

    def put(self, count: int) -> None:
        for _ in range(count):
            self.written.append(tiny.put_shard(self.registry, len(self.written), [self.TRACE]))

    def learn(self) -> None:
        for key in self.retention.pending():
            self.read.append(key)
            self.ledger.consume(key)

    def save(self) -> None:
        ledger = self.ledger
        record = put_trainer_state(
            self.registry,
            consumed=ledger.consumed,
            retired=ledger.retired,
            forgotten=ledger.forgotten,
            epoch=self.epoch + 1,
        )
        self.retention.state_saved(record)
        self.epoch += 1

    def turn(self, new: int = 0) -> None:
        self.put(new)
        self.learn()
        self.save()
        self.retention.delete_some()

    def there(self) -> list[str]:
        return list(self.registry.shard_keys(1))

    def is_sound(self) -> None:
        """Checks promise 4, and that every consumed shard exists."""
        keys = set(self.objects.data)
        states = [
            TrainerState.from_json(self.objects.data[k]) for k in sorted(keys) if k.startswith(Keys.TRAINER_STATE)
            and k.endswith(".json")
        ]  # fmt: skip
        for state in states:
            assert set(state.consumed) <= keys
            assert len(state.consumed) + len(state.retired) + state.forgotten <= len(self.written)
        explained = set(states[-1].retired) if states else set()
        for key in keys:
            if key.startswith(Keys.TRACES):
                manifest, data = (f"{key.rsplit('.', 1)[0]}{end}" for end in (".json", ".safetensors"))
                assert data in keys, "a manifest names missing data"
                assert manifest in keys or manifest in explained, "no manifest or state names this"


ROOMY = RetentionLimits(total_bytes=6 * SHARD, replay_bytes=2 * SHARD, shards=100)


def test_the_oldest_consumed_shards_are_deleted_and_the_newest_stay() -> None:
    scene = Scene(ROOMY)
    for _ in range(20):
        scene.turn(1)
        scene.is_sound()
    assert scene.there() == scene.written[-len(scene.there()) :]
    assert 6 <= len(scene.there()) <= 9, "the bound, and shards that wait for two saves"
    assert scene.read == scene.written, "each shard was trained once"
    assert scene.ledger.total == 20
    assert len(scene.ledger.consumed) <= 7


def test_no_shard_is_retired_while_there_is_room() -> None:
    scene = Scene(ROOMY)
    for _ in range(6):
        scene.turn(1)
    assert scene.there() == scene.written
    assert scene.ledger.retired == ()


def test_a_consumed_shard_is_deleted_only_when_every_stored_state_lists_it_as_retired() -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.put(3)
    scene.learn()
    assert scene.ledger.retired == (scene.written[0],)
    assert scene.retention.delete_some() == 0
    scene.save()
    assert scene.retention.delete_some() == 0, "the former state still lists the shard as consumed"
    scene.save()
    assert scene.retention.delete_some() == 1
    assert scene.written[0] not in scene.there()
    scene.save()
    record = scene.registry.trainer_state_record()
    assert record is not None
    assert (record.retired, record.forgotten, scene.ledger.total) == ((), 1, 7)


def test_a_kill_at_any_write_loses_no_shard_and_trains_none_twice() -> None:
    def play(kill: int | None) -> int:
        """Five turns with a kill at the n-th write; returns the number of writes."""
        scene = Scene(ROOMY)
        scene.turn(4)
        scene.turn(4)
        changes = 0
        real: Callable[[], None] = scene.objects._fail

        def count() -> None:
            nonlocal changes
            changes += 1
            real()

        scene.objects._fail = count  # type: ignore[method-assign]
        scene.objects.fail_at = kill
        for _ in range(5):
            try:
                scene.learn()
                scene.save()
                scene.retention.delete_some()
            except KeyboardInterrupt:
                scene.objects.fail_at = None
                scene.is_sound()
                scene.start()
            scene.is_sound()
        scene.objects.fail_at = None
        for _ in range(3):
            scene.turn(1)
            scene.is_sound()
        assert sorted(scene.read) == sorted(set(scene.read))
        assert set(scene.there()) <= set(scene.written[-9:])
        assert scene.ledger.total == len(scene.written)
        return changes

    changes = play(None)
    assert changes > 10
    for kill in range(changes):
        play(kill)


def test_a_backlog_without_room_is_deleted_untrained_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.put(12)
    pending = scene.retention.pending()
    assert pending == scene.written[-4:], "the newest shards"
    assert scene.retention.skipped == 8
    assert "8 shards are deleted untrained" in caplog.text
    assert scene.retention.pending() == pending
    assert scene.retention.skipped == 8, "counted once"
    assert scene.retention.delete_some() == 8
    assert len(scene.there()) == 8
    assert set(scene.ledger.consumed) == set(scene.written[2:4]), "shards reserved for replay stay"
    assert scene.ledger.total == 4, "untrained shards do not count as consumed"
    scene.is_sound()


def test_traces_are_bounded_while_training_is_suspended() -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.suspended = True
    scene.start()
    for _ in range(10):
        scene.put(1)
        scene.retention.pending()
        scene.retention.delete_some()
        scene.is_sound()
    assert set(scene.there()) == {*scene.written[:4], *scene.written[-2:]}, "no state is saved, so consumed shards stay"
    scene.suspended = False
    scene.start()
    assert scene.retention.pending() == scene.written[-2:]


def test_the_number_of_shards_is_bounded() -> None:
    scene = Scene(replace(ROOMY, total_bytes=100 * SHARD, shards=10))
    for _ in range(20):
        scene.turn(1)
    assert len(scene.ledger.consumed) <= 10
    assert len(scene.there()) <= 13


def test_the_shard_limit_is_at_least_one_per_mebibyte() -> None:
    assert RetentionLimits.of(64 << 30, 1 << 30).shards == 65536
    assert RetentionLimits.of(2 << 30, 1 << 30).shards == 4096


def test_the_warning_names_the_limit_that_was_exceeded(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(RetentionLimits(total_bytes=100 << 30, replay_bytes=0, shards=8))
    scene.put(6)
    scene.retention.pending()
    assert "traceStorageLimit allows 8 shards" in caplog.text
    scene.limits = RetentionLimits(total_bytes=3 << 29, replay_bytes=0, shards=100)
    scene.start()
    scene.ledger.size = lambda key: 1 << 30  # type: ignore[method-assign]
    scene.retention.pending()
    assert "traceStorageLimit allows 1.5 GiB" in caplog.text


def test_a_suspended_trainer_without_consumed_shards_keeps_as_many_as_allowed() -> None:
    scene = Scene(replace(ROOMY, total_bytes=100 * SHARD, shards=10), suspended=True)
    scene.put(12)
    assert scene.retention.pending() == scene.written[-10:]


def test_long_listings_are_repeated_less_often() -> None:
    scene = Scene(ROOMY)
    real = scene.registry.list_shards

    def slow(lineage: int) -> ShardListing:
        scene.now += 3.0
        return real(lineage)

    scene.registry.list_shards = slow  # type: ignore[method-assign]
    scene.put(1)
    scene.learn()
    scene.put(1)
    scene.now += 59
    assert scene.retention.pending() == [], "the consumed shard is not offered again"
    scene.now += 1
    assert scene.retention.pending() == scene.written[1:]


def test_shards_are_deleted_in_portions_with_a_pause_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELETIONS_PER_CALL", 3)
    scene = Scene(ROOMY)
    scene.put(12)
    scene.retention.pending()
    assert [scene.retention.delete_some() for _ in range(4)] == [3, 3, 2, 0]
    scene.put(3)
    scene.retention.pending()
    real = scene.registry.delete_shard

    def refuse(key: str) -> NoReturn:
        raise StoreError("AccessDenied")

    monkeypatch.setattr(scene.registry, "delete_shard", refuse)
    assert scene.retention.delete_some() == 0
    monkeypatch.setattr(scene.registry, "delete_shard", real)
    assert scene.retention.delete_some() == 0, "the pause is not over"
    scene.now += module.RETRY_SECONDS
    assert scene.retention.delete_some() == 3


def test_a_stopping_trainer_deletes_no_more_shards_or_orphans() -> None:
    scene = Scene(ROOMY)
    scene.put(12)
    scene.retention.pending()
    stopping = iter([False, False])
    assert scene.retention.delete_some(lambda: next(stopping, True)) == 2
    assert len(scene.there()) == 10
    for name in "ab":
        scene.objects.put(f"checkpoints/00000007-{name}/model.safetensors", b"half")
    assert OrphanCleanup(scene.registry, grace_seconds=0).delete_due(lambda: True) == 0


def test_a_shard_that_cannot_be_deleted_does_not_block_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(ROOMY)
    scene.put(12)
    scene.retention.pending()
    real, stuck = scene.objects.delete, scene.written[0]

    def delete(key: str) -> None:
        if key == stuck:
            raise StoreError("AccessDenied")
        real(key)

    monkeypatch.setattr(scene.objects, "delete", delete)
    assert scene.retention.delete_some() == 0
    scene.now += module.RETRY_SECONDS
    assert scene.retention.delete_some() == 7, "all but the undeletable shard"
    monkeypatch.setattr(scene.objects, "delete", real)
    scene.now += module.RETRY_SECONDS
    assert scene.retention.delete_some() == 1
    assert scene.there() == scene.written[-4:]


def test_an_undeletable_state_does_not_delay_saves_and_keeps_its_shards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(ROOMY)
    for _ in range(4):
        scene.turn(1)
    real = scene.objects.delete

    def refuse(key: str) -> NoReturn:
        raise StoreError(f"delete {key}: AccessDenied")

    monkeypatch.setattr(scene.objects, "delete", refuse)
    for _ in range(6):
        scene.turn(1)
    assert scene.registry.last_trainer_state_epoch() == 10
    assert len(scene.registry.trainer_state_epochs()) == 8
    assert "old trainer states were not deleted" in caplog.text
    monkeypatch.setattr(scene.objects, "delete", real)
    scene.now += module.RETRY_SECONDS
    assert scene.retention.delete_some() == 0, "the state of epoch 3 names every shard"
    scene.turn(1)
    assert scene.registry.trainer_state_epochs() == [10, 11]
    scene.is_sound()
    scene.now += module.RETRY_SECONDS
    scene.turn(1)
    assert len(scene.there()) <= 8
    scene.is_sound()


def test_states_of_another_trainer_also_keep_their_shards() -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.save()
    other = ShardLedger(scene.registry, 1, Retrier(), scene.registry.trainer_state_record())
    late = Retention(scene.registry, other, scene.limits, clock=lambda: scene.now)
    scene.put(3)
    for key in late.pending():
        other.consume(key)
    late.pending()
    assert other.retired == (scene.written[0],)
    record = scene.registry.trainer_state_record()
    assert record is not None
    late.state_saved(record.model_copy(update={"epoch": 1, "retired": other.retired}))
    assert late.delete_some() == 0, "the newest state still lists the shard as consumed"


def test_data_without_a_manifest_are_deleted_after_a_long_time() -> None:
    scene = Scene(ROOMY)
    scene.put(1)
    left, slow = (f"traces/00000001/2026-01-01/05/pod-1-b-{seq:08d}.safetensors" for seq in range(2))
    scene.objects.put(left, b"left by a pod that ended")
    scene.objects.put(slow, b"under way")
    scene.retention.pending()
    scene.now += ABANDONED_UPLOAD_SECONDS - 1
    scene.objects.put(slow, b"under way")  # its agent retries
    scene.retention.pending()
    assert scene.retention.delete_some() == 0
    scene.now += 1
    scene.retention.pending()
    assert scene.retention.delete_some() == 1
    assert left not in scene.objects.data
    assert slow in scene.objects.data
    assert scene.there() == scene.written


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_an_upload_that_resumes_late_is_kept(looks: bool, finished: bool) -> None:
    scene = Scene(ROOMY)
    scene.put(1)
    (manifest,) = scene.written
    data = manifest.replace(".json", ".safetensors")
    whole = scene.objects.data[manifest]
    scene.objects.delete(manifest)
    scene.retention.pending()
    scene.now += ABANDONED_UPLOAD_SECONDS
    assert scene.retention.pending() == []
    scene.objects.put(data, scene.objects.data[data])
    if finished:
        scene.objects.create(manifest, whole)
    if looks:
        assert scene.retention.pending() == scene.written * finished
    scene.retention.delete_some()
    assert data in scene.objects.data
    assert scene.there() == scene.written * finished
