"""A trainer that only keeps the store bounded, with limits for a few shards."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aurora_protocol.training_records import TrainerState
from aurora_runtime.traces import encode
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.retention import Retention, RetentionLimits
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_store import Keys
from tests.assets.trainer_output import put_trainer_state
from tests.unit.training import tiny

SHARD = len(encode([tiny.trace(0)]))
"""Bytes of a shard."""
ROOM_FOR_SIX = RetentionLimits(total_bytes=6 * SHARD, replay_bytes=2 * SHARD, shards=100)
"""Room for six shards. Two of them are reserved for consumed shards."""


class RetentionRig:
    """Lists, consumes, saves and deletes in the order of the real trainer, without training."""

    TRACE = tiny.trace(0)

    def __init__(self, limits: RetentionLimits) -> None:
        self.registry, self.objects = tiny.memory_registry()
        self.limits = limits
        self.now = 0.0
        self.utc = datetime.now(UTC)
        self.written: list[str] = []
        self.trained: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Resume as a new trainer from the store."""
        state = self.registry.trainer_state_record()
        self.epoch = self.registry.last_trainer_state_epoch()
        self.ledger = ShardLedger(self.registry, 1, Retrier(), state, clock=lambda: self.now)
        self.retention = Retention(
            self.registry,
            self.ledger,
            self.limits,
            clock=lambda: self.now,
            utc=lambda: self.utc,
        )
        self.trained = [key for key in self.written if key in self.ledger.consumed or key in self.ledger.retired]

    def pass_time(self, time: timedelta) -> None:
        """Let every clock go on."""
        self.now += time.total_seconds()
        self.utc += time

    def put(self, count: int) -> None:
        for _ in range(count):
            self.written.append(tiny.put_shard(self.registry, len(self.written), [self.TRACE]))

    def consume_pending(self) -> None:
        for key in self.retention.shards_to_train():
            self.trained.append(key)
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
        self.consume_pending()
        self.save()
        self.retention.delete_some()

    def stored_shards(self) -> list[str]:
        return list(self.registry.list_shards(1).data_bytes)

    def assert_sound(self) -> None:
        """Promise 4 holds, and every consumed shard exists."""
        keys = set(self.objects.data)
        names = sorted(k for k in keys if k.startswith(Keys.TRAINER_STATE) and k.endswith(".json"))
        states = [TrainerState.from_json(self.objects.data[k]) for k in names]
        for state in states:
            assert set(state.consumed) <= keys
            assert len(state.consumed) + len(state.retired) + state.forgotten <= len(self.written)
        explained = set(states[-1].retired) if states else set()
        for key in keys:
            if key.startswith(Keys.TRACES):
                manifest, data = (f"{key.rsplit('.', 1)[0]}{end}" for end in (".json", ".safetensors"))
                assert data in keys, "a manifest names missing data"
                assert manifest in keys or manifest in explained, "no manifest or state names this object"
