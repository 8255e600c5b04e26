"""Saves the trainer's state between two shards.

Two saves are an interval apart, or more if saving would take more than its share of the time. A state without changes
is not saved again.
"""

from __future__ import annotations

import math
import time

from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import TrainingPolicy
from aurora_runtime.training.state import trainer_state
from aurora_runtime.training.state.learning_state import LearningState
from aurora_runtime.training.state.retention import Retention
from aurora_store import Registry


class StateSaver:
    """Writes the learning state under the next epoch, and informs retention of the saved state."""

    def __init__(
        self,
        registry: Registry,
        learning: LearningState,
        candidates: Candidates,
        retention: Retention,
        retrier: Retrier,
        policy: TrainingPolicy,
        epoch: int,
    ) -> None:
        """``epoch`` is the epoch of the last stored state."""
        self._registry, self._learning, self._candidates = registry, learning, candidates
        self._retention, self._retrier, self._policy = retention, retrier, policy
        self.epoch = epoch
        self._saved_change_count = learning.change_count
        self._save_ended = -math.inf
        self._save_seconds = 0.0

    def save_first(self) -> None:
        """Save unless this process has saved already.

        Without a stored state, a restarted trainer would train the last version on the version's own shards again.
        """
        if self._save_ended == -math.inf:
            self.save()

    def save_if_due(self, *, idle: bool) -> None:
        """Save if the interval has passed; an ``idle`` trainer may save more often."""
        policy = self._policy
        share = policy.max_idle_save_time_share if idle else policy.max_save_time_share
        if time.monotonic() >= self._save_ended + max(policy.save_interval_seconds, self._save_seconds / share):
            self.save()

    def save(self) -> None:
        """Save unless nothing changed since the last save."""
        change_count = self._learning.change_count
        if change_count == self._saved_change_count:
            return
        began = time.monotonic()
        record, data = trainer_state.encode(
            self._learning, epoch=self.epoch + 1, lineage=self._candidates.lineage, last=self._candidates.last
        )
        self._retrier.call("saving the trainer's state", lambda: self._registry.put_trainer_state(record, data))
        self._retention.state_saved(record)
        self.epoch += 1
        self._saved_change_count = change_count
        self._save_ended = time.monotonic()
        self._save_seconds = self._save_ended - began
