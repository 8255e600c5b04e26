"""Compares the fused optimizer step with torch's clipping, AdamW and lerp, in Triton's interpreter.

Run it as a program of its own with ``TRITON_INTERPRET=1``. It ends with an error where the two differ.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.kernels import adamw_average
from aurora_runtime.kernels.adamw_average import AdamWStep, update_parameter
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.model.shadowed_linear import ShadowedLinear
from aurora_runtime.training.optim import weight_update
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from tests.example_count import example_count
from tests.unit.training import tiny

BLOCK_WEIGHTS = 16
"""So small that a parameter has several blocks."""
BETAS, EPS = (0.9, 0.95), 1e-8


@settings(max_examples=example_count(60), deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 4),
    st.sampled_from([1e-3, 1.0, 100.0]),
    st.sampled_from([0.5, 1e6]),
    st.sampled_from([None, 0.005, 0.7, 1.0]),
    st.integers(0, 10_000),
)
def compare(
    count: int, steps: int, gradient_size: float, max_norm: float, average_weight: float | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(count, generator=generator).requires_grad_()
    optimizer = torch.optim.AdamW([expected], lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    expected_average = torch.randn(count, generator=generator)
    weight, average = expected.detach().clone(), expected_average.clone()
    moments = torch.zeros(count), torch.zeros(count)
    shadow = torch.empty(count, dtype=torch.bfloat16)
    for number in range(1, steps + 1):
        grad = torch.randn(count, generator=generator) * gradient_size
        expected.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([expected], max_norm)
        optimizer.step()
        step = AdamWStep(number, 1e-2, BETAS, EPS, max_norm, average_weight or 0.0)
        own = None if average_weight is None else average
        update_parameter(weight, grad, moments, norm, step, average=own, shadow=shadow)
        if average_weight is not None:
            expected_average.lerp_(expected.detach(), average_weight)
    state = optimizer.state[expected]
    for power, mine, theirs in zip((1, 2), moments, (state["exp_avg"], state["exp_avg_sq"]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6 * gradient_size**power, rtol=1e-5)
    torch.testing.assert_close(weight, expected.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(average, expected_average, atol=1e-6, rtol=1e-5)
    # The interpreter truncates where a GPU rounds.
    torch.testing.assert_close(shadow.float(), weight, atol=0.0, rtol=2**-7)


def trained(folder: Path, *, fused: bool) -> dict[str, Tensor]:
    """The state of a session after some steps."""
    draft, vocabulary = tiny.draft_of(tiny.target(folder))
    examples = [e for seed in range(6) for e in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    session = Session(draft, vocabulary, Recipe(), torch.device("cpu"))
    with patch.object(weight_update, "runs_fused", lambda *_: fused):
        for start in range(0, 6, 2):
            session.step(examples[start : start + 2])
    linear = [module for module in draft.modules() if isinstance(module, ShadowedLinear)]
    assert all((module._fresh_shadow() is not None) is fused for module in linear)
    stored = session.state()
    session.restore(stored)
    assert all(module._fresh_shadow() is None for module in linear)
    return stored


def compare_sessions() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch_state, fused_state = (trained(Path(folder), fused=fused) for fused in (False, True))
    assert torch_state.keys() == fused_state.keys()
    for name, tensor in torch_state.items():
        # Where a gradient is all rounding, so is its step. So single weights may differ by a step.
        difference = (fused_state[name].double() - tensor.double()).abs().mean()
        assert difference <= 1e-2 * tensor.double().abs().mean() + 1e-7, (name, difference)


if __name__ == "__main__":
    adamw_average.BLOCK_WEIGHTS = BLOCK_WEIGHTS
    compare()
    adamw_average.BLOCK_WEIGHTS = 1024
    compare_sessions()
