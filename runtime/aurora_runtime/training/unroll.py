"""Training-time test: the draft unrolled from many roots at once, each step on the draft's state of the step before.

Invariant: the outputs equal those of decoding step by step, as SGLang does it. A root is a slot of the trunk (the
committed tokens, with the target's states). Step 0 at a root attends over the trunk up to and including it; step ``j``
sits at rope position ``root + j`` and attends over the same trunk slots and the earlier steps of its own root
(EAGLE-3, arXiv 2503.01840, "training-time test": causal plus own diagonal).

Chains of tokens are given per root, so that a branch which the draft really proposed can stand where the trunk does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.training.draft import Draft


@dataclass(frozen=True)
class Trunk:
    """``B`` sequences padded to ``T`` slots, and ``R`` roots in each, unrolled ``J`` steps."""

    aux: Tensor  # [B, T, 3H]: the target's auxiliary states
    tokens: Tensor  # [B, T] int64: token after the slot's position
    start: Tensor  # [B] int64: absolute position of slot 0
    root: Tensor  # [B, R] int64: slot of each root (padding repeats slot 0)
    chain: Tensor  # [B, R, J] int64: token whose embedding step j reads; step 0 reads the slot's own


def unroll(draft: Draft, trunk: Trunk) -> list[Tensor]:
    """The layer's output ``[B, R, H]`` (before the last norm) of each of the ``J`` steps."""
    slots = torch.arange(trunk.tokens.shape[1], device=trunk.tokens.device)
    fused = draft.fuse(trunk.aux)
    inputs = draft.inputs(fused, trunk.tokens)
    positions = trunk.start[:, None] + slots
    keys, values = draft.keys(inputs, positions), draft.values(inputs)
    visible = slots[None, None, :] <= trunk.root[:, :, None]  # [B, R, T]
    hidden = _rows(fused, trunk.root).float()
    at = trunk.start[:, None] + trunk.root
    queries = draft.queries(_rows(inputs, trunk.root), at)
    outputs: list[Tensor] = []
    own: list[tuple[Tensor, Tensor]] = []
    for step in range(trunk.chain.shape[2]):
        if step:
            inputs = draft.inputs(hidden, trunk.chain[:, :, step])
            queries = draft.queries(inputs, at + step)
            own.append((draft.keys(inputs, at + step), draft.values(inputs)))
        hidden = draft.finish(hidden, _attend(queries, keys, values, visible, own))
        outputs.append(hidden)
    return outputs


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[-1]))


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, own: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention of ``q`` ``[B, heads, R, D]`` over trunk keys ``[B, kv, T, D]`` and, row by row, over ``own`` keys
    ``[B, kv, R, D]``; in float32."""
    batch, heads, rows, dim = q.shape
    groups = heads // k.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        q = (q.float() * dim**-0.5).view(batch, -1, groups, rows, dim)
        k, v = k.float(), v.float()
        scores = (q.flatten(2, 3) @ k.transpose(2, 3)).view(batch, -1, groups, rows, k.shape[2])
        scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        diagonal = [(q * key.float()[:, :, None]).sum(-1, keepdim=True) for key, _ in own]
        shares = torch.cat([scores, *diagonal], dim=-1).softmax(-1)
        width = k.shape[2]
        out: Tensor = (shares[..., :width].flatten(2, 3) @ v).view(batch, -1, groups, rows, dim)
        for i, (_, value) in enumerate(own):
            out = out + shares[..., width + i : width + i + 1] * value.float()[:, :, None]
    return out.flatten(1, 2)
