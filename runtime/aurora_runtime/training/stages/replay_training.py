"""Trains again on examples of the replay buffer, as far as the replay budget allows."""

from __future__ import annotations

import time

from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.training.progress import Progress
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.learning_state import LearningState


class ReplayTraining:
    """Replays batches beside fresh ones, and while the trainer would wait for traces."""

    def __init__(self, learning: LearningState, progress: Progress, retrier: Retrier) -> None:
        self._learning, self._progress, self._retrier = learning, progress, retrier

    def beside_fresh_batch(self) -> None:
        """Replay up to ``Recipe.replay`` batches after a fresh one."""
        for _ in range(self._learning.session.recipe.replay):
            if self._learning.budget.can_replay(beside_fresh=True):
                self._replay_batch(beside_fresh=True)

    def possible_while_waiting(self) -> bool:
        """Whether there is budget for replay while there are no fresh shards."""
        return len(self._learning.replay) > 0 and self._learning.budget.can_replay(beside_fresh=False)

    def while_waiting(self, seconds: float) -> None:
        """Replay for ``seconds``, or until the budget is spent or the trainer is asked to stop."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.possible_while_waiting() and not self._retrier.stopping:
            self._replay_batch(beside_fresh=False)

    def _replay_batch(self, *, beside_fresh: bool) -> None:
        learning, session = self._learning, self._learning.session
        recipe = session.recipe
        examples = learning.replay.sample(recipe.batch_bound, session.generator)
        if examples:
            session.step(examples)
        self._progress.report(TrainerPhase.TRAINING)
        learning.budget.debit(sum(example.root_count for example in examples), beside_fresh=beside_fresh)
