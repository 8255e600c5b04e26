"""How many positions may be replayed: fresh positions credit the budget, and replay debits it.

Beside each fresh batch up to ``Recipe.replay`` batches are replayed. The remaining credit is replayed while the trainer
would wait for traces. Invariants: a position is trained ``Recipe.passes`` times on average at most, the first time
included. The budget never exceeds ``passes - 1`` times the positions in the buffer, so that after a long backlog the
trainer does not overtrain on the few examples that the buffer kept. The budget is saved with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

_BUDGET: Final = "replay.budget"


class ReplayBudget:
    """Counts the positions that may be replayed in all, and how many of these beside fresh batches."""

    def __init__(self, *, replay: int, passes: int) -> None:
        """``replay`` and ``passes`` as in :class:`~aurora_runtime.training.optim.recipe.Recipe`."""
        self._per_fresh = passes - 1 if replay else 0
        self._beside_per_fresh = min(replay, self._per_fresh)
        self._positions = self._beside_positions = 0

    def credit(self, fresh: int, buffered: int) -> None:
        """Count ``fresh`` positions that were trained once, while the buffer holds ``buffered`` positions."""
        self._positions = min(self._positions + self._per_fresh * fresh, self._per_fresh * buffered)
        self._beside_positions = min(self._beside_positions + self._beside_per_fresh * fresh, self._positions)

    def debit(self, positions: int, *, beside_fresh: bool) -> None:
        """Count ``positions`` that were replayed. A batch may overdraw the budget. The next one then waits."""
        self._positions -= positions
        if beside_fresh:
            self._beside_positions -= positions

    def can_replay(self, *, beside_fresh: bool) -> bool:
        """Whether a batch may be replayed, either ``beside_fresh`` batches or while there is nothing fresh."""
        return self._positions > 0 and (self._beside_positions > 0 or not beside_fresh)

    def state(self) -> dict[str, Tensor]:
        """The tensors that outlive the process."""
        return {_BUDGET: torch.tensor([self._positions, self._beside_positions])}

    def restore(self, tensors: Mapping[str, Tensor], buffered: int) -> None:
        """The inverse of :meth:`state`, as far as the present recipe and ``buffered`` positions allow."""
        positions, beside = (int(x) for x in tensors[_BUDGET])
        self._positions = min(positions, self._per_fresh * buffered)
        self._beside_positions = min(beside, self._positions)
