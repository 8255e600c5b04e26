"""One pass over the logits for capture: each row's log-sum-exp, and the maximum of each block of tokens.

The most likely tokens lie in the blocks with the highest maxima, so whoever knows the maxima reads only a few blocks
again (``serving/capture/top_tokens.py``, which is also the torch reference). Torch needs six passes over the vocabulary
in float32 for the same. The online log-sum-exp is that of Milakov and Gimelshein (arXiv 1805.02867); several programs
share a row, and their sums are merged after it.

Never run on a GPU: tests run the kernel in Triton's interpreter, and compile it for sm_80 and sm_90.

Letters in shapes: ``N`` rows, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS_PER_PROGRAM = 128
"""Blocks of tokens that one program reads: with blocks of 64 tokens, 19 programs share a vocabulary of 151,936."""
BLOCKS_PER_STEP = 32
_MASKED: Final = tl.constexpr(float("-inf"))


def scan_logits(logits: Tensor, block_tokens: int) -> tuple[Tensor, Tensor]:
    """The maximum of each block of ``block_tokens`` tokens of logits ``[N, V]``, and the logarithm of each row's sum.

    The maxima are ``[N, ceil(V / block_tokens)]``, the sums of ``exp(logit - row's maximum)`` are ``[N, 1]``, and both
    are float32. A row of nothing but -inf has a sum of NaN. ``block_tokens`` is a power of two.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, tokens = logits.shape
    blocks = triton.cdiv(tokens, block_tokens)
    programs = triton.cdiv(blocks, BLOCKS_PER_PROGRAM)
    maxima = torch.empty(rows, blocks, dtype=torch.float32, device=logits.device)
    largest = torch.empty(rows, programs, dtype=torch.float32, device=logits.device)
    sums = torch.empty(rows, programs, dtype=torch.float32, device=logits.device)
    if rows:
        _scan[(rows, programs)](
            logits,
            maxima,
            largest,
            sums,
            logits.stride(0),
            tokens,
            blocks,
            PROGRAM=BLOCKS_PER_PROGRAM,
            STEP=BLOCKS_PER_STEP,
            BLOCK=block_tokens,
        )
    scales = (largest - largest.amax(-1, keepdim=True)).exp()
    return maxima, (sums * scales).sum(-1, keepdim=True).log()


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _scan(  # type: ignore[no-untyped-def]
    logits,  # [N, stride]
    maxima,  # [N, blocks]
    largest,  # [N, programs]
    sums,  # [N, programs]
    stride,
    tokens,
    blocks,
    PROGRAM: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Read one program's share of one row. ``sums`` are of ``exp(logit - largest)``."""
    row = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    highest = tl.full([], _MASKED, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for step in range(0, PROGRAM, STEP):
        block = program * PROGRAM + step + tl.arange(0, STEP)
        token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        value = tl.load(logits + row * stride + token, mask=token < tokens, other=_MASKED).to(tl.float32)
        best = tl.max(value, axis=1)
        tl.store(maxima + row * blocks + block, best, mask=block < blocks)
        higher = tl.maximum(highest, tl.max(best, axis=0))
        base = tl.where(higher == _MASKED, 0.0, higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.sum(tl.exp(value - base), axis=1), axis=0)
        highest = higher
    place = row * tl.num_programs(1) + program
    tl.store(largest + place, highest)
    tl.store(sums + place, total)
