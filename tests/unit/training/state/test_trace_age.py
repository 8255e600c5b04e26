"""Traces that are too old are deleted, and nothing of them stays in memory, whenever a kill comes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.pod_registry import ShardListing
from aurora_runtime.training.data.shards import Shard
from aurora_runtime.training.state.retention import EXPIRY_SECONDS
from aurora_runtime.training.state.trace_age import HOUR, AgeLimit, written_before
from aurora_store import Keys
from aurora_store.keys import shard_hour
from tests.unit.training import tiny
from tests.unit.training.state.retention_rig import ROOM_FOR_SIX, RetentionRig
from tests.unit.training.trainer_rig import Traffic, TrainerRig

DAY = timedelta(days=1)
LATER = DAY + HOUR
ONE_DAY = replace(ROOM_FOR_SIX, max_age=DAY)
TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))


@given(written=TIMES, delay=st.timedeltas(timedelta(0), 30 * DAY), age=st.timedeltas(timedelta(0), 3 * DAY))
def test_a_shard_is_found_after_its_age_and_at_most_an_hour_later(
    written: datetime, delay: timedelta, age: timedelta
) -> None:
    """However late the store got it: after an outage, a copy of the bucket, or a rewritten shard."""
    key = f"{Keys.shard(1, 'pod', 'boot', 0, written)}.json"
    listing = ShardListing({key: 5}, written={key: written + delay})
    found = AgeLimit(DAY, lambda: written + age).expired(listing) == [key]
    if age < DAY:
        assert not found
    elif age >= DAY + HOUR:
        assert found


@pytest.mark.parametrize(
    "key", ["traces/a.json", "traces/00000001/2026-13-01/05/a.json", "traces/1/2026-01-01/31/a.json"]
)
def test_a_key_without_an_hour_is_dated_by_the_store(key: str) -> None:
    now = datetime.now(UTC)
    assert shard_hour(key) is None
    assert written_before(key, now) == now
    assert written_before(key, None) is None


def test_old_consumed_shards_are_deleted_once_every_stored_state_lists_them_as_retired() -> None:
    rig = RetentionRig(ONE_DAY)
    rig.turn(2)
    rig.pass_time(LATER)
    rig.put(1)
    old, fresh = rig.written[:2], rig.written[2]
    rig.objects.written[fresh] = rig.utc  # the key's hour is that of the test's start
    assert rig.retention.shards_to_train() == []
    assert rig.retention.take_expired() == {*old, fresh}
    assert rig.retention.take_expired() == frozenset()
    assert rig.ledger.retired == tuple(old), "even those that replay would need"
    rig.retention.delete_some()
    assert rig.stored_shards() == old, "the untrained one is gone; a state still lists the others as consumed"
    rig.save()
    rig.retention.delete_some()
    assert rig.stored_shards() == old, "the older state still lists them as consumed"
    changes = rig.ledger.changes
    rig.now += EXPIRY_SECONDS
    rig.retention.shards_to_train()
    assert rig.ledger.changes > changes, "an idle trainer saves once more"
    rig.save()
    assert rig.retention.delete_some() == 2
    assert rig.stored_shards() == []
    rig.save()
    changes = rig.ledger.changes
    rig.now += EXPIRY_SECONDS
    rig.retention.shards_to_train()
    assert (rig.ledger.retired, rig.ledger.total, rig.ledger.changes) == ((), 2, changes), "and then rests"
    rig.assert_sound()


def test_a_kill_at_any_write_deletes_old_traces_in_the_end_and_trains_none_twice() -> None:
    def run(kill: int | None) -> int:
        rig = RetentionRig(ONE_DAY)
        rig.turn(3)
        rig.put(2)
        rig.pass_time(LATER)
        before = rig.objects.changes
        rig.objects.fail_at = kill
        for _ in range(3):
            try:
                rig.consume_pending()
                rig.save()
                rig.retention.delete_some()
            except KeyboardInterrupt:
                rig.objects.fail_at = None
                rig.restart()
            rig.now += EXPIRY_SECONDS
        writes = rig.objects.changes - before
        rig.objects.fail_at = None
        rig.now += 7200  # uploads that stay unfinished for an hour are deleted too
        for _ in range(4):
            rig.turn()
            rig.now += 7200
        assert list(rig.objects.list(Keys.TRACES)) == []
        assert rig.trained == sorted(set(rig.trained))
        assert rig.ledger.total <= 3, "those that were too old were never trained"
        return writes

    writes = run(None)
    assert writes > 5
    for kill in range(writes):
        run(kill)


def test_a_shard_that_becomes_too_old_in_a_backlog_is_not_trained(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path)
    rig.limits = replace(rig.limits, total_bytes=1 << 40, replay_bytes=1 << 30, max_age=DAY)
    shards = [tiny.put_shard(rig.registry, seq, [tiny.trace(seq)]) for seq in range(4)]
    trainer = rig.trainer(Traffic(rig.registry, 0))
    retention, train, trained = trainer.stages.retention, trainer.stages.fresh.train, list[str]()

    def train_for_a_day(key: str, shard: Shard | None) -> None:
        train(key, shard)
        trained.append(key)
        if len(trained) == 2:
            retention._age = AgeLimit(DAY, lambda: datetime.now(UTC) + LATER)
            retention._next_expiry = 0.0

    trainer.stages.fresh.train = train_for_a_day  # type: ignore[method-assign]
    trainer.run()
    assert trained == shards[:2]
    assert len(trainer.learning.replay) == 0
    assert not set(shards[2:]) & set(rig.objects.data), "the untrained ones are deleted"


def test_nothing_of_an_old_shard_stays_in_the_trainers_memory_also_after_a_restart(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path)
    rig.limits = replace(rig.limits, total_bytes=1 << 40, replay_bytes=1 << 30, max_age=DAY)
    trainer = rig.trainer(Traffic(rig.registry, 3))
    trainer.run()
    assert len(trainer.learning.replay) > 0
    assert len(trainer.stages.reader._prefixes._traces) > 0
    trainer = rig.trainer(Traffic(rig.registry, 0))
    assert len(trainer.learning.replay) > 0, "a restart restores what is kept"
    trainer.stages.retention._age = AgeLimit(DAY, lambda: datetime.now(UTC) + LATER)
    trainer.policy = replace(trainer.policy, poll_seconds=0.0)
    trainer.run()
    assert (len(trainer.learning.replay), trainer.learning.replay.nbytes, trainer.learning.replay.roots) == (0, 0, 0)
    assert len(trainer.learning.held_out) == 0
    assert len(trainer.stages.reader._prefixes._traces) == 0
    assert trainer.stages.reader._prefixes._held.total == 0
    again = rig.trainer(Traffic(rig.registry, 0))
    assert (len(again.learning.replay), len(again.learning.held_out)) == (0, 0)
    assert again.learning.session.steps == trainer.learning.session.steps, "what was learnt stays"
