"""Evaluates the draft when that is due, and offers it as a candidate when it gained enough."""

from __future__ import annotations

from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.progress import Progress
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.learning_state import LearningState


class Offering:
    """Calls :class:`Candidates` between two shards, and retries while the store is unreachable."""

    def __init__(self, learning: LearningState, candidates: Candidates, progress: Progress, retrier: Retrier) -> None:
        self._learning, self.candidates, self._progress, self._retrier = learning, candidates, progress, retrier

    def due(self) -> bool:
        """Whether the draft should be compared with the last version now."""
        return self.candidates.due(self._learning.trained_tokens, self._learning.session.trained_positions)

    def offer(self) -> None:
        """Compare the draft with the last version, register it if it gained, and report the result."""
        learning, candidates = self._learning, self.candidates
        comparison = self._retrier.call(
            "offering a candidate",
            lambda: candidates.offer(learning.session, learning.held_out, learning.trained_tokens),
        )
        self._progress.record_comparison(comparison)
