"""What a batch costs: one number from all nodes of its trees.

``L = sum_d w_d (E_accept[loss] + lambda E_discard[loss])``, ``w_d`` being ``step_decay**d`` normalised over depths: the
expectations run over the nodes of depth ``d`` on the followed paths, and over those behind a rejection, whose teacher
is what the target would have said after them (Aurora, arXiv 2602.06932, has one pair of expectations; the decay is
EAGLE-3's training-time test). Invariant: a depth without discarded nodes adds nothing for them, and the others weigh
no more because of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aurora_runtime.training.batch import Batch
from aurora_runtime.training.draft import Draft
from aurora_runtime.training.head import head_loss
from aurora_runtime.training.recipe import Recipe
from aurora_runtime.training.unroll import unroll


def batch_loss(draft: Draft, batch: Batch, recipe: Recipe) -> Tensor:
    """The scalar loss of ``batch``; matrix products in bf16, losses in float32."""
    device = batch.weight.device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        outputs = unroll(draft, batch.trunk, batch.levels)
    scale = sum(recipe.step_decay**depth for depth in range(len(outputs)))
    rows, states, weights = [], [], []
    for depth, (out, row) in enumerate(zip(outputs, batch.rows, strict=True)):
        for part, share in ((slice(batch.roots), 1.0), (slice(batch.roots, None), recipe.discard)):
            chosen = row[:, part] >= 0
            taught = row[:, part][chosen]
            weight = batch.weight[taught]
            weights.append(share * recipe.step_decay**depth / scale * weight / weight.sum().clamp(min=1e-6))
            rows.append(taught)
            states.append(out[:, part][chosen])
    return head_loss(
        draft.norm(torch.cat(states)),
        draft.lm_head.weight,
        recipe.loss,
        batch.teacher[torch.cat(rows)],
        torch.cat(weights),
        torch.bfloat16,
    )
