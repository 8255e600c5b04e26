"""The target's distribution at one position, as far as capture kept it, and the draft's distribution beside it.

Invariant: captured tokens are compared token by token, all uncaptured tokens are one outcome, and tokens outside the
draft's vocabulary are left out. So a row has three parts of the target's mass:

- ``probs``: the captured top-k tokens that the draft's vocabulary holds;
- ``uncaptured_mass``: the mass outside the captured top k, whose tokens are unknown. It is one bucket, compared with
  the draft's mass outside the captured tokens. Merging outcomes never increases a divergence (data-processing
  inequality), so a bucketed loss is a lower bound of the full one. Both are equal when all tokens are captured (k = V);
- the mass of captured tokens *outside* the draft's vocabulary. The draft cannot propose them, so they are left out, and
  the row weighs less by just that mass. A row whose target is certain of such a token weighs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

TINY: Final = 1e-12
"""Stands for a probability of 0 inside a logarithm."""


@dataclass(frozen=True)
class TargetDistribution:
    """The target's distribution at ``N`` positions; the module's text explains the three parts of its mass."""

    ids: Tensor  # [N, K] int64: draft token ids, most likely first, -1 where outside the draft's vocabulary
    probs: Tensor  # [N, K] float32: the target's probability, 0 where the id is -1
    uncaptured_mass: Tensor  # [N] float32

    def __getitem__(self, rows: slice | Tensor) -> TargetDistribution:
        return TargetDistribution(self.ids[rows], self.probs[rows], self.uncaptured_mass[rows])

    def mass(self) -> Tensor:
        """The mass that the draft can reach, ``[N]``."""
        return self.probs.sum(-1) + self.uncaptured_mass


class _BucketLogprobs(torch.autograd.Function):
    """Logits -> log-probabilities of the captured tokens and of the uncaptured bucket.

    With ``G`` the gradients in the log-probabilities, the gradient in logit ``v`` is ``G_v - q_v S`` at a captured
    token and ``q_v (G_u / q_u - S)`` elsewhere, ``u`` being the uncaptured bucket and ``S`` the sum of all ``G``. So
    the backward pass reads ``[N, V]`` once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        q = logits.softmax(-1, dtype=torch.float32)
        inside = ids >= 0
        # Ids of -1 point at a captured token of their row, or at none, so that they take nothing from the bucket.
        column = ids.gather(1, inside.to(torch.int8).argmax(-1, keepdim=True)).clamp(min=0)
        column = torch.where(inside, ids, column)
        gathered = q.gather(1, column)
        uncaptured = q.scatter_(1, column, gathered.masked_fill(inside.any(-1, keepdim=True), 0.0)).sum(-1)
        q.scatter_(1, column, gathered)
        captured = gathered.masked_fill(~inside, 0.0)
        ctx.save_for_backward(q, captured, uncaptured, column, inside)
        ctx.dtype = logits.dtype
        return captured.clamp(min=TINY).log(), uncaptured.clamp(min=TINY).log()

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> tuple[Tensor | None, ...]:
        q, captured, uncaptured, column, inside = ctx.saved_tensors
        captured_grad, uncaptured_grad = output_grads[0].masked_fill(~inside, 0.0), output_grads[1]
        total = captured_grad.sum(-1) + uncaptured_grad
        elsewhere = (uncaptured_grad / uncaptured.clamp(min=TINY) - total)[:, None]
        grad = q.mul(elsewhere)
        # Captured tokens get the difference between "elsewhere" and their own gradient; ids of -1 add nothing.
        grad.scatter_add_(1, column, captured_grad - captured * (total[:, None] + elsewhere))
        return grad.to(ctx.dtype), None


def bucket_logprobs(logits: Tensor, target: TargetDistribution) -> tuple[Tensor, Tensor]:
    """The draft's log-probabilities in the target's buckets, from logits ``[N, V]``.

    Returns those of the captured tokens ``[N, K]`` (of :data:`TINY` where the id is -1) and of all other tokens
    together ``[N]``; float32, differentiable in the logits.
    """
    captured, uncaptured = _BucketLogprobs.apply(logits, target.ids)
    return captured, uncaptured
