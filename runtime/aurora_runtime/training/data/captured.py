"""The target's next-token distributions as capture kept them: top-k probabilities and the uncaptured mass.

All ids are the target's, so that examples outlive a change of the draft's vocabulary map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import RequestTrace

_ROUNDING: Final = 2.0**-5
"""How far the probabilities of a row may be from a distribution. Rounding to 16 bits changes them by less."""


@dataclass(frozen=True)
class CapturedDistributions:
    """``N`` distributions with their ``K`` most likely tokens, most likely first."""

    target_ids: Tensor  # [N, K] int32, -1 where there is no token
    target_probs: Tensor  # [N, K] float16
    uncaptured_mass: Tensor  # [N] float16: probability outside the K tokens

    def __len__(self) -> int:
        return self.target_ids.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> CapturedDistributions:
        """The chosen rows. A slice shares memory with this object."""
        return CapturedDistributions(self.target_ids[rows], self.target_probs[rows], self.uncaptured_mass[rows])

    def clone(self) -> CapturedDistributions:
        """A copy with memory of its own."""
        return CapturedDistributions(self.target_ids.clone(), self.target_probs.clone(), self.uncaptured_mass.clone())

    @classmethod
    def empty(cls, length: int, k: int) -> CapturedDistributions:
        """``length`` rows without any token."""
        return cls(
            torch.full((length, k), -1, dtype=torch.int32),
            torch.zeros(length, k, dtype=torch.float16),
            torch.zeros(length, dtype=torch.float16),
        )

    def put(self, rows: Tensor, other: CapturedDistributions) -> None:
        """Overwrite ``rows`` with those of ``other``."""
        self.target_ids[rows] = other.target_ids
        self.target_probs[rows] = other.target_probs
        self.uncaptured_mass[rows] = other.uncaptured_mass


def captured_at(trace: RequestTrace, nodes: Tensor, vocab_size: int) -> CapturedDistributions:
    """The target's distributions at verify ``nodes`` ``[N]`` of ``trace``.

    Raises :class:`TraceFormatError` for ids outside the target's vocabulary, and for a row that names a token twice, or
    whose probabilities are invalid or sum to more than 1. One such row would spoil every batch with it. A row whose
    probabilities sum to less than 1 is kept.
    """
    ids, mass = trace.top_ids[nodes], trace.uncaptured_mass[nodes].float()
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise TraceFormatError("top-k ids outside the target's vocabulary")
    probs = trace.top_logprobs[nodes].float().exp()
    # A number that is NaN compares as false.
    if not bool(((probs.sum(-1) + mass <= 1 + _ROUNDING) & (mass >= -_ROUNDING)).all()):
        raise TraceFormatError("captured probabilities are not those of a distribution")
    stored = probs.to(torch.float16)
    ids = _without_repetitions(ids.to(torch.int32), stored)
    return CapturedDistributions(ids, stored, mass.clamp(0, 1).to(torch.float16))


def _without_repetitions(ids: Tensor, probs: Tensor) -> Tensor:
    """``ids`` ``[N, K]``, with -1 in place of a token that its row names again.

    Capture names a token again, with probability 0, where a grammar masks nearly all tokens. Raises
    :class:`TraceFormatError` when the repeated token has a probability.
    """
    in_order = np.sort(ids.numpy(), axis=-1)  # a sixth of the time that torch takes
    if not bool((in_order[:, 1:] == in_order[:, :-1]).any()):
        return ids
    order = ids.argsort(dim=-1, stable=True)
    grouped = ids.gather(-1, order)
    repeats = torch.zeros_like(ids, dtype=torch.bool)
    repeats[:, 1:] = grouped[:, 1:] == grouped[:, :-1]
    repeated = torch.zeros_like(repeats).scatter_(-1, order, repeats)
    if bool((probs[repeated] > 0).any()):
        raise TraceFormatError("a token stands twice among the target's likely ones")
    return ids.masked_fill(repeated, -1)
