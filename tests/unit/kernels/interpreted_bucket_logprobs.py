"""Compares the fused log-probabilities and their gradient with autograd in float64, in Triton's interpreter.

Run it as a program of its own with ``TRITON_INTERPRET=1``. It ends with an error where the two differ.
"""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.kernels import bucket_logprobs as fused
from aurora_runtime.training.objective.target_distribution import TINY
from tests.example_count import example_count

BLOCK_TOKENS = 16
"""So small that a row has several blocks."""


def random_ids(generator: torch.Generator, rows: int, tokens: int, captured: int) -> Tensor:
    """Distinct tokens in each row, of which some are -1."""
    ids = torch.stack([torch.randperm(tokens, generator=generator)[:captured] for _ in range(rows)])
    return ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, -1)


def exact(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the captured tokens and of all others together."""
    scores = logits.log_softmax(-1)
    is_captured = torch.zeros_like(scores, dtype=torch.bool)
    for row, tokens in enumerate(ids):
        is_captured[row, tokens[tokens >= 0]] = True
    captured = torch.where(ids >= 0, scores.gather(1, ids.clamp(min=0)), -math.inf)
    return captured, scores.masked_fill(is_captured, -math.inf).logsumexp(-1)


@settings(max_examples=example_count(80), deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 50),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1.0, 6.0]),
    st.integers(0, 10_000),
)
def compare(rows: int, tokens: int, captured: int, dtype: torch.dtype, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    captured = min(captured, tokens)
    logits = (torch.randn(rows, tokens, generator=generator) * spread).to(dtype)
    ids = random_ids(generator, rows, tokens, captured)
    precise = logits.double().requires_grad_()
    expected = exact(precise, ids)
    # A loss gives no gradient to an outcome that cannot happen.
    upstream = [
        torch.rand(output.shape, generator=generator) * (output.detach() > math.log(TINY)) for output in expected
    ]
    likely = [output > math.log(TINY) for output in expected]
    kept = [(o[keep] * g[keep].double()).sum() for o, g, keep in zip(expected, upstream, likely, strict=True)]
    (expected_grad,) = torch.autograd.grad(torch.stack(kept).sum(), precise)
    own = logits.clone().requires_grad_()
    outputs = fused.FusedBucketLogprobs.apply(own, ids, TINY)
    (grad,) = torch.autograd.grad(outputs, own, upstream)
    for mine, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.clamp(min=math.log(TINY)), atol=2e-5, rtol=2e-5)
    tolerance = 2e-5 if dtype is torch.float32 else 2e-2
    assert grad.dtype is dtype
    torch.testing.assert_close(grad.double(), expected_grad, atol=tolerance, rtol=tolerance)


if __name__ == "__main__":
    fused.BLOCK_TOKENS = BLOCK_TOKENS
    compare()
