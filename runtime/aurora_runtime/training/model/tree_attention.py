"""Attention of tree nodes: over the trunk up to their root, and over their own ancestors.

Invariant: the scores kept at once are bounded. Scores of ``N`` nodes over ``T`` slots would outgrow everything else
when a long request has many branches. So nodes are processed in chunks of at most :data:`MAX_SCORES_PER_CHUNK` scores.
With several chunks the backward pass computes the scores again instead of keeping them. The fused kernels keep no
scores of slots at all.
"""

from __future__ import annotations

import os
from typing import Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aurora_runtime.precision import product_dtype

MAX_SCORES_PER_CHUNK: Final = 1 << 24
"""64 MB per copy in float32. About four copies live at once."""
KERNEL_VARIABLE: Final = "AURORA_KERNELS"
KERNEL: Final = "tree-attention"
"""The variable's value that turns the fused kernels on. Torch computes without it, because no GPU has timed them."""


def runs_fused(device: torch.device) -> bool:
    """Whether the fused kernels run on ``device``: on a CUDA device, where the environment turns them on."""
    return device.type == "cuda" and os.environ.get(KERNEL_VARIABLE) == KERNEL


def tree_attention(
    q: Tensor, trunk: tuple[Tensor, Tensor], root_slot: Tensor, ancestors: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """The attention's output ``[B, heads, N, D]`` in float32, for ``N`` nodes of one depth.

    Args:
        q: queries ``[B, heads, N, D]``.
        trunk: keys and values, each ``[B, kv, T, D]``. A node sees the slots up to its root.
        root_slot: the slot of each node's root, ``[B, N]`` int64.
        ancestors: for each depth below the root, keys and values, each ``[B, kv, N, D]``. Entry ``n`` of a depth is
            node ``n``'s ancestor there, and the last pair holds the nodes themselves. So no mask over nodes is needed:
            :mod:`aurora_runtime.training.model.unroll` gathers each node's ancestors.
    """
    if runs_fused(q.device):
        return _attend_fused(q, *trunk, root_slot, *_flatten(ancestors))
    batch, heads, nodes, _ = q.shape
    chunk_nodes = max(1, MAX_SCORES_PER_CHUNK // (batch * heads * trunk[0].shape[2]))
    if chunk_nodes >= nodes:
        return _attend(q, *trunk, root_slot, *_flatten(ancestors))
    outputs = []
    for start in range(0, nodes, chunk_nodes):
        chunk = slice(start, start + chunk_nodes)
        outputs.append(
            checkpoint(
                _attend,
                q[:, :, chunk],
                *trunk,
                root_slot[:, chunk],
                *_flatten([(k[:, :, chunk], v[:, :, chunk]) for k, v in ancestors]),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(outputs, dim=2)


def _flatten(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [tensor for pair in pairs for tensor in pair]


def _attend(q: Tensor, k: Tensor, v: Tensor, root_slot: Tensor, *ancestors: Tensor) -> Tensor:
    """:func:`tree_attention` of one chunk; ``ancestors`` alternate keys and values."""
    batch, heads, nodes, dim = q.shape
    groups, slots = heads // k.shape[1], k.shape[2]
    visible = torch.arange(slots, device=q.device) <= root_slot[:, :, None]  # [B, N, T]
    with torch.autocast(q.device.type, enabled=False):
        q = (q.float() * dim**-0.5).view(batch, -1, groups, nodes, dim)
        k, v = k.float(), v.float()
        scores = (q.flatten(2, 3) @ k.transpose(2, 3)).view(batch, -1, groups, nodes, slots)
        scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        ancestor_scores = [(q * key.float()[:, :, None]).sum(-1, keepdim=True) for key in ancestors[::2]]
        weights = torch.cat([scores, *ancestor_scores], dim=-1).softmax(-1)
        out: Tensor = (weights[..., :slots].flatten(2, 3) @ v).view(batch, -1, groups, nodes, dim)
        for i, value in enumerate(ancestors[1::2]):
            out = out + weights[..., slots + i : slots + i + 1] * value.float()[:, :, None]
    return out.flatten(1, 2)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, root_slot: Tensor, *ancestors: Tensor) -> Tensor:
    """:func:`_attend` with kernels for the trunk, whose output torch merges with the ancestors."""
    from aurora_runtime.kernels.trunk_attention import TrunkAttention  # needs Triton

    batch, _, nodes, dim = q.shape
    dtype = product_dtype(q.device.type)
    with torch.autocast(q.device.type, enabled=False):
        out: Tensor
        out, log_sum = TrunkAttention.apply(q, k, v, root_slot, dtype)
        if not ancestors:
            return out
        grouped = (q.float() * dim**-0.5).view(batch, k.shape[1], -1, nodes, dim)
        scores = [(grouped * key.float()[:, :, None]).sum(-1).flatten(1, 2) for key in ancestors[::2]]
        weights = torch.stack([log_sum, *scores], dim=-1).softmax(-1).view(*grouped.shape[:-1], -1)
        merged = weights[..., :1] * out.view(grouped.shape)
        for i, value in enumerate(ancestors[1::2]):
            merged = merged + weights[..., i + 1 : i + 2] * value.float()[:, :, None]
    return merged.flatten(1, 2)
