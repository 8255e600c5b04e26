"""The target's next-token distributions as capture kept them: top-k probabilities and the uncaptured mass.

All ids are the target's, so that examples outlive a change of the draft's vocabulary map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import RequestTrace


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

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in vars(self).values())

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

    def put_certain(self, rows: Tensor, tokens: Tensor) -> None:
        """Give each of ``rows`` a distribution with all its mass on one of ``tokens``."""
        self.target_ids[rows, 0] = tokens.to(torch.int32)
        self.target_probs[rows, 0] = 1.0


def captured_at(trace: RequestTrace, nodes: Tensor, vocab_size: int) -> CapturedDistributions:
    """The target's distributions at verify ``nodes`` ``[N]`` of ``trace``.

    Raises :class:`TraceFormatError` for ids outside the target's vocabulary and for values that are not numbers.
    """
    ids = trace.top_ids[nodes].to(torch.int32)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise TraceFormatError("top-k ids outside the target's vocabulary")
    if bool(trace.top_logprobs[nodes].isnan().any()) or bool(trace.uncaptured_mass[nodes].isnan().any()):
        raise TraceFormatError("a captured probability is not a number")
    probs = trace.top_logprobs[nodes].float().exp().to(torch.float16)
    return CapturedDistributions(ids, probs, trace.uncaptured_mass[nodes].to(torch.float16))
