"""How far the draft is from the target at one position: small functions over ``[N, V]`` with one signature.

Every loss is a formula over the outcomes of :func:`buckets`: the captured tokens
``i`` (target ``p_i``, draft ``q_i``) and the rest (``r``, ``q_rest``), so that a top-k-truncated teacher is treated
exactly, as one outcome for all that was not kept; with k = V the bucket is empty and the loss is the full one.

Invariant: a loss is never negative, and 0 where the draft says what the target says; mass of the target outside the
draft vocabulary conditions p on the vocabulary and scales the row by the mass inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.objective.target_distribution import TINY, TargetDistribution, buckets

Loss = Callable[[Tensor, TargetDistribution], Tensor]
"""``(logits [N, V], teacher) -> [N]`` in float32, differentiable in the logits, never negative."""

FLOOR: Final = 1e-6
"""Least probability of an outcome where the draft's is divided by it: half precision, in which capture keeps the
target's, tells less from 0."""


def _entropy_term(p: Tensor) -> Tensor:
    return p * p.clamp(min=TINY).log()


def forward_kl(logits: Tensor, teacher: TargetDistribution) -> Tensor:
    """KL(target || draft) = ``sum_i p_i log(p_i / q_i) + r log(r / q_rest)``: cover what the target may say.

    The divergence of knowledge distillation (Hinton et al. 2015, arXiv 1503.02531) and of Aurora on accepted and on
    rejected positions (arXiv 2602.06932).
    """
    known, rest = buckets(logits, teacher)
    p, r = teacher.probs, teacher.rest
    own = _entropy_term(p).sum(-1) + _entropy_term(r) - _entropy_term(teacher.mass())
    return (own - (p * known).sum(-1) - r * rest).clamp(min=0)


def reverse_kl(logits: Tensor, teacher: TargetDistribution) -> Tensor:
    """KL(draft || target) = ``sum_i q_i log(q_i / p_i) + q_rest log(q_rest / r)``: say only what the target may say
    (mode seeking; MiniLLM, arXiv 2306.08543; one of Aurora's ablations). Target probabilities below :data:`FLOOR` are
    raised to it, and p is normalised again."""
    known, rest = buckets(logits, teacher)
    inside = teacher.ids >= 0
    # Without a captured token in the vocabulary nothing is told apart, and with all of them there is no rest.
    complete = inside.sum(-1) == logits.shape[-1]
    p = teacher.probs.clamp(min=FLOOR).masked_fill(~inside, 0.0)
    r = torch.where(complete, 0.0, teacher.rest.clamp(min=FLOOR))
    total = p.sum(-1) + r
    gaps = known.exp() * (known - (p / total[:, None]).clamp(min=TINY).log())
    gap = gaps.masked_fill(~inside, 0.0).sum(-1)
    gap = gap + torch.where(complete, 0.0, rest.exp() * (rest - (r / total).clamp(min=TINY).log()))
    return teacher.mass() * gap.clamp(min=0)


def cross_entropy(logits: Tensor, teacher: TargetDistribution) -> Tensor:
    """``-log q(argmax p)``; 0 where the target's most likely token is outside the draft vocabulary.

    The most likely token is the row's first: capture sorts by probability. Greedy verification asks for nothing else
    (the loss of Medusa's heads, arXiv 2401.10774). 0 only where the draft is certain.
    """
    known, _ = buckets(logits, teacher)
    return torch.where(teacher.ids[:, 0] >= 0, -known[:, 0], 0.0)


def total_variation(logits: Tensor, teacher: TargetDistribution) -> Tensor:
    """TV = ``sum_i (p_i - q_i)+ + (r - q_rest)+``: one minus the expected acceptance ``sum_v min(p_v, q_v)`` under
    speculative sampling (Leviathan et al., arXiv 2211.17192, Theorem 3.5; as a distillation loss: DistillSpec, arXiv
    2310.08461), less the mass that the draft vocabulary cannot reach."""
    known, rest = buckets(logits, teacher)
    p, r = teacher.probs, teacher.rest
    return (p - known.exp()).clamp(min=0).sum(-1) + (r - rest.exp()).clamp(min=0)


def log_acceptance(logits: Tensor, teacher: TargetDistribution) -> Tensor:
    """``-log sum_v min(p_v, q_v)``: the logarithm of the expected acceptance, whose gradient does not fade where hardly
    anything is accepted, as total variation's does (LK losses, arXiv 2602.23881)."""
    known, rest = buckets(logits, teacher)
    mass = teacher.mass().clamp(min=TINY)
    p, r = teacher.probs / mass[:, None], teacher.rest / mass
    accepted = torch.minimum(p, known.exp()).sum(-1) + torch.minimum(r, rest.exp())
    return teacher.mass() * -accepted.clamp(TINY, 1.0).log()


LOSSES: Final[dict[str, Loss]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "cross_entropy": cross_entropy,
    "total_variation": total_variation,
    "log_acceptance": log_acceptance,
}
