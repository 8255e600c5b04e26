"""The trainer's progress for people and for the custom resource's status: the one record that is overwritten.

Invariant: telling costs little and never stops the telling process: a write that fails is dropped, the next one says
more. Nothing is decided from it, and it holds no user text.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from aurora_protocol.draft_records import Registration
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_runtime.training.candidates import Evaluation
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.vocabulary_coverage import VocabularyChange
from aurora_store import Registry
from aurora_store.errors import StoreError

INTERVAL_S: Final = 4.0
IDLE_INTERVAL_S: Final = 15.0
log = logging.getLogger(__name__)


class Progress:
    """Writes :class:`TrainerStatus` every few seconds."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._phase: TrainerPhase | None = None
        self._next = 0.0
        self._accept_length: float | None = None
        self._coverage: float | None = None
        self._message = ""

    def evaluated(self, outcome: Evaluation) -> None:
        """Take over what an evaluation showed; the next status says it."""
        if outcome.candidate is not None:
            self._accept_length, self._coverage = outcome.candidate.accept_length, outcome.candidate.coverage
        self._message = outcome.message
        self._next = 0.0

    def remapped(self, change: VocabularyChange) -> None:
        """Take over a change of the vocabulary map; the next status says it."""
        self._coverage, self._message = change.after, str(change)
        self._next = 0.0

    def tick(self, phase: TrainerPhase, session: Session, *, shards: int, tokens: int, last: Registration) -> None:
        """Write the status when it is time, or when the phase changed."""
        if phase == self._phase and time.monotonic() < self._next:
            return
        self.write(
            TrainerStatus(
                lineage=last.lineage,
                phase=phase,
                step=session.steps,
                shards=shards,
                trained_tokens=tokens,
                loss=session.loss,
                held_out_acceptance_length=self._accept_length,
                vocabulary_coverage=self._coverage,
                last_registered=last.version,
                message=self._message,
                updated=utc_now(),
            )
        )

    def announce(self, phase: TrainerPhase, **told: Any) -> None:
        """Say now what a trainer does that does not train; what was reached before stays in the status."""
        try:
            before = self._registry.trainer_status()
        except StoreError as error:
            log.warning("status not written: %s", error)
            return
        known = before.model_dump() if before else {"step": 0, "shards": 0, "trained_tokens": 0}
        self.write(TrainerStatus.model_validate(known | told | {"phase": phase, "updated": utc_now()}))

    def write(self, status: TrainerStatus) -> None:
        """Write ``status`` now."""
        try:
            self._registry.put_trainer_status(status)
        except StoreError as error:
            log.warning("status not written: %s", error)
        self._phase = status.phase
        busy = status.phase is TrainerPhase.TRAINING
        self._next = time.monotonic() + (INTERVAL_S if busy else IDLE_INTERVAL_S)
