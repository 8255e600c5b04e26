"""The training loop: fresh shards first, replay beside them and while there are none.

Invariant: the state to save is taken only between two shards. Only then does the learning state hold everything that
decides how training continues.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.errors import Interrupted
from aurora_runtime.training.data.shards import ShardReader
from aurora_runtime.training.poll_backoff import PollBackoff
from aurora_runtime.training.progress import Progress
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import TrainingPolicy
from aurora_runtime.training.stages.fresh_training import FreshTraining
from aurora_runtime.training.stages.offering import Offering
from aurora_runtime.training.stages.replay_training import ReplayTraining
from aurora_runtime.training.stages.saving import StateSaver
from aurora_runtime.training.stages.vocabulary_review import VocabularyReview
from aurora_runtime.training.state.draft_expiry import DraftExpiry
from aurora_runtime.training.state.learning_state import LearningState
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.state.retention import Retention

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stages:
    """The parts of the loop. :class:`Trainer` shows in which order they run."""

    retention: Retention  # lists the shards to train on, and deletes old ones between two shards
    reader: ShardReader
    fresh: FreshTraining
    replay: ReplayTraining
    offering: Offering
    vocabulary: VocabularyReview
    saver: StateSaver
    orphans: OrphanCleanup
    expiry: DraftExpiry


@dataclass
class Trainer:
    """Trains one lineage until asked to stop."""

    learning: LearningState
    stages: Stages
    progress: Progress
    retrier: Retrier
    policy: TrainingPolicy
    backoff: PollBackoff
    _seen_arrivals: int = field(default=0, init=False)

    def run(self) -> None:
        """Train until asked to stop, then save."""
        try:
            while not self.retrier.stopping:
                self._train_or_wait()
        except Interrupted as interrupted:
            log.info("%s", interrupted)
        self.stages.saver.save()

    def _train_or_wait(self) -> None:
        """Train on pending shards if there are any, else replay if the budget allows, else wait."""
        pending = list(self.stages.retention.shards_to_train())
        self._drop_expired()
        if pending:
            self.backoff.reset()
            self._train_on_shards(pending)
        elif self.stages.replay.possible_while_waiting():
            self.backoff.reset()
            self.progress.pending_shards = 0
            self.stages.replay.while_waiting(self.policy.poll_seconds)
            self.run_due_stages(TrainerPhase.TRAINING)
        else:
            self.progress.pending_shards = 0
            self.run_due_stages(TrainerPhase.WAITING_FOR_TRACES)
            if self._expects_work():
                self.backoff.reset()
            self.retrier.sleep(self._next_pause())

    def _next_pause(self) -> float:
        """The seconds to wait. A long pause does not end shortly before a listing is possible.

        Otherwise the next look would reuse the last listing, and a shard would be seen a whole pause later.
        """
        pause, until_listing = self.backoff.next_pause(), self.learning.ledger.seconds_until_listing()
        if self.policy.poll_seconds < pause < until_listing <= self.policy.max_poll_seconds:
            return until_listing
        return pause

    def _expects_work(self) -> bool:
        """Whether to look again soon: something arrived, or deletions or a status are not finished.

        An upload without its manifest counts as an arrival, because the manifest follows.
        """
        arrivals, before = self.learning.ledger.arrivals, self._seen_arrivals
        self._seen_arrivals = arrivals
        unfinished = self.stages.retention.deletes or self.progress.refused
        return arrivals != before or unfinished

    def _drop_expired(self) -> frozenset[str]:
        """Drop what is kept in memory of the shards that became too old; returns these shards."""
        expired = self.stages.retention.take_expired()
        if expired:
            self.learning.drop(expired)
            self.stages.reader.drop(expired)
        return expired

    def _train_on_shards(self, pending: Sequence[str]) -> None:
        """Train on the first of ``pending``. A backlog takes long, so shards may become too old meanwhile."""
        waiting = list(pending)
        for _ in range(min(len(pending), self.policy.shards_per_listing)):
            self.stages.retention.expire()
            if expired := self._drop_expired():
                waiting = [key for key in waiting if key not in expired]
            if self.retrier.stopping or not waiting:
                return
            self.progress.pending_shards = len(waiting)
            self.stages.reader.prefetch(waiting, self.learning.ledger.size)
            self._train_on(waiting.pop(0))
            self.run_due_stages(TrainerPhase.TRAINING)

    def _train_on(self, key: str) -> None:
        self.stages.fresh.train(key, self.stages.reader.read(key))
        self.stages.reader.finish()

    def run_due_stages(self, phase: TrainerPhase) -> None:
        """Evaluate and offer, review the vocabulary map, begin a save, clean up and report; each only when due.

        This runs between two shards, and while there are none.
        """
        if self.stages.offering.due():
            self.stages.saver.save_first()
            self.stages.offering.offer()
        self.stages.vocabulary.review()
        self.stages.saver.save_if_due()
        self.retrier.call("deleting orphans", lambda: self.stages.orphans.delete_due(self._stopping))
        self.stages.expiry.look(self._stopping)
        self.stages.retention.delete_some(self._stopping)
        self.progress.report(phase)

    def _stopping(self) -> bool:
        return self.retrier.stopping
