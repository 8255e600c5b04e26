"""What the device lookup computes, in plain torch: the kernels' specification, and the lookup of other devices.

Letters in shapes: ``B`` requests of the batch, ``R`` rows of the history, ``L`` tokens that a row can hold, ``N``
proposed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.serving.speculation.lookup_index import LONGEST_MATCH, SUFFIX_LENGTHS

POSITION_BITS: Final = 21


@dataclass(frozen=True)
class DeviceProposals:
    """Proposals on the device. A request without a match has a match length of 0, and tokens of 0."""

    tokens: Tensor  # [B, N] int64
    match_lengths: Tensor  # [B] int32


def reference_proposals(tokens: Tensor, lengths: Tensor, rows: Tensor, count: int) -> DeviceProposals:
    """The proposals for the requests in ``rows``. Shapes: tokens ``[R, L + 1]``, lengths ``[R]``, rows ``[B]``."""
    max_tokens = tokens.shape[1] - 1
    texts, ends = tokens[rows.long()], lengths[rows.long()].long()  # [B, L + 1], [B]
    position = torch.arange(max_tokens, device=tokens.device)
    equal = (position < ends[:, None]) & (ends <= max_tokens)[:, None]  # [B, L]
    matched = torch.zeros_like(equal, dtype=torch.long)
    rank = torch.zeros_like(matched)  # how many of the suffix lengths match
    for back in range(1, LONGEST_MATCH + 1):
        mine = texts.gather(1, (ends - back).clamp(0, max_tokens)[:, None])
        theirs = texts[:, (position - back).clamp(min=0)]
        equal = equal & (ends >= back)[:, None] & (position >= back) & (theirs == mine)
        matched += equal
        if back in SUFFIX_LENGTHS:
            rank += equal
    key = ((rank << POSITION_BITS) + position).where(rank > 0, 0)
    best, start = key.max(1)
    found = best > 0
    following = (ends - start).clamp(min=1)
    offset = torch.arange(count, device=tokens.device)
    proposed = texts.gather(1, (start[:, None] + offset % following[:, None]).clamp(max=max_tokens)).long()
    match_lengths = matched.gather(1, start[:, None]).squeeze(1)
    return DeviceProposals(proposed.where(found[:, None], 0), match_lengths.where(found, 0).int())
