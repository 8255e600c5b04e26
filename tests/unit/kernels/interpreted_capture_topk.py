"""Compares what capture keeps of logits with and without the kernel, in Triton's interpreter.

Run it as a program of its own with ``TRITON_INTERPRET=1``. It ends with an error where the two differ.
"""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.kernels import capture_topk
from aurora_runtime.serving.capture import top_tokens as capture
from tests.example_count import example_count


def kept(logits: torch.Tensor, k: int, *, fused: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with patch.object(capture, "runs_fused", lambda *_: fused):
        return capture.top_tokens(logits, k)


@settings(max_examples=example_count(60), deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 600),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([0.1, 1.0, 8.0]),
    st.sampled_from([0.0, 0.5, 0.99]),
    st.integers(0, 10_000),
)
def compare(rows: int, tokens: int, k: int, dtype: torch.dtype, spread: float, masked: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(rows, tokens + 3, generator=generator) * spread
    wide[torch.rand(wide.shape, generator=generator) < masked] = -torch.inf  # as a grammar does
    wide[:, 0] = 0.0
    logits = wide.to(dtype)[:, :tokens]  # a view, whose rows lie apart
    ids, logprobs, mass = kept(logits, k, fused=True)
    expected_ids, expected_logprobs, expected_mass = kept(logits, k, fused=False)
    # Equal logits may be kept in another order, or one instead of another.
    assert ids.shape == expected_ids.shape
    torch.testing.assert_close(logprobs.float(), expected_logprobs.float(), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(mass.float(), expected_mass.float(), atol=2e-3, rtol=1e-3)
    assert torch.equal(logits.gather(1, ids.long()), logits.gather(1, expected_ids.long()))
    possible = logprobs > capture.LOWEST_LOGPROB
    for row, likely in zip(ids, possible, strict=True):
        assert row[likely].unique().numel() == int(likely.sum())


if __name__ == "__main__":
    capture_topk.BLOCKS_PER_PROGRAM, capture_topk.BLOCKS_PER_STEP = 4, 2
    compare()
