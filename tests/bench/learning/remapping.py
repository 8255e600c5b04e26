"""The vocabulary map as the trainer keeps it, for whoever trains without one."""

from __future__ import annotations

from collections.abc import Sequence

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.model.target import TargetModel
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.vocabulary_coverage import VocabularyChange, VocabularyCoverage


class Remapping:
    """Counts what ``session`` learns from, and changes its map as ``Trainer`` does between two shards."""

    def __init__(self, session: Session, target: TargetModel) -> None:
        self._session, self._head = session, target.head
        self._tally = VocabularyCoverage(target.identity.vocab_size, target.special_tokens)

    def after(self, learnt: Sequence[Example], held_out: Sequence[Example]) -> VocabularyChange | None:
        """Count the shard that was ``learnt``; change the map, and say so, when ``held_out`` shows that to be worth
        it."""
        self._tally.add(learnt)
        change = self._tally.review(self._session.vocabulary, held_out)
        if change is not None:
            self._session.restore(remapped(self._session.state(), change.ids, self._head))
            print(change, flush=True)
        return change
