"""The target's word at one position, as far as capture kept it, and the draft's word beside it.

Invariant: what was captured is compared token by token, what was not is one outcome, and what the draft cannot say is
left out. So a row has three parts of the target's mass:

- ``probs``: the captured top-k tokens that the draft vocabulary holds;
- ``rest``: the mass outside the captured top k, whose tokens are unknown: one bucket, beside the draft's mass outside
  those tokens. Merging outcomes never increases a divergence (data-processing inequality), so a bucketed loss is a
  lower bound of the full one, and equal to it when ``rest`` is 0 and all tokens are captured (k = V);
- the mass of captured tokens *outside* the draft vocabulary: the draft cannot say them, so they are left out, and the
  row weighs less by just that mass (a row whose target speaks outside the vocabulary for certain weighs nothing).
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
    """The target's distribution at ``N`` positions; see the module's text for the three parts of its mass."""

    ids: Tensor  # [N, K] int64: draft token ids, most likely first, -1 where outside the draft vocabulary
    probs: Tensor  # [N, K] float32: the target's probability, 0 where the id is -1
    rest: Tensor  # [N] float32

    def __getitem__(self, rows: slice | Tensor) -> TargetDistribution:
        return TargetDistribution(self.ids[rows], self.probs[rows], self.rest[rows])

    def mass(self) -> Tensor:
        """What the draft could say of it, ``[N]``."""
        return self.probs.sum(-1) + self.rest


class _Buckets(torch.autograd.Function):
    """With ``G`` the gradients in the log-probabilities, the gradient in logit ``v`` is ``G_v - q_v S`` at a captured
    token and ``q_v (G_rest / q_rest - S)`` elsewhere, ``S`` being the sum of all ``G``: one pass over ``[N, V]``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        q = logits.softmax(-1, dtype=torch.float32)
        inside = ids >= 0
        # Ids of -1 are pointed at a captured token of their row, or at none, so that they take nothing from the rest.
        place = ids.gather(1, inside.to(torch.int8).argmax(-1, keepdim=True)).clamp(min=0)
        place = torch.where(inside, ids, place)
        there = q.gather(1, place)
        rest = q.scatter_(1, place, there.masked_fill(inside.any(-1, keepdim=True), 0.0)).sum(-1)
        q.scatter_(1, place, there)
        known = there.masked_fill(~inside, 0.0)
        ctx.save_for_backward(q, known, rest, place, inside)
        ctx.dtype = logits.dtype
        return known.clamp(min=TINY).log(), rest.clamp(min=TINY).log()

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        q, known, rest, place, inside = ctx.saved_tensors
        at_known, at_rest = outputs[0].masked_fill(~inside, 0.0), outputs[1]
        total = at_known.sum(-1) + at_rest
        elsewhere = (at_rest / rest.clamp(min=TINY) - total)[:, None]
        grad = q.mul(elsewhere)
        # Captured tokens get what turns "elsewhere" into their own gradient; ids of -1 add nothing.
        grad.scatter_add_(1, place, at_known - known * (total[:, None] + elsewhere))
        return grad.to(ctx.dtype), None


def buckets(logits: Tensor, teacher: TargetDistribution) -> tuple[Tensor, Tensor]:
    """The draft's log-probabilities of the teacher's tokens ``[N, K]`` (of :data:`TINY` where the id is -1) and of all
    other tokens together ``[N]``, from logits ``[N, V]``; float32, differentiable in the logits."""
    known, rest = _Buckets.apply(logits, teacher.ids)
    return known, rest
