"""Attention over SGLang's paged KV cache on a CPU, for decoding, prefill and the verification of draft trees.

One function, `attend`, does all three, so that decoding a token and verifying it inside a draft differ only in how many
rows the same reductions run over: greedy output must not depend on whether speculation is on. What is the same for
every layer of a forward pass (which slots a request reads, who sees whom) is a `Plan`, made once per pass.

Grouped-query attention is folded into the query rows: the G query heads that share a KV head become G rows of that
head, so keys are neither repeated nor expanded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

VECTOR = 16
"""Lanes of a float32 vector: what PyTorch's attention kernel sums at a time."""
LEAST_ROWS = 4
"""With fewer query rows per KV head the kernel sums in another order, and a token decoded alone would differ from the
same token verified inside a draft: enough to part a third of bf16's answers at near ties."""


@dataclass(frozen=True)
class Group:
    """Requests that are attended together, padded to E queries and L keys each.

    rows: [B*E] rows of the query tensor (None: all rows in order); padding repeats a valid row.
    kept: [B*E] bool, False for padding (None: no padding).
    slots: [B*L] slots of the KV buffers; padding repeats a valid slot.
    visible: [B, 1, R, L] bool, True where a row sees a key; R are the rows that `attend` folds the queries into, or 1
        where a request decodes a single one.
    """

    batch: int
    queries: int
    keys: int
    rows: torch.Tensor | None
    kept: torch.Tensor | None
    slots: torch.Tensor
    visible: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """Everything of a forward pass that its layers share. Groups cover every query exactly once."""

    groups: tuple[Group, ...]


def _padded(seq_lens: torch.Tensor, table: torch.Tensor) -> int:
    """Keys to attend over: the longest request's, in whole vectors, so that sums do not depend on who is beside it."""
    return min(-(-int(seq_lens.max()) // VECTOR) * VECTOR, table.shape[1])


def plan_decode(req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> Plan:
    """One query per request, which sees the request's first `seq_lens[i]` slots.

    Args:
        req_to_token: [pool, pool_len] slot of each position of each request.
        req_pool_indices: [B] row of each request.
        seq_lens: [B] visible keys, at least 1.
    """
    batch = seq_lens.shape[0]
    keys = _padded(seq_lens, req_to_token)
    slots = req_to_token[req_pool_indices, :keys]
    valid = torch.arange(keys) < seq_lens[:, None]
    slots = torch.where(valid, slots, slots[:, :1])
    return Plan((Group(batch, 1, keys, None, None, slots.flatten(), valid[:, None, None, :]),))


def plan_extend(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    extend_start_loc: torch.Tensor,
    tree_mask: torch.Tensor | None,
    *,
    fold: int,
    causal: bool,
) -> Plan:
    """`extend_seq_lens[i]` new queries per request, whose keys are the last of the request's `seq_lens[i]` slots.

    Requests are grouped by the power of two above their number of queries, so that padding never more than doubles
    the work, however unequal a prefill batch is.

    Args:
        extend_start_loc: [B] first query row of each request.
        tree_mask: flat bool, for each request e x e (among the new tokens, prefix visible) or e x seq_len (all keys).
        fold: query heads per KV head.
        causal: without a mask, whether query j sees only keys up to its own.
    """
    lengths = extend_seq_lens.tolist()
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        if length > 0:
            buckets.setdefault(0 if len(set(lengths)) == 1 else (length - 1).bit_length(), []).append(index)
    mask_starts = None
    if tree_mask is not None:
        new, total = extend_seq_lens.long(), seq_lens.long()
        widths = new if tree_mask.numel() == int((new * new).sum()) else total
        if tree_mask.numel() != int((new * widths).sum()):
            raise ValueError(f"a tree mask of {tree_mask.numel()} entries fits neither the new tokens nor all keys")
        cells = new * widths
        mask_starts = (cells.cumsum(0) - cells, widths)
    groups = []
    for members in buckets.values():
        chosen = torch.tensor(members)
        groups.append(
            _extend_group(
                req_to_token[req_pool_indices[chosen]],
                seq_lens[chosen].long(),
                extend_seq_lens[chosen].long(),
                extend_start_loc[chosen].long(),
                tree_mask,
                None if mask_starts is None else (mask_starts[0][chosen], mask_starts[1][chosen]),
                fold=fold,
                causal=causal,
                everything=len(members) == len(lengths),
            )
        )
    return Plan(tuple(groups))


def _extend_group(
    table: torch.Tensor,
    seq_lens: torch.Tensor,
    new: torch.Tensor,
    starts: torch.Tensor,
    tree_mask: torch.Tensor | None,
    mask_layout: tuple[torch.Tensor, torch.Tensor] | None,
    *,
    fold: int,
    causal: bool,
    everything: bool,
) -> Group:
    batch, queries, keys = seq_lens.shape[0], int(new.max()), _padded(seq_lens, table)
    uniform = int(new.min()) == queries
    key = torch.arange(keys)
    query = torch.arange(queries)
    valid = key < seq_lens[:, None]
    slots = torch.where(valid, table[:, :keys], table[:, :1])
    query_in = torch.minimum(query, new[:, None] - 1)
    prefix = seq_lens - new
    if mask_layout is not None and tree_mask is not None:
        begins, widths = mask_layout
        shift = torch.where(widths == new, prefix, torch.zeros_like(prefix))
        column = (key - shift[:, None]).clamp(min=0).minimum(widths[:, None] - 1)
        cell = begins[:, None, None] + query_in[:, :, None] * widths[:, None, None] + column[:, None, :]
        visible = tree_mask[cell].bool() | (key < shift[:, None])[:, None, :]
        visible &= valid[:, None, :]
    elif causal:
        visible = key <= (prefix[:, None] + query_in)[:, :, None]
    else:
        visible = valid[:, None, :].expand(batch, queries, keys)
    rows = None if uniform and everything else (starts[:, None] + query_in).flatten()
    kept = None if uniform else (query < new[:, None]).flatten()
    return Group(batch, queries, keys, rows, kept, slots.flatten(), _enough(visible.repeat(1, fold, 1)[:, None]))


def attend(
    query: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    output: torch.Tensor,
    plan: Plan,
    scaling: float,
    logit_cap: float,
) -> None:
    """Write softmax(cap(q k^T scaling)) v into `output`, accumulated in fp32.

    Args:
        query: [T, H, D].
        k_buffer: [slots, Hk, D], H a multiple of Hk.
        v_buffer: [slots, Hk, Dv].
        output: [T, H, Dv], written in place.
        plan: who reads what.
        logit_cap: when positive, scores s become cap * tanh(s / cap).
    """
    heads, width = query.shape[1], query.shape[2]
    kv_heads = k_buffer.shape[1]
    fold = heads // kv_heads
    for group in plan.groups:
        rows = query if group.rows is None else query.index_select(0, group.rows)
        folded = rows.view(group.batch, group.queries, kv_heads, fold, width).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(group.batch, kv_heads, fold * group.queries, width)
        shape = (group.batch, group.keys, kv_heads)
        key = k_buffer.index_select(0, group.slots).view(*shape, width).transpose(1, 2)
        value = v_buffer.index_select(0, group.slots).view(*shape, v_buffer.shape[2]).transpose(1, 2)
        count = fold * group.queries
        folded = _enough(folded)
        if logit_cap > 0:
            mixed = _capped(folded, key, value, group.visible, scaling, logit_cap)
        else:
            mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=group.visible, scale=scaling)
        unfolded = mixed[:, :, :count].view(group.batch, kv_heads, fold, group.queries, -1).permute(0, 3, 1, 2, 4)
        if group.rows is None:
            output.view(group.batch, group.queries, kv_heads, fold, -1).copy_(unfolded)
        else:
            flat = unfolded.reshape(group.batch * group.queries, heads, -1)
            target = group.rows
            if group.kept is not None:
                flat, target = flat[group.kept], target[group.kept]
            output.index_copy_(0, target, flat)


def _enough(rows: torch.Tensor) -> torch.Tensor:
    """[B, X, R, Y] -> [B, X, at least LEAST_ROWS, Y], rows over and over."""
    if rows.shape[2] >= LEAST_ROWS:
        return rows
    return rows.repeat(1, 1, -(-LEAST_ROWS // rows.shape[2]), 1)[:, :, :LEAST_ROWS]


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scaling: float,
    logit_cap: float,
) -> torch.Tensor:
    scores = logit_cap * torch.tanh(query.float() @ key.float().transpose(-1, -2) * (scaling / logit_cap))
    return (scores.masked_fill(~visible, -math.inf).softmax(-1) @ value.float()).to(query.dtype)


def require_plain(*, cross: bool, sliding_window: int, sinks: torch.Tensor | None) -> None:
    """Refuse the attention variants that no model of ours uses, instead of answering with something else."""
    if cross or sliding_window > 0 or sinks is not None:
        raise NotImplementedError("the CPU engine has no cross attention, sliding window or attention sinks")


def store(
    k_buffer: torch.Tensor, v_buffer: torch.Tensor, loc: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Put the keys and values of [T] new tokens into their slots `loc`."""
    k_buffer.index_copy_(0, loc, key.view(-1, k_buffer.shape[1], k_buffer.shape[2]))
    v_buffer.index_copy_(0, loc, value.view(-1, v_buffer.shape[1], v_buffer.shape[2]))
