"""Changes the vocabulary map as the trainer does, for benches that train without a trainer."""

from __future__ import annotations

from collections.abc import Sequence

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.target.target_model import TargetModel
from aurora_runtime.training.vocabulary_coverage import VocabularyChange, VocabularyCoverage


class VocabularyRemapper:
    """Counts the tokens that a session learns from, and changes the session's map between two shards."""

    def __init__(self, session: Session, target: TargetModel) -> None:
        self._session, self._head = session, target.head
        self._coverage = VocabularyCoverage(target.identity.vocab_size, target.special_tokens)

    def after_shard(self, learned: Sequence[Example], held_out: Sequence[Example]) -> VocabularyChange | None:
        """Count the tokens of ``learned``, the last shard. Change the map when a new map covers more of ``held_out``.

        Returns:
            The change, which is also printed; None when the map stays.
        """
        self._coverage.add(learned)
        change = self._coverage.review(self._session.vocabulary, held_out)
        if change is not None:
            self._session.restore(remapped(self._session.state(), change.ids, self._head))
            print(change, flush=True)
        return change
