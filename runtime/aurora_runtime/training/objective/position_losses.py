"""Losses of single positions: how far the draft is from the target at each of ``N`` positions.

:mod:`aurora_runtime.training.optim.batch_loss` adds them up and weighs accepted against rejected positions.

Every loss is a formula over the outcomes of :func:`bucket_logprobs`: the captured tokens ``i`` (target ``p_i``, draft
``q_i``) and the uncaptured bucket (``p_u``, ``q_u``). A target that is truncated to its top k therefore needs no
renormalising: all tokens that were not kept are one outcome. With k = V the bucket is empty and the loss is the full
one.

Invariant: a loss is never negative, and 0 where the two distributions agree. Where the target has mass outside the
draft's vocabulary, a loss compares q with ``p / target.mass()`` and multiplies the result by ``target.mass()``. Two
losses differ: :func:`total_variation` compares p as it is, and :func:`cross_entropy` looks at one token only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.objective.target_distribution import TINY, TargetDistribution, bucket_logprobs

Loss = Callable[[Tensor, TargetDistribution], Tensor]
"""``(logits [N, V], target) -> [N]`` in float32, differentiable in the logits, never negative.

A loss is one of :data:`LOSSES`, because ranks receive its name. A loss computes each row by itself, because the rows
come in chunks."""

MIN_TARGET_PROB: Final = 1e-6
"""Lower bound of a target probability that is a divisor. Examples keep target probabilities in half precision,
where smaller ones have hardly a significant digit."""


def _p_log_p(p: Tensor) -> Tensor:
    return p * p.clamp(min=TINY).log()


def forward_kl(logits: Tensor, target: TargetDistribution) -> Tensor:
    """KL(target || draft) = ``sum_i p_i log(p_i / q_i) + p_u log(p_u / q_u)``.

    The draft must cover every token that the target may generate. This is the divergence of knowledge distillation
    (Hinton et al. 2015, arXiv 1503.02531). The Aurora paper (arXiv 2602.06932) uses it for accepted and for rejected
    positions.
    """
    captured, uncaptured = bucket_logprobs(logits, target)
    p, p_u = target.probs, target.uncaptured_mass
    entropy_terms = _p_log_p(p).sum(-1) + _p_log_p(p_u) - _p_log_p(target.mass())
    return (entropy_terms - (p * captured).sum(-1) - p_u * uncaptured).clamp(min=0)


def reverse_kl(logits: Tensor, target: TargetDistribution) -> Tensor:
    """KL(draft || target) = ``sum_i q_i log(q_i / p_i) + q_u log(q_u / p_u)``.

    The draft must propose only tokens that the target may generate: this divergence is mode seeking (MiniLLM, arXiv
    2306.08543; an ablation in the Aurora paper). Target probabilities below :data:`MIN_TARGET_PROB` are raised to that
    value, and p is normalised again.
    """
    captured, uncaptured = bucket_logprobs(logits, target)
    inside = target.ids >= 0
    # A row without captured tokens has the bucket as its only outcome, so its loss is 0. A row that captured the
    # draft's whole vocabulary has no bucket.
    complete = inside.sum(-1) == logits.shape[-1]
    p = target.probs.clamp(min=MIN_TARGET_PROB).masked_fill(~inside, 0.0)
    p_u = torch.where(complete, 0.0, target.uncaptured_mass.clamp(min=MIN_TARGET_PROB))
    total = p.sum(-1) + p_u
    gaps = captured.exp() * (captured - (p / total[:, None]).clamp(min=TINY).log())
    gap = gaps.masked_fill(~inside, 0.0).sum(-1)
    bucket_gap = uncaptured.exp() * (uncaptured - (p_u / total).clamp(min=TINY).log())
    gap = gap + torch.where(complete, 0.0, bucket_gap)
    return target.mass() * gap.clamp(min=0)


def cross_entropy(logits: Tensor, target: TargetDistribution) -> Tensor:
    """``-log q(argmax p)``; 0 where the target's most likely token is outside the draft's vocabulary.

    Where that token is inside, the loss is 0 only if the draft is certain of it. The token is the row's first, because
    capture sorts by probability. Greedy verification asks for no other token. Medusa trains its heads with this loss
    (arXiv 2401.10774).
    """
    captured, _ = bucket_logprobs(logits, target)
    return torch.where(target.ids[:, 0] >= 0, -captured[:, 0], 0.0)


def total_variation(logits: Tensor, target: TargetDistribution) -> Tensor:
    """``sum_i (p_i - q_i)+ + (p_u - q_u)+``: total variation without the mass outside the draft's vocabulary.

    Where the draft's vocabulary holds all of the target's mass, and every token is captured, this is one minus the
    expected acceptance ``sum_v min(p_v, q_v)`` under speculative sampling (Leviathan et al., arXiv 2211.17192, Theorem
    3.5). DistillSpec distils drafts with it (arXiv 2310.08461).
    """
    captured, uncaptured = bucket_logprobs(logits, target)
    p, p_u = target.probs, target.uncaptured_mass
    return (p - captured.exp()).clamp(min=0).sum(-1) + (p_u - uncaptured.exp()).clamp(min=0)


def log_acceptance(logits: Tensor, target: TargetDistribution) -> Tensor:
    """``-log sum_v min(p_v, q_v)``: the logarithm of the expected acceptance.

    Where hardly anything is accepted, the gradient of total variation fades and this one does not (LK losses, arXiv
    2602.23881).
    """
    captured, uncaptured = bucket_logprobs(logits, target)
    mass = target.mass().clamp(min=TINY)
    p, p_u = target.probs / mass[:, None], target.uncaptured_mass / mass
    accepted = torch.minimum(p, captured.exp()).sum(-1) + torch.minimum(p_u, uncaptured.exp())
    return target.mass() * -accepted.clamp(TINY, 1.0).log()


LOSSES: Final[dict[str, Loss]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "cross_entropy": cross_entropy,
    "total_variation": total_variation,
    "log_acceptance": log_acceptance,
}
