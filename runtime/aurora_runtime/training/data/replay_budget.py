"""How many roots may be replayed: fresh roots credit the budget, and replay debits it.

Beside each fresh batch up to ``Recipe.replay`` batches are replayed. The remaining credit is replayed while the trainer
would wait for traces. Invariants: on average a root is trained at most ``Recipe.passes`` times, the first time
included, however long the prompt before it is and whoever computed the prompt's states. The budget never exceeds
``passes - 1`` times the roots in the buffer, so that after a long backlog the trainer does not overtrain on the few
examples that the buffer kept. The budget is saved with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

BUDGET: Final = "replay.budget"


class ReplayBudget:
    """Counts the roots that may be replayed in all, and how many of these beside fresh batches."""

    def __init__(self, *, replay: int, passes: int) -> None:
        """``replay`` and ``passes`` as in :class:`~aurora_runtime.training.optim.recipe.Recipe`."""
        self._max_replays = passes - 1 if replay else 0
        self._max_replays_beside_fresh = min(replay, self._max_replays)
        self._credit = self._credit_beside_fresh = 0

    def credit(self, fresh: int, buffered: int) -> None:
        """Count ``fresh`` roots that were trained once, while the buffer holds ``buffered`` roots."""
        self._credit = min(self._credit + self._max_replays * fresh, self._max_replays * buffered)
        self._credit_beside_fresh = min(
            self._credit_beside_fresh + self._max_replays_beside_fresh * fresh, self._credit
        )

    def debit(self, roots: int, *, beside_fresh: bool) -> None:
        """Count ``roots`` that were replayed. A batch may overdraw the budget. The next one then waits."""
        self._credit -= roots
        if beside_fresh:
            self._credit_beside_fresh -= roots

    def can_replay(self, *, beside_fresh: bool) -> bool:
        """Whether a batch may be replayed, either ``beside_fresh`` batches or while there is nothing fresh."""
        return self._credit > 0 and (self._credit_beside_fresh > 0 or not beside_fresh)

    def state(self) -> dict[str, Tensor]:
        """The tensors that outlive the process."""
        return {BUDGET: torch.tensor([self._credit, self._credit_beside_fresh])}

    def restore(self, tensors: Mapping[str, Tensor], buffered: int) -> None:
        """The inverse of :meth:`state`, as far as the present recipe and ``buffered`` roots allow."""
        roots, beside = (int(x) for x in tensors[BUDGET])
        self._credit = min(roots, self._max_replays * buffered)
        self._credit_beside_fresh = min(beside, self._credit)
