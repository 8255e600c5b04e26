"""Moves a session's state to another vocabulary map: the head's rows are reordered, and all else stays.

Invariant: a token that both maps hold keeps its weights, moments and average, bit for bit, so the draft scores it as
before. A new token starts as in the initial draft: from the target's own head, with moments of zero and its average at
its weights. The optimizer's step count is shared, so the first steps of such a row are shorter than the
learning rate, never longer. With the next step the average starts again (:mod:`aurora_runtime.training.optim.ema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.optim.ema import EMA_OFFSET, EMA_STEPS
from aurora_runtime.training.optim.session import MOMENTS, VOCABULARY

HEAD: Final = "lm_head.weight"


def remapped(state: Mapping[str, Tensor], ids: Tensor, target_head: Tensor) -> dict[str, Tensor]:
    """``state``, as :meth:`Session.state` returns it, for a draft whose tokens are the target ids ``ids``.

    Shapes: ``ids`` ``[draft_vocab]``, ``target_head`` ``[vocab, H]``.
    """
    old_row = torch.full((target_head.shape[0],), -1, dtype=torch.int64)
    old_row[state[VOCABULARY]] = torch.arange(ids.numel())
    source = old_row[ids]
    shared = source >= 0
    head_rows = {f"weight.{HEAD}": target_head[ids].to(state[f"weight.{HEAD}"].dtype)}
    other_keys = (f"{part}.{HEAD}" for part in (*MOMENTS, EMA_OFFSET))
    head_rows |= {key: torch.zeros_like(state[key]) for key in other_keys if key in state}
    for key, rows in head_rows.items():
        rows[shared] = state[key][source[shared]]
    restarted_average = {EMA_STEPS: torch.tensor(0)} if EMA_STEPS in state else {}
    return {**state, **head_rows, VOCABULARY: ids, **restarted_average}
