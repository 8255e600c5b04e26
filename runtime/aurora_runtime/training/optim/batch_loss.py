"""The loss of a batch: one number from all nodes of its trees.

``L = sum_d w_d (E_accept[loss] + lambda E_discard[loss])``, where ``w_d`` is ``step_decay**d`` normalised over depths.
The first expectation runs over the path nodes of depth ``d``. The second runs over the rejected nodes of that depth,
whose targets are the distributions that the target would have continued with. (Aurora, arXiv 2602.06932, has one pair
of expectations; the decay is EAGLE-3's training-time test.) Invariant: a depth without rejected nodes adds nothing for
them, and the other depths weigh no more because of it.
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
    draft: DraftModel, batch: Batch, recipe: Recipe, all_reduce_sum: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """The scalar loss of ``batch``: matrix products in bf16 where the device has them, losses in float32.

    Where ranks share a step, ``all_reduce_sum`` turns a sum over this batch into the sum over all batches of the step.
    Every expectation is then taken over all batches, and the ranks' losses add up to the step's.
    """
    return loss_of_outputs(draft, draft_outputs(draft, batch), batch, recipe, all_reduce_sum)


def draft_outputs(draft: DraftModel, batch: Batch) -> list[Tensor]:
    """The draft's outputs ``[B, N[d], H]`` at each depth."""
    with autocast(batch.weight.device.type):
        return unroll(draft, batch.trunk, batch.levels)


def loss_of_outputs(
    draft: DraftModel,
    outputs: Sequence[Tensor],
    batch: Batch,
    recipe: Recipe,
    all_reduce_sum: Callable[[Tensor], Tensor],
) -> Tensor:
    """The loss of :func:`batch_loss`, given the :func:`draft_outputs`."""
    decays = [recipe.step_decay**depth for depth in range(len(outputs))]
    shares = [share * decay / sum(decays) for decay in decays for share in (1.0, recipe.discard)]
    weights = torch.split(batch.weight[batch.trained_row], list(batch.trained_counts))
    chosen = torch.cat([out.flatten(0, 1) for out in outputs]).index_select(0, batch.trained_node)
    sums = all_reduce_sum(torch.stack([weight.sum() for weight in weights])).clamp(min=1e-6)
    row_weights = [share * weight / total for share, weight, total in zip(shares, weights, sums.unbind(), strict=True)]
    return head_loss(
        draft.norm(chosen),
        draft.lm_head.weight,
        draft.lm_head.weight.detach().to(product_dtype(batch.weight.device.type)),
        recipe.loss,
        batch.targets[batch.trained_row],
        torch.cat(row_weights),
    )
