"""Saves the trainer's state, taken between two shards, while training goes on.

The loop only takes a snapshot: a copy in host memory. A thread encodes the snapshot, computes its digest and uploads
it.

Invariants: at most one save is in flight, so epochs are stored in order. Retention learns of a state only after the
state is stored, and in the loop's thread, because it is not thread-safe. An error of a save is raised in the loop's
thread. The first state of a process is stored before its first version, so the loop waits for that save.

Two saves are an interval apart. A state without changes is not saved again.
"""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

from aurora_protocol.training_records import TrainerState
from aurora_runtime.errors import Interrupted
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import TrainingPolicy
from aurora_runtime.training.state import trainer_state
from aurora_runtime.training.state.learning_state import LearningState
from aurora_runtime.training.state.retention import Retention

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Save:
    """A save in flight."""

    change_count: tuple[int, int]  # of the learning state when the snapshot was taken
    stored: Future[tuple[TrainerState, float]]  # the record, and when it was stored, by time.monotonic()


class StateSaver:
    """Writes the learning state under the next epoch, and informs retention of the saved state."""

    def __init__(
        self,
        registry: PodRegistry,
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
        self._in_flight: _Save | None = None

    def save_first(self) -> None:
        """Save and wait for it, unless this process has stored a state already.

        Without a stored state, a restarted trainer would train the last version on the version's own shards again.
        """
        self._finish()
        if self._save_ended == -math.inf:
            self._begin()
            self._finish()

    def save_if_due(self) -> None:
        """Begin a save if the interval has passed and none is in flight.

        Raises the error of the save before, if that failed.
        """
        if self._in_flight is not None and not self._in_flight.stored.done():
            return
        self._finish()
        if time.monotonic() >= self._save_ended + self._policy.save_interval_seconds:
            self._begin()

    def save(self) -> None:
        """Store the state as it is now, unless nothing changed since the last save, and wait for that.

        A save that was interrupted while it was in flight is superseded.
        """
        try:
            self._finish()
        except Interrupted as interrupted:
            log.info("%s", interrupted)
        self._begin()
        self._finish()

    def _begin(self) -> None:
        """Take a snapshot and begin to store it, unless nothing changed."""
        change_count = self._learning.change_count
        if change_count == self._saved_change_count:
            return
        snapshot = trainer_state.take_snapshot(
            self._learning, epoch=self.epoch + 1, lineage=self._candidates.lineage_number
        )
        self._in_flight = _Save(change_count, Future())
        # An executor's threads would be joined at exit, so a slow store would delay the exit.
        Thread(target=self._store, args=(snapshot, self._in_flight.stored), name="save", daemon=True).start()

    def _store(self, snapshot: trainer_state.StateSnapshot, stored: Future[tuple[TrainerState, float]]) -> None:
        try:
            record, data = snapshot.encode()
            self._retrier.call("saving the trainer's state", lambda: self._registry.put_trainer_state(record, data))
            stored.set_result((record, time.monotonic()))
        except BaseException as error:  # any error is raised again by _finish()
            stored.set_exception(error)

    def _finish(self) -> None:
        """Wait for the save in flight, if there is one, and take note of it; raises its error."""
        save, self._in_flight = self._in_flight, None
        if save is None:
            return
        record, self._save_ended = save.stored.result()
        self._retention.state_saved(record)
        self.epoch = record.epoch
        self._saved_change_count = save.change_count
