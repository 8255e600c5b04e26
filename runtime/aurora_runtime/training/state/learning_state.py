"""Everything that training changes and that a stored trainer state holds.

Invariant: between two shards only this state decides how training continues. So a trainer restored from it learns what
an uninterrupted trainer would have learnt. Nothing is saved between two batches of a shard. A stop in the middle of a
shard drops the shard's remaining fresh batches.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.replay_budget import ReplayBudget
from aurora_runtime.training.data.shards import Shard, ShardReader
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.state import replay_restore
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_runtime.training.vocabulary_coverage import VocabularyCoverage


@dataclass
class LearningState:
    """The session, what is kept of the traces, and which shards were consumed."""

    session: Session
    ledger: ShardLedger
    replay: ReplayBuffer
    budget: ReplayBudget
    held_out: HeldOutSet
    coverage: VocabularyCoverage
    trained_tokens: int  # fresh positions, each counted once

    def hold_out(self, shard: Shard) -> None:
        """Add the shard's held-out requests to the held-out set."""
        for request, examples, measurable in shard.held_out:
            self.held_out.add(request, examples, shard.key, measurable=measurable)

    def drop(self, shards: Collection[str]) -> None:
        """Drop all examples of ``shards``, whose traces may not be kept. Positions that they trained still count.

        The replay budget shrinks to what the buffer still holds.
        """
        self.replay.drop(shards)
        self.budget.credit(0, self.replay.roots)
        self.held_out.drop(shards)

    @property
    def change_count(self) -> tuple[int, int]:
        """A value that differs after any change worth saving. Shards may be consumed and retired without a step."""
        return self.session.steps, self.ledger.changes

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a stored state, with memory of their own. Rounds the session's live moments and average."""
        return {
            **self.session.state(),
            **self.coverage.state(),
            **self.budget.state(),
            **replay_restore.spans_state(self.replay, self.held_out, self.ledger.consumed),
        }

    def restore(self, tensors: dict[str, Tensor], reader: ShardReader) -> None:
        """The inverse of :meth:`tensors`. Reads the shards of the replay buffer and of the held-out set again."""
        replay_restore.restore(tensors, self.ledger.consumed, reader, self.replay, self.held_out)
        self.session.restore(tensors)
        self.coverage.restore(tensors)
        self.budget.restore(tensors, self.replay.roots)
