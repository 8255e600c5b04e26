"""Compares the fused log-probabilities and their gradient with the torch reference, in Triton's interpreter.

Run it as a program of its own with ``TRITON_INTERPRET=1``. It ends with an error where the two differ.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.kernels import bucket_logprobs as fused
from aurora_runtime.training.objective.target_distribution import TINY, TargetDistribution, bucket_logprobs

BLOCK_TOKENS = 16
"""So small that a row has several blocks."""
SMALLEST_REST = 1e-4
"""The reference divides by the probability of all tokens that were not captured. Where that is smaller, the reference
loses digits, and a loss gives the bucket next to no gradient."""


def rest_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The probability of all tokens that were not captured, ``[N]``."""
    captured = torch.zeros_like(logits, dtype=torch.bool)
    for row, tokens in enumerate(ids):
        captured[row, tokens[tokens >= 0]] = True
    return logits.float().softmax(-1).masked_fill(captured, 0.0).sum(-1)


def random_ids(generator: torch.Generator, rows: int, tokens: int, captured: int) -> torch.Tensor:
    """Distinct tokens in each row, of which some are -1."""
    ids = torch.stack([torch.randperm(tokens, generator=generator)[:captured] for _ in range(rows)])
    return ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, -1)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 50),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1.0, 20.0]),
    st.integers(0, 10_000),
)
def compare(rows: int, tokens: int, captured: int, dtype: torch.dtype, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    captured = min(captured, tokens)
    logits = (torch.randn(rows, tokens, generator=generator) * spread).to(dtype)
    ids = random_ids(generator, rows, tokens, captured)
    upstream = torch.rand(rows, captured, generator=generator), torch.rand(rows, generator=generator)
    likely = rest_of(logits, ids) > SMALLEST_REST
    results = []
    for function in (
        lambda own: bucket_logprobs(own, TargetDistribution(ids, torch.zeros(ids.shape), torch.zeros(rows))),
        lambda own: fused.FusedBucketLogprobs.apply(own, ids, TINY),
    ):
        own = logits.clone().requires_grad_()
        outputs = function(own)
        (grad,) = torch.autograd.grad(outputs, own, (upstream[0], upstream[1] * likely))
        results.append((*outputs, grad))
    for mine, theirs in zip(results[1][:2], results[0][:2], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-5)
    atol, rtol = (2e-5, 1e-4) if dtype is torch.float32 else (2e-2, 2e-2)
    assert results[1][2].dtype is dtype
    torch.testing.assert_close(results[1][2], results[0][2], atol=atol, rtol=rtol)


if __name__ == "__main__":
    fused.BLOCK_TOKENS = BLOCK_TOKENS
    compare()
