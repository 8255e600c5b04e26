"""The real trainer on a store in memory, and traffic for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.pod_settings import StoreSettings, TrainerSettings
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import encode
from aurora_runtime.training.build import TrainerContext, TrainingConfig, build_trainer
from aurora_runtime.training.data.shard_deaths import ShardDeaths
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_runtime.training.loop import Trainer
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import TrainingPolicy
from aurora_runtime.training.stages.saving import StateSaver
from aurora_runtime.training.state.retention import RetentionLimits
from tests.assets.signing import ROOT_OWNER
from tests.unit.training import tiny


class Traffic(Retrier):
    """Each wait of the trainer delivers a shard, until ``count`` shards were delivered.

    ``reader`` lists the shards that there are, where ``registry`` may not.
    """

    def __init__(
        self, registry: PodRegistry, count: int, *, damaged: bool = False, reader: PodRegistry | None = None
    ) -> None:
        super().__init__()
        self.registry, self.count, self.damaged = registry, count, damaged
        self.reader = reader or registry
        self.written: list[str] = []

    def sleep(self, seconds: float) -> None:
        if len(self.written) == self.count:
            self.stop()
            return
        traces = [tiny.trace(seed) for seed in range(3)]
        last = max((int(key[-13:-5]) for key in self.reader.list_shards(1).data_bytes), default=-1)
        self.written.append(tiny.put_shard(self.registry, last + 1, traces))
        if self.damaged:
            data = self.written[-1].replace(".json", ".safetensors")
            self.registry.objects.put(data, b"x" * len(encode(traces)))


class PromptSaver(StateSaver):
    """Waits for each save, so that the order of saves and steps is the same in every run."""

    @classmethod
    def of(cls, saver: StateSaver) -> PromptSaver:
        prompt = cls.__new__(cls)
        prompt.__dict__.update(saver.__dict__)
        return prompt

    def save_if_due(self) -> None:
        super().save_if_due()
        self._finish()


class TrainerRig:
    """The real trainer with a store in memory and small limits. It saves after every shard, and waits for the save."""

    def __init__(self, folder: Path, draft: DraftSpec = tiny.DRAFT_SPEC) -> None:
        size = len(encode([tiny.trace(seed) for seed in range(3)]))
        self.limits = RetentionLimits(6 * size, 2 * size, shards=100)
        self.policy = TrainingPolicy(save_interval_seconds=0.0)
        self.recipe: Recipe | None = None  # None: that of the settings
        self.registry, self.objects = tiny.memory_registry()
        self.target = tiny.target(folder)
        self.lineage = open_lineage(self.registry, self.target, draft, utc_now)
        self.settings = TrainerSettings(
            namespace="n",
            name="s",
            target=TargetSpec(model=str(folder)),
            draft=draft,
            training=TrainingSpec(passes=1, publish_tokens=1 << 29),
            store=StoreSettings(owner=ROOT_OWNER.id, bucket="b", root="r"),
        )

    @property
    def config(self) -> TrainingConfig:
        config = TrainingConfig.of(self.settings, self.target.identity.hidden_size, self.policy)
        return dataclasses.replace(config, limits=self.limits, recipe=self.recipe or config.recipe)

    def trainer(self, retrier: Retrier, deaths: ShardDeaths | None = None) -> Trainer:
        context = TrainerContext(self.registry, self.target, self.lineage, retrier, deaths or ShardDeaths())
        trainer = build_trainer(self.config, context, torch.device("cpu"))
        trainer.stages = dataclasses.replace(trainer.stages, saver=PromptSaver.of(trainer.stages.saver))
        return trainer
