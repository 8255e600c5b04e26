"""What the device lookup computes, in plain torch: the kernels' specification, and the lookup of other devices.

Letters in shapes: ``B`` requests of the batch, ``R`` rows of the history, ``L`` tokens that a row can hold, ``N``
proposed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

POSITION_BITS: Final = 21
ROW_BITS: Final = 16
MAX_ROWS: Final = 1 << ROW_BITS
MAX_MATCH: Final = 1 << 16


@dataclass(frozen=True)
class MatchBounds:
    """A match shorter than ``shortest`` tokens is none. Beyond ``longest`` tokens nothing is compared."""

    shortest: int
    longest: int

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest < MAX_MATCH:
            raise ValueError(f"matches of {self.shortest} to {self.longest} tokens cannot be looked up")


@dataclass(frozen=True)
class DeviceProposals:
    """Proposals on the device. Tokens beyond ``available`` are 0."""

    tokens: Tensor  # [B, N] int64
    available: Tensor  # [B] int32: proposed tokens, 0 where nothing matched
    match_lengths: Tensor  # [B] int32: matched tokens, 0 where nothing matched


def match_key(matched: Tensor, own: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """A number that orders matches: the longer, then the request's own, then the higher row, then the later one."""
    return (((matched.long() * 2 + own.long()) << ROW_BITS) + row << POSITION_BITS) + position


def reference_proposals(
    tokens: Tensor, lengths: Tensor, rows: Tensor, count: int, *, bounds: MatchBounds, all_rows: bool
) -> DeviceProposals:
    """The proposals for the requests in ``rows``. Shapes: tokens ``[R, L + 1]``, lengths ``[R]``, rows ``[B]``.

    The search is brute force: memory and time grow with ``B * R * L``.
    """
    max_tokens = tokens.shape[1] - 1
    rows, lengths = rows.long(), lengths.long()
    ends = lengths[rows]
    position = torch.arange(max_tokens, device=tokens.device)
    all_sources = torch.arange(tokens.shape[0], device=tokens.device)
    searched = all_sources[None].expand(rows.shape[0], -1) if all_rows else rows[:, None]  # [B, S]
    equal = (position < lengths[searched][..., None]) & (lengths[searched] <= max_tokens)[..., None]
    equal &= (ends <= max_tokens)[:, None, None]
    matched = torch.zeros_like(equal, dtype=torch.long)  # [B, S, L]
    for back in range(1, bounds.longest + 1):
        mine = tokens[rows, (ends - back).clamp(0, max_tokens)]
        theirs = tokens[searched][..., (position - back).clamp(min=0)]
        comparable = (ends >= back)[:, None, None] & (position >= back)
        equal = equal & comparable & (theirs == mine[:, None, None])
        matched += equal
    own = (searched == rows[:, None])[..., None]
    keys = match_key(matched, own, searched[..., None], position).where(matched >= bounds.shortest, 0)
    best = keys.flatten(1).amax(1)  # [B]

    found = best > 0
    start = best & ((1 << POSITION_BITS) - 1)
    source = (best >> POSITION_BITS) & (MAX_ROWS - 1)
    following = (lengths[source] - start).clamp(min=1)
    available = torch.where(source == rows, count, following.clamp(max=count)).where(found, 0)
    offset = torch.arange(count, device=tokens.device)
    proposed = tokens[source[:, None], start[:, None] + offset % following[:, None]].long()
    return DeviceProposals(
        proposed.where(offset < available[:, None], 0),
        available.int(),
        (best >> (ROW_BITS + POSITION_BITS + 1)).int(),
    )
