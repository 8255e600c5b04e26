"""The weights that are served: a running mean of the weights in training.

A stream has no end towards which the rate could fall, and at a constant rate the weights never settle: they move about
the place that the traffic draws them to, and their mean is nearer to it than they are (Polyak and Juditsky 1992;
measured in docs/results/learning.md). The mean is exponential. It looks back over a share of the steps since it began,
so that what it began with is soon forgotten (as in Karras et al., arXiv 2312.02696, section 3), and at most over a
fixed number, so that it follows a shift of the traffic. With another vocabulary map it begins anew: a mean would trail
behind the rows that come in, which nothing was learnt of yet; for some steps what is served is then little calmer than
the weights.

Invariants: it never teaches, training goes on with the weights themselves; it is stored as its distance from them,
which is small, in bf16, and saving rounds the live one too, so that a resumed session continues identically.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.model.draft import DraftModel

DISTANCE: Final = "mean"
"""Prefix of its tensors in a state, beside those of the moments."""
AGE: Final = "mean_steps"
"""In a state: steps since the mean began."""
SHARE: Final = 0.2
"""Of the steps since it began, while that is less than the horizon."""


class WeightEma:
    """The mean of ``draft`` over ``horizon`` steps: the weight of a step has then fallen to 1/e. Shares the draft's
    embedding, which torch's ``AveragedModel`` would copy: the target's whole ``[vocab, H]``."""

    def __init__(self, draft: DraftModel, horizon: int) -> None:
        self.draft: DraftModel = copy.deepcopy(draft, {id(draft.embedding): draft.embedding})
        self.draft.requires_grad_(False)
        self._trained, self._horizon, self._age = draft, horizon, 0

    @torch.no_grad()
    def follow(self) -> None:
        """Take in what a step made of the draft."""
        self._age += 1
        weight = 1 / min(self._horizon, max(1.0, SHARE * self._age))
        for _, mine, theirs in self._pairs():
            mine.lerp_(theirs, weight)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Its distance from the draft, on the CPU, and its age; the live mean is rounded to what is returned."""
        tensors = {AGE: torch.tensor(self._age)}
        for name, mine, theirs in self._pairs():
            distance = (mine - theirs).to(torch.bfloat16)
            mine.copy_(theirs + distance)
            tensors[f"{DISTANCE}.{name}"] = distance.cpu()
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state`, beside the draft's restored weights; from a state that has no mean it begins at
        the weights."""
        self._age = int(tensors.get(AGE, 0))
        for name, mine, theirs in self._pairs():
            distance = tensors.get(f"{DISTANCE}.{name}")
            mine.copy_(theirs if distance is None else theirs + distance.to(theirs.device))

    def _pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for (name, theirs), mine in zip(self._trained.named_parameters(), self.draft.parameters(), strict=True):
            yield name, mine, theirs
