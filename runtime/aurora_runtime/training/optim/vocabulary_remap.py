"""Moves a session's state to another vocabulary map: kept rows move, new rows come from the target's head.

Invariant: a token that both maps hold keeps the weights, moments and average of the given state, bit for bit. So the
draft scores it as before. The given state was rounded for saving, so the kept values are the rounded ones.

A new token starts as in the initial draft: from the target's own head, with moments of zero and its average at its
weights. The optimizer's step count is shared, so Adam does not correct the bias of the new moments. When the
optimizer has taken many steps already, a new row's first step under a constant gradient is 0.45 learning rates per
weight. Its ninth step passes 1.0, and its steps peak at 1.10 near the twentieth. Whatever the gradients are, no step
exceeds 1.165 learning rates (Cauchy-Schwarz, for betas of 0.9 and 0.95).

The averages are kept only until the next step, which sets each average to its weight and so restarts averaging
(:mod:`aurora_runtime.training.optim.ema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.optim.ema import EMA_OFFSET, EMA_STEPS
from aurora_runtime.training.optim.session import VOCABULARY
from aurora_runtime.training.optim.weight_update import MOMENTS

HEAD: Final = "lm_head.weight"


def remapped(state: Mapping[str, Tensor], ids: Tensor, target_head: Tensor) -> dict[str, Tensor]:
    """``state``, as :meth:`Session.state` returns it, for a draft whose tokens are the target ids ``ids``.

    Shapes: ``ids`` ``[draft_vocab]``, ``target_head`` ``[vocab, H]``.
    """
    old_row = torch.full((target_head.shape[0],), -1, dtype=torch.int64)
    old_row[state[VOCABULARY]] = torch.arange(ids.numel())
    source = old_row[ids]
    shared = source >= 0
    head_weight = target_head[ids].to(state[f"weight.{HEAD}"].dtype)
    zero_keys = [key for key in (f"{part}.{HEAD}" for part in (*MOMENTS, EMA_OFFSET)) if key in state]
    new_head = {f"weight.{HEAD}": head_weight} | {key: torch.zeros_like(state[key]) for key in zero_keys}
    for key, rows in new_head.items():
        rows[shared] = state[key][source[shared]]
    restarted_average = {EMA_STEPS: torch.tensor(0)} if EMA_STEPS in state else {}
    return {**state, **new_head, VOCABULARY: ids, **restarted_average}
