"""Compares the fused tree attention and its gradients with the torch reference, in Triton's interpreter.

Run it as a program of its own with ``TRITON_INTERPRET=1``. It ends with an error where the two differ.
"""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.kernels import trunk_attention
from aurora_runtime.training.model import tree_attention as model
from tests.example_count import example_count


def attended(inputs: list[Tensor], root_slot: Tensor, weight: Tensor, *, fused: bool) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values of the trunk and of the ancestors."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    q, k, v, *rest = leaves
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    with patch.object(model, "runs_fused", lambda _: fused), patch.object(model, "product_dtype", lambda _: q.dtype):
        out = model.tree_attention(q, (k, v), root_slot, pairs)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@settings(max_examples=example_count(60), deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([4, 16, 24]),
    st.integers(0, 3),
    st.sampled_from([0.3, 3.0]),
    st.integers(0, 10_000),
)
def compare(
    batch: int, kv: int, groups: int, nodes: int, slots: int, width: int, depth: int, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * spread

    queries = normal(batch, nodes, kv * groups, width).transpose(1, 2)  # as a projection leaves them
    trunk = [normal(batch, slots, kv, width).transpose(1, 2) for _ in range(2)]
    ancestors = [normal(batch, kv, nodes, width) for _ in range(2 * depth)]
    root_slot = torch.randint(0, slots, (batch, nodes), generator=generator)
    weight = normal(batch, kv * groups, nodes, width)
    inputs = [queries, *trunk, *ancestors]
    mine, theirs = (attended(inputs, root_slot, weight, fused=fused) for fused in (True, False))
    for own, other in zip(mine, theirs, strict=True):
        scale = max(1.0, spread**2, float(other.abs().max()))  # a gradient of 0 is a difference of larger products
        torch.testing.assert_close(own, other, atol=2e-5 * scale, rtol=2e-4)


if __name__ == "__main__":
    trunk_attention.BLOCK_NODES = trunk_attention.BLOCK_SLOTS = 16
    compare()
