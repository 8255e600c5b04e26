"""From gradients to weights: clipping, AdamW and the average that is served."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.optim.ema import WeightEma

MOMENTS: Final = ("exp_avg", "exp_avg_sq")
"""Names of Adam's moments in the optimizer's state."""


def update_weights(
    draft: DraftModel, optimizer: torch.optim.AdamW, ema: WeightEma | None, norm: Tensor, max_norm: float
) -> None:
    """Take a step of the optimizer, and add the new weights to the average.

    Args:
        norm: the norm of all gradients. They are scaled down to ``max_norm`` where they exceed it.
    """
    torch.nn.utils.clip_grads_with_norm_(draft.parameters(), max_norm, norm, foreach=True)
    optimizer.step()
    if ema:
        ema.update()
