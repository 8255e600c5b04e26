"""How often what was learnt is learnt again: fresh positions earn replay, and replay spends it.

Beside a fresh batch up to ``Recipe.replay`` batches are replayed; what positions earn beyond that is replayed while the
trainer would wait for traces. Invariants: a position is trained ``Recipe.passes`` times on average at most, the first
included; what is owed is never more than the memory could be asked for, so that a trainer that was busy for long does
not wear out the little that it remembers; what is owed is saved with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

_OWED: Final = "owed"


class ReplayBudget:
    """Positions that may be replayed: at all, and of these beside fresh batches."""

    def __init__(self, *, replay: int, passes: int) -> None:
        self._again = passes - 1 if replay else 0
        self._beside_again = min(replay, self._again)
        self._positions = self._beside = 0

    def earn(self, fresh: int, held: int) -> None:
        """``fresh`` positions were trained once, and the memory holds ``held``."""
        self._positions = min(self._positions + self._again * fresh, self._again * held)
        self._beside = min(self._beside + self._beside_again * fresh, self._positions)

    def spend(self, positions: int, *, beside: bool) -> None:
        """They were replayed. A batch may be larger than what was left: the next one waits for that."""
        self._positions -= positions
        if beside:
            self._beside -= positions

    def any(self, *, beside: bool) -> bool:
        """Whether a batch may be replayed, ``beside`` a fresh one or for want of one."""
        return self._positions > 0 and (self._beside > 0 or not beside)

    def state(self) -> dict[str, Tensor]:
        """What outlives the process."""
        return {_OWED: torch.tensor([self._positions, self._beside])}

    def restore(self, tensors: Mapping[str, Tensor], held: int) -> None:
        """The inverse of :meth:`state`, as far as the recipe of now and a memory that holds ``held`` positions allow; a
        state from before this was counted owes nothing."""
        if _OWED in tensors:
            positions, beside = (int(x) for x in tensors[_OWED])
            self._positions = min(positions, self._again * held)
            self._beside = min(beside, self._positions)
