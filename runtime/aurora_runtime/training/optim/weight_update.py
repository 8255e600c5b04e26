"""From gradients to weights: clipping, AdamW and the average that is served.

Invariant: the fused kernel and torch compute the same update up to rounding, so a lineage may change between them.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from aurora_runtime.kernels.kernel_switch import Kernel, runs_fused
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.shadowed_linear import ShadowedLinear
from aurora_runtime.training.optim.ema import WeightEma

MOMENTS: Final = ("exp_avg", "exp_avg_sq")
"""Names of Adam's moments in the optimizer's state."""


def update_weights(
    draft: DraftModel, optimizer: torch.optim.AdamW, ema: WeightEma | None, norm: Tensor, max_norm: float, number: int
) -> None:
    """Take the optimizer's step ``number`` (from 1), and add the new weights to the average.

    Args:
        norm: the norm of all gradients. They are scaled down to ``max_norm`` where they exceed it.
    """
    if runs_fused(Kernel.ADAMW_AVERAGE, norm.device):
        _update_fused(draft, optimizer, ema, norm, max_norm, number)
        return
    torch.nn.utils.clip_grads_with_norm_(draft.parameters(), max_norm, norm, foreach=True)
    optimizer.step()
    if ema:
        ema.update()


@torch.no_grad()
def _update_fused(
    draft: DraftModel, optimizer: torch.optim.AdamW, ema: WeightEma | None, norm: Tensor, max_norm: float, number: int
) -> None:
    from aurora_runtime.kernels.adamw_average import AdamWStep, update_parameter  # needs Triton

    (group,) = optimizer.param_groups
    average_weight = ema.next_weight() if ema else 0.0
    step = AdamWStep(number, group["lr"], group["betas"], group["eps"], max_norm, average_weight)
    averages = list(ema.draft.parameters()) if ema else [None] * len(list(draft.parameters()))
    shadowed = {module.weight: module for module in draft.modules() if isinstance(module, ShadowedLinear)}
    for weight, average in zip(draft.parameters(), averages, strict=True):
        if weight.grad is None:
            continue
        owner = shadowed.get(weight)
        shadow = owner.shadow_buffer() if owner else None
        moments = _moments(optimizer, weight)
        update_parameter(weight, weight.grad.contiguous(), moments, norm, step, average=average, shadow=shadow)
        if owner and shadow is not None:
            owner.keep_shadow(shadow)


def _moments(optimizer: torch.optim.AdamW, weight: Tensor) -> tuple[Tensor, Tensor]:
    state = optimizer.state[weight]
    for moment in MOMENTS:
        if moment not in state:
            state[moment] = torch.zeros_like(weight)
    return state[MOMENTS[0]], state[MOMENTS[1]]
