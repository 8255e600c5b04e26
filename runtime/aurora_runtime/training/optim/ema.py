"""Served weights are an exponential moving average of the weights in training.

Traffic has no end towards which the learning rate could decay. At a constant rate the weights never settle: they move
around an optimum, and their average is nearer to it than they are (Polyak and Juditsky 1992; measured in
docs/results/learning.md). The averaging window is a share of the steps since the average began, so that its start is
soon forgotten (as in Karras et al., arXiv 2312.02696, section 3). The window is bounded
(``Recipe.max_average_window``), so that the average follows shifts of the traffic.

A new vocabulary map restarts the average: the map brings in untrained rows, which training changes fast, and the former
average would lag behind them. For some steps after that, the average hardly smooths the weights.

Invariants: the average never influences training. It is stored in bf16, as its small offset from the trained
weights. Saving also rounds the live average to the stored value, so that a resumed session continues identically.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.model.draft import DraftModel

EMA_OFFSET: Final = "ema_offset"
"""Prefix of the average's tensors in a state, beside those of the moments."""
EMA_STEPS: Final = "ema_steps"
"""Key in a state: steps since the average began."""
WINDOW_SHARE: Final = 0.2
"""The averaging window as a share of the steps since the average began, up to the maximum window."""


class WeightEma:
    """The average of ``draft``'s weights over a window of at most ``max_window`` steps.

    Once the window has its full length, a step's share of the average falls to 1/e within ``max_window`` steps.

    The draft's embedding, the target's whole ``[vocab, H]`` matrix, is shared. Torch's ``AveragedModel`` would copy it.
    """

    def __init__(self, draft: DraftModel, max_window: int) -> None:
        self.draft: DraftModel = copy.deepcopy(draft, {id(draft.embedding): draft.embedding})
        self.draft.requires_grad_(False)
        self._trained, self._max_window, self._steps = draft, max_window, 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the draft's weights after a step to the average."""
        self._steps += 1
        weight = 1 / min(self._max_window, max(1.0, WINDOW_SHARE * self._steps))
        for _, averaged, trained in self._parameter_pairs():
            averaged.lerp_(trained, weight)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """The offset from the draft and the number of steps, on the CPU.

        Also rounds the live average to the stored value.
        """
        tensors = {EMA_STEPS: torch.tensor(self._steps)}
        for name, averaged, trained in self._parameter_pairs():
            offset = (averaged - trained).to(torch.bfloat16)
            averaged.copy_(trained + offset)
            tensors[f"{EMA_OFFSET}.{name}"] = offset.cpu()
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state`, after the draft's weights were restored.

        From a state without an average, the average starts at the weights.
        """
        self._steps = int(tensors.get(EMA_STEPS, 0))
        for name, averaged, trained in self._parameter_pairs():
            offset = tensors.get(f"{EMA_OFFSET}.{name}")
            averaged.copy_(trained if offset is None else trained + offset.to(trained.device))

    def _parameter_pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, averaged and trained parameter."""
        for (name, trained), averaged in zip(self._trained.named_parameters(), self.draft.parameters(), strict=True):
            yield name, averaged, trained
