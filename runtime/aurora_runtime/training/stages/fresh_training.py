"""Trains on the fresh examples of a shard, with replay beside them."""

from __future__ import annotations

import torch

from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.training.data.shards import Shard
from aurora_runtime.training.progress import Progress
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.stages.replay_training import ReplayTraining
from aurora_runtime.training.state.learning_state import LearningState


class FreshTraining:
    """Takes each shard into the learning state and trains on each of its examples at most once."""

    def __init__(self, learning: LearningState, replay: ReplayTraining, progress: Progress, retrier: Retrier) -> None:
        self._learning, self._replay, self._progress, self._retrier = learning, replay, progress, retrier

    def train(self, key: str, shard: Shard | None) -> None:
        """Train on ``shard`` and mark ``key`` consumed. ``shard`` is None when the shard is damaged.

        When the trainer is asked to stop, the remaining batches are dropped, so that the state is saved in time.
        """
        learning, session = self._learning, self._learning.session
        if shard:
            learning.hold_out(shard)
        train = list(shard.train) if shard else []
        learning.replay.add(train, key)
        learning.coverage.add(train)
        order = torch.randperm(len(train), generator=session.generator).tolist()
        for batch in session.recipe.batch_bound.batches([train[i] for i in order]):
            if self._retrier.stopping:
                break
            session.step(batch)
            self._progress.report(TrainerPhase.TRAINING)
            learning.trained_tokens += sum(example.fresh for example in batch)
            learning.budget.credit(sum(example.root_count for example in batch), learning.replay.roots)
            self._replay.beside_fresh_batch()
        learning.ledger.consume(key)
