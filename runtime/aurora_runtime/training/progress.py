"""The trainer's status, for people and for the custom resource: the one store record that is overwritten.

Invariants: writing the status costs little and never stops the trainer. A write that fails is dropped, because the next
one replaces it. The status decides nothing about drafts. It can only delay a measurement. The status holds no user
text.
"""

from __future__ import annotations

import logging
import time

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.candidates import Candidates, Comparison
from aurora_runtime.training.data.shard_deaths import ShardDeaths
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.settings import DEFAULT_POLICY, TrainingPolicy
from aurora_runtime.training.state.learning_state import LearningState
from aurora_runtime.training.vocabulary_coverage import VocabularyChange
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)


class StatusWriter:
    """Writes :class:`TrainerStatus` records, and drops writes that fail."""

    def __init__(self, registry: PodRegistry) -> None:
        self._registry = registry

    def write(self, status: TrainerStatus) -> bool:
        """Write ``status``. False: the store refused it."""
        try:
            self._registry.put_trainer_status(status)
        except StoreError as error:
            log.warning("status not written: %s", error)
            return False
        return True

    def announce(self, message: str) -> None:
        """Say why a trainer does not train yet. The other fields keep their values.

        ``held_out_requests`` is reset, because only a trainer that trains knows it. A measurement waits while the count
        is too low, so a count that nobody renews could delay it for ever. Without a count a measurement may begin too
        early and fail, which is repeated. A trainer that starts without a failure announces nothing, so a short restart
        keeps the count.
        """
        try:
            previous = self._registry.trainer_status()
        except InvalidRecord:
            previous = None  # a damaged record; nothing is decided from the record
        except StoreError as error:
            log.warning("status not written: %s", error)
            return
        fields = previous.model_dump() if previous else {"step": 0, "shards": 0, "trained_tokens": 0}
        fields |= {"held_out_requests": None, "message": message, "phase": TrainerPhase.STARTING, "updated": utc_now()}
        self.write(TrainerStatus.model_validate(fields))


class Progress:
    """Writes the status of a trainer whose training is on: every few seconds while it trains, less often at rest."""

    def __init__(
        self,
        registry: PodRegistry,
        learning: LearningState,
        candidates: Candidates,
        policy: TrainingPolicy = DEFAULT_POLICY,
        deaths: ShardDeaths | None = None,
    ) -> None:
        self._deaths = deaths or ShardDeaths()
        self._writer, self._learning, self._candidates = StatusWriter(registry), learning, candidates
        self._policy = policy
        self._reported: TrainerStatus | None = None
        self.refused = False
        """Whether the store refused the last status."""
        self._next_write = 0.0
        self._acceptance_length: float | None = None
        self._message = ""
        self.pending_shards = 0
        """Shards of new traces that wait to be trained."""

    def record_comparison(self, comparison: Comparison) -> None:
        """Put the result of a comparison into the next status, and make that status due now."""
        if comparison.held_out is not None:
            self._acceptance_length = comparison.held_out.acceptance_length
        self._message = comparison.message
        self._next_write = 0.0

    def _quarantine_note(self) -> str:
        """A sentence that names the shards in quarantine. Empty when there are none."""
        quarantined = self._deaths.quarantined
        if not quarantined:
            return ""
        return (
            f"{len(quarantined)} shard(s) killed the trainer twice and are quarantined, the last one {quarantined[-1]}"
        )

    def record_vocabulary_change(self, change: VocabularyChange) -> None:
        """Put a change of the vocabulary map into the next status, and make that status due now."""
        self._message = str(change)
        self._next_write = 0.0

    def report(self, phase: TrainerPhase) -> None:
        """Write the status when it is due, or when the phase changed. While the trainer waits, every change counts.

        A status that the store refuses while the trainer waits is due again at once.
        """
        trains, reported, policy = phase is TrainerPhase.TRAINING, self._reported, self._policy
        is_due = reported is None or phase != reported.phase or time.monotonic() >= self._next_write
        if trains and not is_due:
            return
        status = self._status(phase)
        if reported is not None and not is_due and status == reported.model_copy(update={"updated": status.updated}):
            return
        self.refused = not self._writer.write(status)
        self._reported = status
        interval = policy.status_interval_seconds if trains else policy.idle_status_interval_seconds
        self._next_write = time.monotonic() + (0.0 if self.refused and not trains else interval)

    def _status(self, phase: TrainerPhase) -> TrainerStatus:
        learning, last = self._learning, self._candidates.last
        return TrainerStatus(
            lineage=last.lineage,
            phase=phase,
            step=learning.session.steps,
            shards=learning.ledger.total,
            trained_tokens=learning.trained_tokens,
            loss=learning.session.loss,
            held_out_acceptance_length=self._acceptance_length,
            held_out_requests=learning.held_out.count,
            last_registered=last.version,
            pending_shards=self.pending_shards,
            message="; ".join(part for part in (self._quarantine_note(), self._message) if part),
            updated=utc_now(),
        )
