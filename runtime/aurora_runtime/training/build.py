"""Builds a trainer from its settings and from the stored state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.draft_records import Lineage
from aurora_protocol.pod_settings import PUBLISH_SECONDS, TrainerSettings
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.replay_budget import ReplayBudget
from aurora_runtime.training.data.shard_deaths import ShardDeaths
from aurora_runtime.training.data.shards import ShardReader
from aurora_runtime.training.lineage import fetch_draft, newest_draft
from aurora_runtime.training.loop import Stages, Trainer
from aurora_runtime.training.optim.ranks import Ranks
from aurora_runtime.training.optim.recipe import Recipe, default_learning_rate
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.shared_session import SharedSession
from aurora_runtime.training.poll_backoff import PollBackoff
from aurora_runtime.training.progress import Progress, StatusWriter
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import DEFAULT_POLICY, TrainingPolicy
from aurora_runtime.training.stages.fresh_training import FreshTraining
from aurora_runtime.training.stages.offering import Offering
from aurora_runtime.training.stages.replay_training import ReplayTraining
from aurora_runtime.training.stages.saving import StateSaver
from aurora_runtime.training.stages.vocabulary_review import VocabularyReview
from aurora_runtime.training.state import trainer_state
from aurora_runtime.training.state.draft_expiry import DraftExpiry
from aurora_runtime.training.state.learning_state import LearningState
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.state.retention import Retention, RetentionLimits
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_runtime.training.target.target_model import TargetModel
from aurora_runtime.training.vocabulary_coverage import VocabularyCoverage

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingConfig:
    """How one trainer trains: derived from the custom resource and the policy."""

    spec: TrainingSpec
    draft_steps: int  # steps of the served draft
    recipe: Recipe
    limits: RetentionLimits
    policy: TrainingPolicy = DEFAULT_POLICY
    publish_seconds: float = PUBLISH_SECONDS

    @classmethod
    def of(cls, settings: TrainerSettings, width: int, policy: TrainingPolicy | None = None) -> TrainingConfig:
        """The config that the custom resource asks for, for a target whose hidden states have ``width`` elements.

        ``policy`` replaces the one for this width.
        """
        spec, steps = settings.training, settings.draft.steps
        policy = policy or TrainingPolicy.of(width)
        recipe = Recipe(
            learning_rate=default_learning_rate(width),
            unroll_steps=steps,
            replay=min(Recipe.replay, spec.passes - 1),
            passes=spec.passes,
        )
        limits = RetentionLimits.of(spec.trace_storage_bytes, policy.replay_bytes, spec.trace_max_age_seconds)
        return cls(spec, steps, recipe, limits, policy, settings.publish_seconds)


@dataclass(frozen=True)
class TrainerContext:
    """The store, the target and the lineage that a trainer works on, and the deaths of earlier trainers in its pod."""

    registry: PodRegistry
    target: TargetModel
    lineage: Lineage
    retrier: Retrier
    deaths: ShardDeaths = field(default_factory=ShardDeaths)

    def call(self, action: str, function: Callable[[], T]) -> T:
        """Call the store until it answers. Each failure is announced, because some end only when a person acts."""
        return self.retrier.call(action, function, StatusWriter(self.registry).announce)


def build_trainer(
    config: TrainingConfig, context: TrainerContext, device: torch.device, ranks: Ranks | None = None
) -> Trainer:
    """A trainer that continues from the stored state, or from the last version when there is none."""
    registry, retrier = context.registry, context.retrier
    stored = context.call("reading the trainer's state", lambda: trainer_state.read(registry, context.lineage))
    record = stored.record if stored else None
    last, last_draft = context.call("fetching the last version", lambda: newest_draft(registry, context.target))
    ledger = ShardLedger(registry, context.lineage.number, retrier, record)
    trained_without_moments = last.trained_tokens > 0 and not (stored and stored.has_moments)
    session = _session(config, context, last.version, device, ranks, warm=trained_without_moments)
    trained_tokens = record.trained_tokens if record else last.trained_tokens
    learning = _empty_learning_state(config, context.target, session, ledger, trained_tokens)
    reader = _reader(config, context)
    if stored is not None:
        # The state brings its own weights and vocabulary map.
        learning.restore(stored.tensors, reader)
        log.info("resumed at step %d, %d positions", session.steps, learning.trained_tokens)
    candidates = Candidates(
        registry,
        context.lineage.number,
        config.spec,
        config.draft_steps,
        last,
        last_draft,
        config.publish_seconds,
    )
    progress = Progress(registry, learning, candidates, config.policy, context.deaths)
    stages = _stages(config, context, learning, reader, candidates, progress)
    policy = config.policy
    backoff = PollBackoff(policy.poll_seconds, policy.max_poll_seconds, policy.poll_hold_seconds)
    return Trainer(learning, stages, progress, retrier, policy, backoff)


def _session(
    config: TrainingConfig,
    context: TrainerContext,
    version: int,
    device: torch.device,
    ranks: Ranks | None,
    *,
    warm: bool,
) -> Session:
    """A session that starts from the draft of ``version``. ``warm``: it was trained, and its moments are lost."""
    draft, vocabulary = context.call(
        "fetching a version", lambda: fetch_draft(context.registry, version, context.target)
    )
    recipe = config.recipe.warm_start() if warm or context.lineage.initial else config.recipe
    log.info("the learning rate is %.4g after %d steps", recipe.learning_rate, recipe.warmup_steps)
    if ranks:
        return SharedSession(draft, vocabulary, recipe, device, ranks)
    return Session(draft, vocabulary, recipe, device)


def _empty_learning_state(
    config: TrainingConfig, target: TargetModel, session: Session, ledger: ShardLedger, trained_tokens: int
) -> LearningState:
    return LearningState(
        session=session,
        ledger=ledger,
        replay=ReplayBuffer(config.policy.replay_bytes),
        budget=ReplayBudget(replay=config.recipe.replay, passes=config.recipe.passes),
        held_out=HeldOutSet(
            config.policy.held_out_requests, config.policy.held_out_bytes, config.policy.counted_requests
        ),
        coverage=VocabularyCoverage(target.identity.vocab_size, target.special_tokens),
        trained_tokens=trained_tokens,
    )


def _reader(config: TrainingConfig, context: TrainerContext) -> ShardReader:
    identity = context.target.identity
    return ShardReader(
        context.registry,
        identity.vocab_size,
        len(context.lineage.aux_layers) * identity.hidden_size,
        context.retrier,
        policy=config.policy,
        deaths=context.deaths,
    )


def _stages(
    config: TrainingConfig,
    context: TrainerContext,
    learning: LearningState,
    reader: ShardReader,
    candidates: Candidates,
    progress: Progress,
) -> Stages:
    registry, retrier = context.registry, context.retrier
    retention = Retention(registry, learning.ledger, config.limits)
    replay = ReplayTraining(learning, progress, retrier)
    epoch = context.call("reading the trainer's state", registry.last_trainer_state_epoch)
    return Stages(
        retention=retention,
        reader=reader,
        fresh=FreshTraining(learning, replay, progress, retrier),
        replay=replay,
        offering=Offering(learning, candidates, progress, retrier),
        vocabulary=VocabularyReview(learning, context.target.head, progress),
        saver=StateSaver(registry, learning, candidates, retention, retrier, config.policy, epoch),
        orphans=context.call("looking for orphans", lambda: OrphanCleanup(registry)),
        expiry=DraftExpiry(registry, config.spec.draft_history_limit),
    )
