"""Log-probabilities of a row's captured tokens and of all its other tokens together, and their gradient, fused.

The torch reference (``training/objective/target_distribution.py``) keeps ``[N, V]`` probabilities in float32 and makes
several passes over them. These kernels read the logits once forwards and once backwards, keep no second ``[N, V]``
tensor, and write the gradient where the logits were. The online log-sum-exp is that of Milakov and Gimelshein (arXiv
1805.02867).

Invariant: the logits are consumed. The forward pass overwrites the captured logits, the backward pass all of them.

Never run on a GPU: tests run the kernels in Triton's interpreter, and compile them for sm_80 and sm_90.

Letters in shapes: ``N`` rows, ``V`` tokens of the draft, ``K`` captured tokens.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 4096
"""Tokens of a row that one step of a program handles."""
_NOT_A_TOKEN: Final = tl.constexpr(float("-inf"))


class FusedBucketLogprobs(torch.autograd.Function):
    """Logits ``[N, V]`` and ids ``[N, K]`` -> log-probabilities of the captured tokens ``[N, K]`` and the rest ``[N]``.

    An id of -1 is no token of the draft. A probability below ``tiny`` counts as ``tiny``.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
        logits = logits.contiguous()
        captured, others = take_captured(logits, ids)
        total = torch.logaddexp(captured.logsumexp(-1), others)
        ctx.save_for_backward(logits, ids, captured - total[:, None], others - total, total)
        ctx.tiny = tiny
        floor = torch.full((), tiny, device=logits.device).log()
        return (captured - total[:, None]).maximum(floor), (others - total).maximum(floor)

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> tuple[Tensor | None, ...]:
        logits, ids, captured, others, total = ctx.saved_tensors
        captured_grad = output_grads[0].masked_fill(ids < 0, 0.0)
        grad_sum = captured_grad.sum(-1) + output_grads[1]
        elsewhere = output_grads[1] / others.exp().clamp(min=ctx.tiny) - grad_sum
        write_gradient(logits, ids, total, elsewhere, captured_grad - captured.exp() * grad_sum[:, None])
        return logits, None, None


def take_captured(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The captured logits ``[N, K]`` (-inf where the id is -1), and the log-sum-exp of all other logits ``[N]``.

    Replaces the captured logits by -inf.
    """
    rows, tokens = logits.shape
    captured = torch.empty(ids.shape, dtype=torch.float32, device=logits.device)
    others = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        _take_captured[(rows,)](
            logits, ids, captured, logits.stride(0), ids.shape[1], BLOCK=triton.next_power_of_2(ids.shape[1])
        )
        _log_sum_exp[(rows,)](logits, others, logits.stride(0), tokens, BLOCK=BLOCK_TOKENS)
    return captured, others


def write_gradient(logits: Tensor, ids: Tensor, total: Tensor, elsewhere: Tensor, captured_grad: Tensor) -> None:
    """Replace the logits, of which the captured ones are -inf, by the gradient.

    ``total`` ``[N]`` is the log-sum-exp of each whole row. The gradient is ``captured_grad`` ``[N, K]`` at the captured
    tokens and ``q_v * elsewhere`` (``[N]``) at the others.
    """
    rows, tokens = logits.shape
    if rows:
        blocks = triton.cdiv(tokens, BLOCK_TOKENS)
        _write_gradient[(rows, blocks)](logits, total, elsewhere, logits.stride(0), tokens, BLOCK=BLOCK_TOKENS)
        _put_captured[(rows,)](
            logits, ids, captured_grad, logits.stride(0), ids.shape[1], BLOCK=triton.next_power_of_2(ids.shape[1])
        )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _take_captured(logits, ids, captured, stride, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Move the captured logits of one row into ``captured``, and leave -inf in their place."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    token = tl.load(ids + row * count + place, mask=place < count, other=-1)
    found = token >= 0
    value = tl.load(logits + row * stride + token, mask=found, other=_NOT_A_TOKEN)
    tl.store(captured + row * count + place, value.to(tl.float32), mask=place < count)
    tl.store(logits + row * stride + token, tl.full([BLOCK], _NOT_A_TOKEN, tl.float32).to(value.dtype), mask=found)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _log_sum_exp(logits, result, stride, tokens, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The log-sum-exp of one row, in one pass. -inf for a row of nothing but -inf."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full([], _NOT_A_TOKEN, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for first in range(0, tokens, BLOCK):
        token = first + tl.arange(0, BLOCK)
        value = tl.load(logits + row * stride + token, mask=token < tokens, other=_NOT_A_TOKEN).to(tl.float32)
        larger = tl.maximum(largest, tl.max(value, axis=0))
        base = tl.where(larger == _NOT_A_TOKEN, 0.0, larger)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(value - base), axis=0)
        largest = larger
    tl.store(result + row, tl.where(total > 0.0, largest + tl.log(tl.maximum(total, 1e-30)), _NOT_A_TOKEN))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _write_gradient(logits, total, elsewhere, stride, tokens, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Replace one block of one row's logits by ``q_v * elsewhere``. A captured token's -inf becomes 0."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    value = tl.load(logits + row * stride + token, mask=inside, other=_NOT_A_TOKEN)
    grad = tl.exp(value.to(tl.float32) - tl.load(total + row)) * tl.load(elsewhere + row)
    tl.store(logits + row * stride + token, grad.to(value.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _put_captured(logits, ids, captured_grad, stride, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the gradients of one row's captured tokens."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    token = tl.load(ids + row * count + place, mask=place < count, other=-1)
    grad = tl.load(captured_grad + row * count + place, mask=place < count, other=0.0)
    tl.store(logits + row * stride + token, grad, mask=token >= 0)
