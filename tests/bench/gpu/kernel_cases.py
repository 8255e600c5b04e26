"""What is measured of the kernel: inputs of a real size, the torch code that it replaces, and the same for a compiler.

Needs torch and Triton only. On a CPU the kernel needs Triton's interpreter (``TRITON_INTERPRET=1``).

``least_bytes`` counts each input once and each output once, so no implementation moves fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aurora_runtime.kernels.trunk_attention import TrunkAttention
from aurora_runtime.training.model.tree_attention import tree_attention

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """The kernel at one size.

    Attributes:
        make: the inputs.
        today: what runs while the kernel is off.
        compiled: the same in plain torch, with its heavy part compiled by the given function.
    """

    size: str
    make: Callable[[], tuple[Any, ...]]
    today: Run
    compiled: Callable[[Callable[[Any], Any]], Run]
    fused: Run
    least_bytes: int
    operations: int = 0


def cases(device: torch.device, *, tiny: bool) -> list[Case]:
    """The cases. ``tiny`` sizes suit an interpreter, the others are those of Qwen3-8B."""
    return [
        _tree_attention(device, nodes, slots, *((2, 1, 16) if tiny else (32, 8, 128)))
        for nodes, slots in (((20, 24),) if tiny else ((512, 512), (4096, 4096)))
    ]


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def _tree_attention(device: torch.device, nodes: int, slots: int, heads: int, kv_heads: int, width: int) -> Case:
    """The roots: each slot of one sequence. Deeper nodes only add a few ancestors, which no kernel handles."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # Triton's interpreter cannot multiply bf16
    q = _random(device, 1, heads, nodes, width)
    k, v = _random(device, 1, kv_heads, slots, width), _random(device, 1, kv_heads, slots, width, dtype=dtype)
    root_slot = (torch.arange(nodes, device=device) * slots // nodes)[None]
    upstream = _random(device, 1, heads, nodes, width)

    def with_gradients(forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            out = forward(*leaves)
            return out.detach(), *torch.autograd.grad(out, leaves, upstream)

        return run

    def plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Scores in the products' type, as torch's own attention computes with a mask."""
        visible = torch.arange(slots, device=device) <= root_slot[:, :, None]
        q, k, v = (tensor.to(dtype) for tensor in (queries, keys, values))
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, attn_mask=visible[:, None], enable_gqa=True).float()

    visible_scores = heads * int((root_slot + 1).sum())
    return Case(
        f"{nodes} nodes x {slots} slots, {heads} heads of {width}",
        lambda: (q, k, v),
        with_gradients(lambda *inputs: tree_attention(inputs[0], (inputs[1], inputs[2]), root_slot, [])),
        lambda compiler: with_gradients(compiler(plain)),
        with_gradients(lambda *inputs: TrunkAttention.apply(*inputs, root_slot, dtype)[0]),
        least_bytes=4 * (4 * q.numel() + 3 * k.numel()) + 2 * v.nbytes,
        operations=2 * 7 * width * visible_scores,  # two products forwards, five backwards
    )
