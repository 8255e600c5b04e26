"""Prompt lookup on the device: proposes what followed a request's last tokens, without a copy to the host.

Under overlap scheduling the last accepted tokens are on the device when the next round is prepared. A lookup on the
host would wait for them. Here the texts of all requests are device tensors, and two Triton kernels search them.
``lookup_reference.py`` says the same in torch, and is what a device without Triton runs. Both propose what
``lookup_index.py`` proposes with the scope Request.

Never run on a GPU: tests run the kernels in Triton's interpreter, and compile them for sm_80 and sm_90.

Invariants:
- The host never waits: all shapes and grids follow from host values, never from device values.
- The longest matching suffix of ``SUFFIX_LENGTHS`` wins, then the later position.

Letters in shapes: ``B`` requests of the batch, ``R`` rows of the history, ``N`` proposed tokens.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from aurora_runtime.serving.speculation.lookup_index import LONGEST_MATCH, SUFFIX_LENGTHS
from aurora_runtime.serving.speculation.lookup_reference import POSITION_BITS, DeviceProposals, reference_proposals
from aurora_runtime.serving.speculation.token_history import TokenHistory

BLOCK_POSITIONS = 1024
"""Positions that one program of the search compares."""

_POSITION_BITS: Final = tl.constexpr(POSITION_BITS)
_POSITION_MASK: Final = tl.constexpr((1 << POSITION_BITS) - 1)
_LONGEST_SUFFIX: Final = tl.constexpr(max(SUFFIX_LENGTHS))
_SUFFIX_LENGTHS: Final = tl.constexpr(sum(1 << length for length in SUFFIX_LENGTHS))
"""A bit for each suffix length."""
_LONGEST_MATCH: Final = tl.constexpr(LONGEST_MATCH)


def propose(history: TokenHistory, rows: Tensor, count: int, *, longest: int) -> DeviceProposals:
    """Propose ``count`` tokens for each request in ``rows``, ``[B]``, from its own text.

    ``longest`` is an upper bound of the lengths, known to the host: texts are searched up to there.
    """
    if not history.tokens.is_cuda:
        return reference_proposals(history.tokens, history.lengths, rows, count)
    return search(history, rows, count, longest=longest)


def search(history: TokenHistory, rows: Tensor, count: int, *, longest: int) -> DeviceProposals:
    """:func:`propose` with the Triton kernels."""
    batch, device = rows.shape[0], rows.device
    best = torch.zeros(batch, dtype=torch.int32, device=device)
    proposals = torch.zeros(batch, count, dtype=torch.int64, device=device)
    match_lengths = torch.zeros(batch, dtype=torch.int32, device=device)
    stride, max_tokens = history.tokens.stride(0), history.max_tokens
    blocks = triton.cdiv(max(1, min(longest, max_tokens)), BLOCK_POSITIONS)
    if batch:
        _find_best_match[(batch, blocks)](
            history.tokens, history.lengths, rows, best, stride, max_tokens, BLOCK=BLOCK_POSITIONS
        )
        _write_proposals[(batch,)](
            history.tokens,
            history.lengths,
            rows,
            best,
            proposals,
            match_lengths,
            count,
            stride,
            BLOCK=triton.next_power_of_2(count),
        )
    return DeviceProposals(proposals, match_lengths)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _find_best_match(  # type: ignore[no-untyped-def]
    tokens,  # [R, stride] int32
    lengths,  # [R] int32
    rows,  # [B]
    best,  # [B] int32, zero
    stride,
    max_tokens,
    BLOCK: tl.constexpr,
):
    """Raise ``best[b]`` to the key of the best match in one block of one text.

    A key is the number of suffix lengths that match, then the position.
    """
    request = tl.program_id(0)
    row = tl.load(rows + request).to(tl.int64)
    end = tl.load(lengths + row)
    first = tl.program_id(1) * BLOCK
    if (end > max_tokens) | (first >= end):
        return
    text = tokens + row * stride
    position = first + tl.arange(0, BLOCK)
    equal = position < end
    rank = tl.full([BLOCK], 0, tl.int32)
    for back in tl.static_range(1, _LONGEST_SUFFIX + 1):
        # Before the start of a text there is nothing to compare: the two sides get different values.
        mine = tl.load(text + end - back, mask=end >= back, other=-1)
        theirs = tl.load(text + position - back, mask=equal & (position >= back), other=-2)
        equal = equal & (theirs == mine)
        rank += equal.to(tl.int32) * ((_SUFFIX_LENGTHS >> back) & 1)
    top = tl.max(tl.where(rank > 0, (rank << _POSITION_BITS) + position, 0), axis=0)
    if top > 0:
        tl.atomic_max(best + request, top)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _write_proposals(  # type: ignore[no-untyped-def]
    tokens,  # [R, stride] int32
    lengths,  # [R] int32
    rows,  # [B]
    best,  # [B] int32
    proposals,  # [B, count] int64, zero
    match_lengths,  # [B] int32, zero
    count,
    stride,
    BLOCK: tl.constexpr,
):
    """Copy what follows the best match of one request. The text goes on with the proposal itself."""
    request = tl.program_id(0)
    key = tl.load(best + request)
    if key == 0:
        return
    position = key & _POSITION_MASK
    row = tl.load(rows + request).to(tl.int64)
    end = tl.load(lengths + row)
    text = tokens + row * stride
    offset = tl.arange(0, BLOCK)
    token = tl.load(text + position + offset % (end - position), mask=offset < count, other=0)
    tl.store(proposals + request * count + offset, token.to(tl.int64), mask=offset < count)
    back = tl.arange(0, _LONGEST_MATCH)
    mine = tl.load(text + end - 1 - back, mask=back < end, other=-1)
    theirs = tl.load(text + position - 1 - back, mask=back < position, other=-2)
    tl.store(match_lengths + request, tl.min(tl.where(mine == theirs, _LONGEST_MATCH, back), axis=0))
