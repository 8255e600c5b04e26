"""What a batch costs: one number from all nodes of its trees.

``L = sum_d w_d (E_accept[loss] + lambda E_discard[loss])``, ``w_d`` being ``step_decay**d`` normalised over depths: the
expectations run over the nodes of depth ``d`` on the followed paths, and over those behind a rejection, whose teacher
is what the target would have said after them (Aurora, arXiv 2602.06932, has one pair of expectations; the decay is
EAGLE-3's training-time test). Invariant: a depth without discarded nodes adds nothing for them, and the others weigh
no more because of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aurora_runtime.precision import autocast, product_dtype
from aurora_runtime.training.data.batch import Batch
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.objective.head_loss import head_loss
from aurora_runtime.training.optim.recipe import Recipe


def batch_loss(
    draft: DraftModel, batch: Batch, recipe: Recipe, total: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """The scalar loss of ``batch``; matrix products in bf16 where the device has them, losses in float32.

    ``total`` makes sums over this batch sums over all batches of the step, where processes share one: every
    expectation is then taken over all of them, and their losses add up to the step's.
    """
    return taught_loss(draft, states(draft, batch), batch, recipe, total)


def states(draft: DraftModel, batch: Batch) -> list[Tensor]:
    """The draft's outputs ``[B, N[d], H]`` at each depth."""
    with autocast(batch.weight.device.type):
        return unroll(draft, batch.trunk, batch.levels)


def taught_loss(
    draft: DraftModel, outputs: Sequence[Tensor], batch: Batch, recipe: Recipe, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """What :func:`states` costs."""
    scale = sum(recipe.step_decay**depth for depth in range(len(outputs)))
    rows, chosen, weights, shares = [], [], [], []
    for depth, (out, row) in enumerate(zip(outputs, batch.rows, strict=True)):
        for part, share in ((slice(batch.roots), 1.0), (slice(batch.roots, None), recipe.discard)):
            present = row[:, part] >= 0
            rows.append(row[:, part][present])
            chosen.append(out[:, part][present])
            weights.append(batch.weight[rows[-1]])
            shares.append(share * recipe.step_decay**depth / scale)
    sums = total(torch.stack([weight.sum() for weight in weights])).clamp(min=1e-6)
    parts = [share * weight / own for share, weight, own in zip(shares, weights, sums.unbind(), strict=True)]
    return head_loss(
        draft.norm(torch.cat(chosen)),
        draft.lm_head.weight,
        recipe.loss,
        batch.teacher[torch.cat(rows)],
        torch.cat(parts),
        product_dtype(batch.weight.device.type),
    )
