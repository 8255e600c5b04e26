"""The store stays bounded on a real S3, and the store check finds no violation at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import encode
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.retention import Retention, RetentionLimits
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_store import Keys, ObjectStore
from tests.assets.s3 import S3, seaweedfs
from tests.assets.trainer_output import put_trainer_state
from tests.check_store import check_store
from tests.unit.training import tiny

TURNS, KEPT = 12, 6


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        ObjectStore(server.config()).ensure_bucket()
        yield server


def test_old_traces_are_deleted_and_every_object_stays_named_and_undamaged(s3: S3, tmp_path: Path) -> None:
    config = s3.config(root="aurora/retention")
    registry = PodRegistry(ObjectStore(config))
    open_lineage(registry, tiny.target(tmp_path / "target"), tiny.DRAFT_SPEC, utc_now)
    trace = tiny.trace(0)
    size = len(encode([trace]))
    limits = RetentionLimits(total_bytes=KEPT * size, replay_bytes=2 * size, shards=100)
    written: list[str] = []
    read: list[str] = []

    def assert_sound() -> None:
        assert check_store(config, timedelta(0)).violations == []

    ledger = ShardLedger(registry, 1, Retrier())
    retention = Retention(registry, ledger, limits)
    for turn in range(TURNS):
        written.append(tiny.put_shard(registry, turn, [trace]))
        for key in retention.shards_to_train():
            read.append(key)
            ledger.consume(key)
        state = put_trainer_state(
            registry, consumed=ledger.consumed, retired=ledger.retired, forgotten=ledger.forgotten
        )
        assert_sound()
        retention.state_saved(state)
        retention.delete_some()
        assert_sound()
        if turn % 5 == 4:  # a trainer that ends between a deletion and the next save
            ledger = ShardLedger(registry, 1, Retrier(), registry.trainer_state_record())
            retention = Retention(registry, ledger, limits)
    assert read == written, "each shard was trained once"
    left = list(registry.list_shards(1).data_bytes)
    assert left == written[-len(left) :]
    assert KEPT <= len(left) <= KEPT + 4
    assert len(list(registry.objects.list(Keys.TRACES))) == 2 * len(left)
    assert registry.newest_shards(1, 2) == written[:-3:-1]


def test_traces_beyond_their_age_are_deleted_and_every_object_stays_named_and_undamaged(s3: S3, tmp_path: Path) -> None:
    config = s3.config(root="aurora/age")
    registry = PodRegistry(ObjectStore(config))
    open_lineage(registry, tiny.target(tmp_path / "target"), tiny.DRAFT_SPEC, utc_now)
    limits = RetentionLimits(total_bytes=1 << 40, replay_bytes=1 << 40, shards=100, max_age=timedelta(days=1))
    now = utc_now()
    written = [tiny.put_shard(registry, number, [tiny.trace(0)]) for number in range(KEPT)]
    ledger = ShardLedger(registry, 1, Retrier())
    retention = Retention(registry, ledger, limits, utc=lambda: now)
    for key in retention.shards_to_train()[: KEPT // 2]:
        ledger.consume(key)
    put_trainer_state(registry, consumed=ledger.consumed)
    now += timedelta(hours=23)
    retention = Retention(registry, ledger, limits, utc=lambda: now)
    retention.shards_to_train()
    assert retention.delete_some() == 0
    now += timedelta(hours=2)
    retention = Retention(registry, ledger, limits, utc=lambda: now)
    assert retention.shards_to_train() == []
    retention.delete_some()
    assert list(registry.list_shards(1).data_bytes) == written[: KEPT // 2], "the untrained ones are gone"
    for _ in range(2):
        assert check_store(config, timedelta(0)).violations == []
        retention.state_saved(put_trainer_state(registry, consumed=ledger.consumed, retired=ledger.retired))
        retention.delete_some()
    assert list(registry.objects.list(Keys.TRACES)) == []
    assert check_store(config, timedelta(0)).violations == []
