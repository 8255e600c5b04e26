"""A draft whose weights are the exponential moving average of one in training.

The average remembers a fixed share of the steps made so far: neither the untrained draft, nor so long that it trails
behind the stream, and it need not know how many steps there will be. It never teaches: training goes on with the raw
weights, and the average is what would be evaluated and exported.
"""

from __future__ import annotations

import copy
from typing import Final

import torch

from aurora_runtime.training.draft import Draft

SHARE: Final = 0.1
"""Of the steps so far; a step's weight has fallen to 1/e after so many more."""


class Average:
    """Starts as a copy of ``draft``, whose embedding it shares."""

    def __init__(self, draft: Draft) -> None:
        self.draft: Draft = copy.deepcopy(draft, {id(draft.embedding): draft.embedding})
        self.draft.requires_grad_(False)
        self._steps = 0

    @torch.no_grad()
    def follow(self, draft: Draft) -> None:
        """Take in what a step made of ``draft``."""
        self._steps += 1
        weight = 1 / max(1.0, SHARE * self._steps)
        for mine, theirs in zip(self.draft.parameters(), draft.parameters(), strict=True):
            mine.lerp_(theirs, weight)
