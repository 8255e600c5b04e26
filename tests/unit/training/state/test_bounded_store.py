"""The real trainer keeps its store bounded, and resumes after kills and damage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.pod_settings import StoreSettings, TrainerSettings
from aurora_runtime.traces import encode
from aurora_runtime.training import main
from aurora_runtime.training.build import TrainerContext, TrainingConfig, build_trainer
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_runtime.training.loop import Trainer
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import TrainingPolicy
from aurora_runtime.training.state import retention as module
from aurora_runtime.training.state import trainer_state
from aurora_runtime.training.state.retention import RetentionLimits
from aurora_store import Keys, Registry
from aurora_store.errors import ObjectExists
from tests.unit.training import tiny


class Traffic(Retrier):
    """Each wait of the trainer delivers a shard, until ``count`` shards were delivered."""

    def __init__(self, registry: Registry, count: int, *, damaged: bool = False) -> None:
        super().__init__()
        self.registry, self.count, self.damaged = registry, count, damaged
        self.written: list[str] = []

    def sleep(self, seconds: float) -> None:
        if len(self.written) == self.count:
            self.stop()
            return
        traces = [tiny.trace(seed) for seed in range(3)]
        last = max((int(key[-13:-5]) for key in self.registry.shard_keys(1)), default=-1)
        self.written.append(tiny.put_shard(self.registry, last + 1, traces))
        if self.damaged:
            data = self.written[-1].replace(".json", ".safetensors")
            self.registry.objects.put(data, b"x" * len(encode(traces)))


class Real:
    """The real trainer with a store in memory and small limits. It saves after every shard."""

    def __init__(self, folder: Path) -> None:
        size = len(encode([tiny.trace(seed) for seed in range(3)]))
        self.limits = RetentionLimits(6 * size, 2 * size, shards=100)
        self.policy = TrainingPolicy(save_interval_seconds=0.0, max_save_time_share=1e9)
        self.recipe: Recipe | None = None  # None: that of the settings
        self.registry, self.objects = tiny.memory_registry()
        self.target = tiny.target(folder)
        self.lineage = open_lineage(self.registry, self.target, tiny.DRAFT_SPEC, utc_now)
        self.settings = TrainerSettings(
            namespace="n",
            name="s",
            target=TargetSpec(model=str(folder)),
            draft=tiny.DRAFT_SPEC,
            training=TrainingSpec(replay=0, publish_tokens=1 << 30, publish_seconds=86400),
            store=StoreSettings(bucket="b", root="r"),
        )

    @property
    def config(self) -> TrainingConfig:
        config = TrainingConfig.of(self.settings, self.policy)
        return dataclasses.replace(config, limits=self.limits, recipe=self.recipe or config.recipe)

    def trainer(self, retrier: Retrier) -> Trainer:
        context = TrainerContext(self.registry, self.target, self.lineage, retrier)
        return build_trainer(self.config, context, torch.device("cpu"))


@pytest.fixture
def real(tmp_path: Path) -> Real:
    return Real(tmp_path)


def test_damaged_shards_are_consumed_retired_and_deleted_too(real: Real) -> None:
    traffic = Traffic(real.registry, 14, damaged=True)
    trainer = real.trainer(traffic)
    trainer.run()
    assert trainer.learning.session.steps == 0
    assert 6 <= len(list(real.registry.shard_keys(1))) <= 10
    again = real.trainer(Retrier())
    assert again.learning.ledger.total == 14
    assert again.stages.retention.pending() == []


def damage_the_newest_state(real: Real, *, data: bool) -> int:
    """Damage the newest state in its data or in its manifest; returns its epoch."""
    epoch = real.registry.last_trainer_state_epoch()
    key = Keys.trainer_state(epoch)
    if data:
        (key,) = real.objects.list(f"{key.removesuffix('.json')}/")
    real.objects.put(key, b"{}")
    return epoch


@pytest.mark.parametrize("data", [False, True])
def test_a_trainer_resumes_from_the_state_before_a_damaged_one(
    real: Real, data: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = Traffic(real.registry, 4)
    real.trainer(first).run()
    before = real.registry.trainer_state_record(real.registry.trainer_state_epochs()[-2])
    assert before is not None
    damaged = damage_the_newest_state(real, data=data)
    again = real.trainer(Traffic(real.registry, 2))
    assert again.learning.ledger.consumed == before.consumed == tuple(first.written[:3])
    assert again.learning.session.steps == before.step
    assert f"epoch {damaged} is damaged" in caplog.text
    again.run()
    epochs = real.registry.trainer_state_epochs()
    assert epochs[0] > damaged
    assert again.learning.ledger.total == len(set(real.registry.shard_keys(1))), (
        "the shard of the damaged state is trained again"
    )
    assert trainer_state.read(real.registry, 1) is not None


def test_without_an_undamaged_state_the_trainer_starts_from_the_last_version(real: Real) -> None:
    real.trainer(Traffic(real.registry, 1)).run()
    damaged = damage_the_newest_state(real, data=False)
    again = real.trainer(Traffic(real.registry, 1))
    assert again.learning.ledger.consumed == ()
    again.run()
    assert real.registry.last_trainer_state_epoch() > damaged


def test_two_trainers_that_save_one_epoch_leave_one_undamaged_state(real: Real) -> None:
    real.trainer(Traffic(real.registry, 1)).run()
    winner, zombie = (real.trainer(Traffic(real.registry, 1)) for _ in range(2))
    winner.learning.session.generator.manual_seed(7)
    winner.run()
    with pytest.raises(ObjectExists):
        zombie.run()
    kept = trainer_state.read(real.registry, 1)
    assert kept is not None
    assert kept.record.epoch == winner.stages.saver.epoch
    for _ in range(2):
        real.trainer(Traffic(real.registry, 1)).run()
    names = {key.split("/")[2] for key in real.objects.list(Keys.TRAINER_STATE)}
    assert f"{winner.stages.saver.epoch:08d}" not in names, "the loser's data are deleted with the epoch"


def test_a_suspended_trainer_deletes_until_no_shard_is_deletable(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELETIONS_PER_CALL", 2)
    for seq in range(14):
        tiny.put_shard(real.registry, seq, [tiny.trace(seed) for seed in range(3)])
    main.wait_suspended(real.config, real.registry, real.lineage, Traffic(real.registry, 0))
    assert len(list(real.registry.shard_keys(1))) == 4


def test_a_restart_restores_the_buffer_without_retired_shards(real: Real) -> None:
    trainer = real.trainer(Traffic(real.registry, 9))
    trainer.run()
    again = real.trainer(Retrier())
    kept = [span for span in trainer.learning.replay.spans() if span.shard in trainer.learning.ledger.consumed]
    assert again.learning.replay.spans() == kept
    assert 0 < len(kept) < len(trainer.learning.replay.spans())
    assert again.stages.reader.damaged == 0


def test_an_unchanged_state_is_not_saved_again(real: Real) -> None:
    real.trainer(Traffic(real.registry, 1)).run()
    epoch = real.registry.last_trainer_state_epoch()
    real.trainer(Traffic(real.registry, 0)).run()
    assert real.registry.last_trainer_state_epoch() == epoch


def test_the_trainer_itself_keeps_its_store_bounded(real: Real) -> None:
    registry = real.registry
    traffic = Traffic(registry, 14)
    real.trainer(traffic).run()
    left = list(registry.shard_keys(1))
    assert left == traffic.written[-len(left) :]
    assert 6 <= len(left) <= 10
    again = real.trainer(Retrier())
    assert again.learning.ledger.total == 14
    assert again.stages.retention.pending() == []
    status = registry.trainer_status()
    assert status is not None
    assert status.shards == 14, "deleted shards still count as consumed"


def test_the_trainer_passes_its_stop_request_to_retention_and_cleanup(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(real.registry, 1)
    trainer = real.trainer(traffic)
    seen: list[bool] = []

    def tick(stopping: Callable[[], bool]) -> int:
        traffic.stop()
        seen.append(stopping())
        return 0

    monkeypatch.setattr(trainer.stages.retention, "delete_some", tick)
    monkeypatch.setattr(trainer.stages.orphans, "delete_due", tick)
    trainer.run()
    assert seen == [True, True]
