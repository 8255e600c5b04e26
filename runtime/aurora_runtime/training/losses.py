"""How far the draft is from the target at one position: small functions over ``[N, V]`` with one signature.

Invariant: every loss is exact for what the capture kept, and bounded where it kept nothing. A :class:`Teacher` row is
the target's distribution at a verify node, in draft token ids. Three parts of its mass are treated apart:

- ``probs``: the captured top-k tokens that the draft vocabulary holds: compared token by token;
- ``rest``: the mass outside the captured top k, whose tokens are unknown: compared as one bucket with the draft's mass
  outside those tokens. Merging outcomes never increases a divergence (data-processing inequality), so a bucketed loss
  is a lower bound of the full one, and equal to it when ``rest`` is 0;
- the mass of captured tokens *outside* the draft vocabulary: the draft cannot say them, so it is left out, and the row
  weighs less by just that mass (a row whose target speaks outside the vocabulary for certain weighs nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

_TINY: Final = 1e-12
_SMALL: Final = 1e-6
"""Least mass outside the captured tokens: below it, float32 sums of the others are noise."""
_MASKED: Final = -1e4
"""Stands for minus infinity among logits, and stays finite in products with a zero mass."""


@dataclass(frozen=True)
class Teacher:
    """The target's distribution at ``N`` positions; see the module's text for the three parts of its mass."""

    ids: Tensor  # [N, K] int64: draft token ids, -1 where the token is outside the draft vocabulary
    probs: Tensor  # [N, K] float32: the target's probability, 0 where the id is -1
    rest: Tensor  # [N] float32

    def __getitem__(self, rows: slice | Tensor) -> Teacher:
        return Teacher(self.ids[rows], self.probs[rows], self.rest[rows])


Loss = Callable[[Tensor, Teacher], Tensor]
"""``(logits [N, V], teacher) -> [N]`` in float32, differentiable in the logits, never negative."""


def _known(logits: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the teacher's tokens ``[N, K]`` (masked where the id is -1) and of all others ``[N]``."""
    logits = logits.float()
    inside = teacher.ids >= 0
    index = teacher.ids.clamp(min=0)
    known = logits.gather(1, index).masked_fill(~inside, _MASKED)
    # Ids of -1 must mask nothing: they are pointed at a token that is masked anyway, or at none.
    others = logits.scatter(1, _safe(index, inside), _MASKED) if bool(inside.any()) else logits
    rest = others.logsumexp(-1)
    total = torch.logaddexp(known.logsumexp(-1), rest)
    return known - total[:, None], rest - total


def _safe(index: Tensor, inside: Tensor) -> Tensor:
    first = index.gather(1, inside.to(torch.int8).argmax(-1, keepdim=True))
    return torch.where(inside, index, first)


def _entropy_term(p: Tensor) -> Tensor:
    return p * p.clamp(min=_TINY).log()


class _ForwardKL(torch.autograd.Function):
    """The gradient by hand: with ``S = sum p + r`` it is ``S q_i - p_i`` at captured tokens and
    ``q_v (S - r / q_rest)`` elsewhere, one pass over ``[N, V]`` instead of autograd's ten."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Teacher) -> Tensor:
        q = logits.softmax(-1, dtype=torch.float32)
        inside = teacher.ids >= 0
        known = q.gather(1, teacher.ids.clamp(min=0)) * inside
        rest = (1 - known.sum(-1)).clamp(min=_SMALL)
        p, r = teacher.probs, teacher.rest
        total = p.sum(-1) + r
        gap = _entropy_term(p).sum(-1) + _entropy_term(r) - _entropy_term(total)
        ctx.save_for_backward(q, known, rest)
        ctx.teacher, ctx.dtype, ctx.inside = teacher, logits.dtype, inside
        return (gap - (p * known.clamp(min=_TINY).log()).sum(-1) - r * rest.log()).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        q, known, rest = ctx.saved_tensors
        p, r = ctx.teacher.probs, ctx.teacher.rest
        total = (p.sum(-1) + r)[:, None]
        elsewhere = total - (r / rest)[:, None]
        grad = q.mul(elsewhere * outputs[0][:, None])
        # Captured tokens get what turns "elsewhere" into their own gradient; ids of -1 add nothing at token 0.
        change = (known * (total - elsewhere) - p * ctx.inside) * outputs[0][:, None]
        grad.scatter_add_(1, ctx.teacher.ids.clamp(min=0), change)
        return grad.to(ctx.dtype), None


def forward_kl(logits: Tensor, teacher: Teacher) -> Tensor:
    """``sum_i p_i log(p_i / q_i) + r log(r / q_rest)``: KL(target || draft) with one bucket for the unknown rest
    (Aurora, arXiv 2602.06932: the loss on accepted positions; the bucket is ours).

    Where captured mass lies outside the draft vocabulary, p is conditioned on the vocabulary and the row is scaled by
    the mass inside.
    """
    value: Tensor = _ForwardKL.apply(logits, teacher)
    return value


def cross_entropy(logits: Tensor, teacher: Teacher) -> Tensor:
    """``-log q(argmax p)``; 0 where the target's most likely token is outside the draft vocabulary.

    The most likely token is the row's first: capture sorts by probability. Greedy verification asks for nothing else.
    """
    logits = logits.float()
    first = teacher.ids[:, :1]
    inside = first[:, 0] >= 0
    chosen = logits.gather(1, first.clamp(min=0))[:, 0]
    return torch.where(inside, logits.logsumexp(-1) - chosen, 0.0)


def total_variation(logits: Tensor, teacher: Teacher) -> Tensor:
    """``sum_i (p_i - q_i)+ + (r - q_rest)+``: one minus the expected acceptance under speculative sampling
    (Leviathan et al. 2023, eq. 3), less the mass that the draft vocabulary cannot reach; the rest as one bucket."""
    known, rest = _known(logits, teacher)
    p, r = teacher.probs, teacher.rest
    return (p - known.exp()).clamp(min=0).sum(-1) + (r - rest.exp()).clamp(min=0)


LOSSES: Final[dict[str, Loss]] = {
    "forward_kl": forward_kl,
    "cross_entropy": cross_entropy,
    "total_variation": total_variation,
}
