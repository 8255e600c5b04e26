"""Prompt lookup on the device: proposes what followed a request's last tokens, without a copy to the host.

Under overlap scheduling the last accepted tokens are on the device when the next round is prepared. A lookup on the
host would wait for them. Here the texts of all requests are device tensors, and two Triton kernels search them.
``lookup_reference.py`` says the same in torch, and is what a device without Triton runs.

Invariants:
- The host never waits: all shapes and grids follow from host values, never from device values.
- The longest match wins, then the request's own text, then the higher row, then the later position.

Letters in shapes: ``B`` requests of the batch, ``R`` rows of the history, ``L`` tokens that a row can hold, ``N``
proposed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from aurora_runtime.serving.speculation.lookup_reference import (
    MAX_ROWS,
    POSITION_BITS,
    ROW_BITS,
    DeviceProposals,
    MatchBounds,
    reference_proposals,
)

BLOCK_POSITIONS = 1024
"""Positions that one program of the search compares."""

_POSITION_BITS: Final = tl.constexpr(POSITION_BITS)
_POSITION_MASK: Final = tl.constexpr((1 << POSITION_BITS) - 1)
_ROW_MASK: Final = tl.constexpr((1 << ROW_BITS) - 1)
_OWN_SHIFT: Final = tl.constexpr(ROW_BITS + POSITION_BITS)
_MATCH_SHIFT: Final = tl.constexpr(ROW_BITS + POSITION_BITS + 1)


@dataclass(frozen=True)
class TokenHistory:
    """The texts of requests on the device. A row holds a running request, or an ended one until the row is reused.

    ``tokens`` is int32 ``[R, L + 1]``. Its last column takes writes that belong nowhere. ``lengths`` is int32 ``[R]``.
    A request that outgrows its row has a length above ``L``. Nothing is proposed for it, or from it.
    """

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def allocate(cls, rows: int, max_tokens: int, device: torch.device | str) -> TokenHistory:
        """An empty history. Raises ValueError for more rows or longer ones than a search can address."""
        if not 0 < rows <= MAX_ROWS or not 0 < max_tokens < 1 << POSITION_BITS:
            raise ValueError(f"{rows} rows of {max_tokens} tokens are too many for a device lookup")
        return cls(
            torch.zeros(rows, max_tokens + 1, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
        )

    @property
    def max_tokens(self) -> int:
        return self.tokens.shape[1] - 1

    def begin(self, row: int, prompt: Tensor) -> None:
        """Start a request in ``row`` with its prompt ``[T]``, and forget the text that was there."""
        kept = prompt[: self.max_tokens]
        self.tokens[row, : kept.shape[0]] = kept.to(self.tokens.dtype)
        self.lengths[row] = prompt.shape[0]

    def append(self, rows: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Append the first ``counts[b]`` of ``tokens[b]`` to the text in ``rows[b]``.

        Shapes: rows ``[B]`` (distinct), tokens ``[B, W]``, counts ``[B]``.
        """
        offsets = torch.arange(tokens.shape[1], device=tokens.device)
        positions = self.lengths[rows][:, None] + offsets
        belongs = (offsets < counts[:, None]) & (positions < self.max_tokens)
        columns = torch.where(belongs, positions, self.max_tokens).long()
        self.tokens[rows[:, None], columns] = tokens.to(self.tokens.dtype)
        self.lengths[rows] += counts.to(self.lengths.dtype)


def propose(
    history: TokenHistory, rows: Tensor, count: int, *, bounds: MatchBounds, longest: int, all_rows: bool
) -> DeviceProposals:
    """Propose ``count`` tokens for each request in ``rows``, ``[B]``.

    ``longest`` is an upper bound of the lengths, known to the host: texts are searched up to there. With ``all_rows``
    the texts of all rows are searched (scope Speculator), else a request's own text only (scope Request).
    """
    if not history.tokens.is_cuda:
        return reference_proposals(history.tokens, history.lengths, rows, count, bounds=bounds, all_rows=all_rows)
    return search(history, rows, count, bounds=bounds, longest=longest, all_rows=all_rows)


def search(
    history: TokenHistory, rows: Tensor, count: int, *, bounds: MatchBounds, longest: int, all_rows: bool
) -> DeviceProposals:
    """:func:`propose` with the Triton kernels."""
    batch, device = rows.shape[0], rows.device
    best = torch.zeros(batch, dtype=torch.int64, device=device)
    proposals = torch.zeros(batch, count, dtype=torch.int64, device=device)
    available = torch.zeros(batch, dtype=torch.int32, device=device)
    match_lengths = torch.zeros(batch, dtype=torch.int32, device=device)
    stride, max_tokens = history.tokens.stride(0), history.max_tokens
    searched = history.tokens.shape[0] if all_rows else batch
    blocks = triton.cdiv(max(1, min(longest, max_tokens)), BLOCK_POSITIONS)
    if batch:
        _find_best_match[(searched, blocks)](
            history.tokens,
            history.lengths,
            rows,
            best,
            batch,
            stride,
            max_tokens,
            SHORTEST=bounds.shortest,
            LONGEST=bounds.longest,
            ALL_ROWS=all_rows,
            BLOCK=BLOCK_POSITIONS,
        )
        _write_proposals[(batch,)](
            history.tokens,
            history.lengths,
            rows,
            best,
            proposals,
            available,
            match_lengths,
            count,
            stride,
            BLOCK=triton.next_power_of_2(count),
        )
    return DeviceProposals(proposals, available, match_lengths)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _find_best_match(  # type: ignore[no-untyped-def]
    tokens,  # [R, stride] int32
    lengths,  # [R] int32
    rows,  # [B]
    best,  # [B] int64, zero
    batch,
    stride,
    max_tokens,
    SHORTEST: tl.constexpr,
    LONGEST: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Raise ``best[b]`` to the key of the best match in one block of one row. See ``lookup_reference.match_key``."""
    searched = tl.program_id(0)
    row = searched.to(tl.int64) if ALL_ROWS else tl.load(rows + searched).to(tl.int64)
    length = tl.load(lengths + row)
    first = tl.program_id(1) * BLOCK
    if (length > max_tokens) | (first >= length):
        return
    text = tokens + row * stride
    position = first + tl.arange(0, BLOCK)
    inside = (position < length) & (position >= SHORTEST)
    first_request = 0 if ALL_ROWS else searched
    last_request = batch if ALL_ROWS else searched + 1
    for request in range(first_request, last_request):
        own_row = tl.load(rows + request).to(tl.int64)
        end = tl.load(lengths + own_row)
        equal = inside & (end <= max_tokens)
        matched = tl.full([BLOCK], 0, tl.int32)
        for back in tl.static_range(1, LONGEST + 1):
            # Before the start of a text there is nothing to compare: the two sides get different values.
            mine = tl.load(tokens + own_row * stride + end - back, mask=(end >= back) & (end <= max_tokens), other=-1)
            theirs = tl.load(text + position - back, mask=equal & (position >= back), other=-2)
            equal = equal & (theirs == mine)
            matched += equal.to(tl.int32)
        own = (row == own_row).to(tl.int64)
        key = (matched.to(tl.int64) * 2 + own) << _OWN_SHIFT
        key += (row << _POSITION_BITS) + position.to(tl.int64)
        top = tl.max(tl.where(matched >= SHORTEST, key, 0), axis=0)
        if top > 0:
            tl.atomic_max(best + request, top)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _write_proposals(  # type: ignore[no-untyped-def]
    tokens,  # [R, stride] int32
    lengths,  # [R] int32
    rows,  # [B]
    best,  # [B] int64
    proposals,  # [B, count] int64, zero
    available,  # [B] int32, zero
    match_lengths,  # [B] int32, zero
    count,
    stride,
    BLOCK: tl.constexpr,
):
    """Copy what follows the best match of one request. The request's own text goes on with the proposal itself."""
    request = tl.program_id(0)
    key = tl.load(best + request)
    if key == 0:
        return
    position = (key & _POSITION_MASK).to(tl.int32)
    row = (key >> _POSITION_BITS) & _ROW_MASK
    matched = (key >> _MATCH_SHIFT).to(tl.int32)
    following = tl.load(lengths + row) - position  # at least 1
    offset = tl.arange(0, BLOCK)
    is_own = row == tl.load(rows + request).to(tl.int64)
    given = count if is_own else tl.minimum(count, following)
    source = tokens + row * stride + position
    token = tl.load(source + offset % following, mask=offset < given, other=0)
    tl.store(proposals + request * count + offset, token.to(tl.int64), mask=offset < given)
    tl.store(available + request, given)
    tl.store(match_lengths + request, matched)
