"""A session's state under another vocabulary map: the head's rows change places, and nothing else changes.

Invariant: what was learnt of a token that both maps hold stays, bit for bit, weights, moments and mean alike, so the
draft scores it as before; a token that comes in starts as on day 0, from the target's own head, with moments of zero
and its mean at its weights. The optimizer's step count is shared, so such a row's first steps are shorter than the
rate, never longer. With the next step the mean begins anew (``average``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.optim.ema import AGE, DISTANCE
from aurora_runtime.training.optim.session import MOMENTS, VOCABULARY

HEAD: Final = "lm_head.weight"


def remapped(state: Mapping[str, Tensor], ids: Tensor, head: Tensor) -> dict[str, Tensor]:
    """``state``, as :meth:`Session.state` gives it, with a draft whose tokens are the target's ``ids``
    ``[draft_vocab]``; ``head`` ``[vocab, H]`` is the target's."""
    place = torch.full((head.shape[0],), -1, dtype=torch.int64)
    place[state[VOCABULARY]] = torch.arange(ids.numel())
    source = place[ids]
    shared = source >= 0
    rows = {f"weight.{HEAD}": head[ids].to(state[f"weight.{HEAD}"].dtype)}
    beside = (f"{part}.{HEAD}" for part in (*MOMENTS, DISTANCE))
    rows |= {key: torch.zeros_like(state[key]) for key in beside if key in state}
    for key, fresh in rows.items():
        fresh[shared] = state[key][source[shared]]
    return {**state, **rows, VOCABULARY: ids} | ({AGE: torch.tensor(0)} if AGE in state else {})
