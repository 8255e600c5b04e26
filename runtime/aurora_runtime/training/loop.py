"""The loop: fresh shards first, replay beside them, candidates when they earned it, state at shard boundaries.

Invariant: between two shards everything that matters is in ``_save``'s record; between two batches nothing is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.errors import Interrupted
from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.held_out import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer, pack
from aurora_runtime.training.data.replay_budget import ReplayBudget
from aurora_runtime.training.data.shards import ShardReader
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.progress import Progress
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import replay_restore, trainer_state
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.state.retention import Retention
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_runtime.training.vocabulary_coverage import VocabularyCoverage
from aurora_store import Registry

log = logging.getLogger(__name__)
POLL_S: Final = 2.0
SHARDS_A_LOOK: Final = 64
"""A long backlog is looked at anew now and then: what has no room in the store goes unread."""
SAVE_S: Final = 20.0
SAVE_SHARE: Final = 0.1
IDLE_SAVE_SHARE: Final = 0.5
"""A save follows the last one after :data:`SAVE_S`, or later where saves would take more than this share of the time.
Who waits for traces has the time, and a kill meanwhile would cost what was learnt before."""


@dataclass
class Trainer:
    """Trains one lineage until asked to stop."""

    registry: Registry
    ledger: ShardLedger
    reader: ShardReader
    memory: ReplayBuffer
    held_out: HeldOutSet
    tally: VocabularyCoverage
    owed: ReplayBudget
    head: Tensor  # [vocab, H], the target's: where tokens that come into the map start from
    session: Session
    candidates: Candidates
    progress: Progress
    janitor: OrphanCleanup
    retention: Retention
    patience: Retrier
    epoch: int  # of the last stored state
    trained_tokens: int
    _saved_at: tuple[int, int] = (0, 0)
    _save_ended: float = -math.inf
    _save_took: float = 0.0

    def run(self) -> None:
        """Train until asked to stop; then save."""
        self._saved_at = self._now_at()
        try:
            self._loop()
        except Interrupted as stop:
            log.info("%s", stop)
        self._save()

    def _loop(self) -> None:
        while not self.patience.stopping:
            pending = self.retention.pending()
            if pending:
                for place, key in enumerate(pending[:SHARDS_A_LOOK]):
                    if not self.patience.stopping:
                        self.reader.expect(pending[place:])
                        self._shard(key)
                        self._between(TrainerPhase.TRAINING)
            elif self._may_replay():
                until = time.monotonic() + POLL_S
                while time.monotonic() < until and self._may_replay() and not self.patience.stopping:
                    self._replay(beside=False)
                self._between(TrainerPhase.TRAINING)
            else:
                self._between(TrainerPhase.WAITING_FOR_TRACES)
                self.patience.sleep(POLL_S)

    def _shard(self, key: str) -> None:
        shard = self.reader.read(key)
        for request, examples in shard.held_out if shard else ():
            self.held_out.add(request, examples, key)
        train = list(shard.train) if shard else []
        self.memory.add(train, key)
        self.tally.add(train)
        recipe = self.session.recipe
        order = torch.randperm(len(train), generator=self.session.generator).tolist()
        for group in pack([train[i] for i in order], recipe.batch_slots):
            if self.patience.stopping:
                break
            self._step(group)
            fresh = sum(example.fresh for example in group)
            self.trained_tokens += fresh
            # Of a long prompt only the end is there to be trained again.
            self.owed.earn(sum(min(example.fresh, example.slots) for example in group), self.memory.slots)
            for _ in range(recipe.replay):
                if self.owed.any(beside=True):
                    self._replay(beside=True)
        self.ledger.consume(key)

    def _replay(self, *, beside: bool) -> None:
        recipe = self.session.recipe
        examples = self.memory.sample(recipe.batch_slots, self.session.generator, recipe.choice)
        self._step(examples)
        self.owed.spend(sum(example.slots for example in examples), beside=beside)

    def _step(self, examples: Sequence[Example]) -> None:
        if examples:
            self.session.step(examples)
        self._tick(TrainerPhase.TRAINING)

    def _may_replay(self) -> bool:
        return len(self.memory) > 0 and self.owed.any(beside=False)

    def _between(self, phase: TrainerPhase) -> None:
        if self.candidates.due(self.trained_tokens, self.session.steps):
            outcome = self.patience.call(
                "offering a candidate",
                lambda: self.candidates.offer(self.session, self.held_out, self.trained_tokens),
            )
            self.progress.evaluated(outcome)
        self._review_map()
        share = IDLE_SAVE_SHARE if phase is TrainerPhase.WAITING_FOR_TRACES else SAVE_SHARE
        if time.monotonic() >= self._save_ended + max(SAVE_S, self._save_took / share):
            self._save()
        self.patience.call("deleting orphans", lambda: self.janitor.tick(self._stopping))
        self.retention.tick(self._stopping)
        self._tick(phase)

    def _review_map(self) -> None:
        """Change the vocabulary map when that is worth it: after a comparison, which saw the map before, and then not
        before the next."""
        change = self.tally.review(self.session.vocabulary, self.held_out.newest_first())
        if change is None:
            return
        self.session.restore(remapped(self.session.state(), change.ids, self.head))
        self.progress.remapped(change)
        log.info("%s", change)

    def _stopping(self) -> bool:
        return self.patience.stopping

    def _tick(self, phase: TrainerPhase) -> None:
        self.progress.tick(
            phase, self.session, shards=self.ledger.total, tokens=self.trained_tokens, last=self.candidates.last
        )

    def _now_at(self) -> tuple[int, int]:
        """Changes with whatever a save is for: shards may be consumed, and retired, without a step."""
        return self.session.steps, self.ledger.changes

    def _save(self) -> None:
        at = self._now_at()
        if at == self._saved_at:
            return
        began = time.monotonic()
        record, data = trainer_state.build(
            self.session,
            self.ledger,
            self.tally,
            self.owed,
            replay_restore.state(self.memory, self.held_out, self.ledger.consumed),
            epoch=self.epoch + 1,
            lineage=self.candidates.lineage,
            trained_tokens=self.trained_tokens,
            last=self.candidates.last,
        )
        self.patience.call("saving the trainer's state", lambda: self.registry.put_trainer_state(record, data))
        self.retention.saved(record)
        self.epoch += 1
        self._saved_at = at
        self._save_ended = time.monotonic()
        self._save_took = self._save_ended - began
