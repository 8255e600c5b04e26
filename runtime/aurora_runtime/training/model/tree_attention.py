"""Attention of tree nodes: over the trunk up to their root, and over their own ancestors.

Invariant: memory is bounded. Scores of ``N`` nodes over ``T`` slots would outgrow everything else when a long request
has many branches, so nodes pass in chunks of at most :data:`SCORES` scores, and where there is more than one chunk its
scores are computed again on the way back instead of being kept.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SCORES: Final = 1 << 24
"""64 MB in float32."""


def tree_attention(q: Tensor, trunk: tuple[Tensor, Tensor], root: Tensor, own: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention's result ``[B, heads, N, D]`` of queries ``q`` ``[B, heads, N, D]``, in float32.

    ``trunk`` holds keys and values ``[B, kv, T, D]``, visible to a node up to slot ``root`` ``[B, N]``; ``own`` those
    of its ancestors and itself, one pair ``[B, kv, N, D]`` per depth below the root, row by row.
    """
    batch, heads, nodes, _ = q.shape
    rows = max(1, SCORES // (batch * heads * trunk[0].shape[2]))
    if rows >= nodes:
        return _attend(q, *trunk, root, *_flat(own))
    parts = []
    for start in range(0, nodes, rows):
        part = slice(start, start + rows)
        mine = [(k[:, :, part], v[:, :, part]) for k, v in own]
        parts.append(
            checkpoint(
                _attend,
                q[:, :, part],
                *trunk,
                root[:, part],
                *_flat(mine),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(parts, dim=2)


def _flat(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [tensor for pair in pairs for tensor in pair]


def _attend(q: Tensor, k: Tensor, v: Tensor, root: Tensor, *own: Tensor) -> Tensor:
    batch, heads, rows, dim = q.shape
    groups, width = heads // k.shape[1], k.shape[2]
    visible = torch.arange(width, device=q.device) <= root[:, :, None]  # [B, N, T]
    with torch.autocast(q.device.type, enabled=False):
        q = (q.float() * dim**-0.5).view(batch, -1, groups, rows, dim)
        k, v = k.float(), v.float()
        scores = (q.flatten(2, 3) @ k.transpose(2, 3)).view(batch, -1, groups, rows, width)
        scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        above = [(q * key.float()[:, :, None]).sum(-1, keepdim=True) for key in own[::2]]
        shares = torch.cat([scores, *above], dim=-1).softmax(-1)
        out: Tensor = (shares[..., :width].flatten(2, 3) @ v).view(batch, -1, groups, rows, dim)
        for i, value in enumerate(own[1::2]):
            out = out + shares[..., width + i : width + i + 1] * value.float()[:, :, None]
    return out.flatten(1, 2)
