"""Attention over SGLang's paged KV cache on a CPU, for decoding, prefill and the verification of drafts.

Why one function, `attend`, serves all three: greedy output must not depend on whether speculation is on. Decoding a
token and verifying the same token inside a draft therefore run the same reductions, over more or fewer rows.

A forward pass makes one `AttentionPlan` for all of its layers. The plan says which KV slots each request reads, and
which keys each query sees.

Grouped-query attention is folded into the query rows: the G query heads that share a KV head become G rows of that
head. Keys are neither repeated nor expanded.

Letters in shapes: B requests, T query tokens, E queries per request, L keys, H query heads, Hk KV heads, G = H / Hk,
D and Dv the widths of a key and of a value, R the query rows of one KV head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.nn.functional as F

VECTOR_LANES = 16
"""float32 values per vector register: PyTorch's attention kernel sums this many at a time."""
MIN_QUERY_ROWS = 4
"""Fewest query rows per KV head. With fewer rows the kernel sums in another order, and a token decoded alone would
differ from the same token verified inside a draft. That was enough to change a third of the bf16 answers at near ties.
"""


@dataclass(frozen=True)
class AttentionGroup:
    """Requests that are attended together, padded to `queries` (E) queries and `keys` (L) keys each.

    Attributes:
        rows: [B*E] the rows of the query tensor; None means all rows in order. Padding repeats a valid row.
        is_query: [B*E] bool, False for padding; None means no padding.
        slots: [B*L] the slots of the KV buffers. Padding repeats a valid slot.
        visible: [B, 1, R, L] bool, True where a query row sees a key. R is the number of rows that `attend` folds the
            queries into, or 1 where every request decodes one query.
    """

    batch: int
    queries: int
    keys: int
    rows: torch.Tensor | None
    is_query: torch.Tensor | None
    slots: torch.Tensor
    visible: torch.Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """The plan that all layers of one forward pass share. The groups cover every query exactly once."""

    groups: tuple[AttentionGroup, ...]


def _padded_keys(seq_lens: torch.Tensor, table: torch.Tensor) -> int:
    """The number of keys to attend over: those of the longest request, rounded up to whole vectors.

    Whole vectors keep a request's sums independent of the other requests in its batch.
    """
    return min(-(-int(seq_lens.max()) // VECTOR_LANES) * VECTOR_LANES, table.shape[1])


def plan_decode(req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> AttentionPlan:
    """Plan one query per request, which sees the first `seq_lens[i]` slots of request i.

    Args:
        req_to_token: [pool, pool_len] the slot of each position of each request.
        req_pool_indices: [B] the pool row of each request.
        seq_lens: [B] visible keys, at least 1.
    """
    batch = seq_lens.shape[0]
    keys = _padded_keys(seq_lens, req_to_token)
    slots = req_to_token[req_pool_indices, :keys]
    valid = torch.arange(keys) < seq_lens[:, None]
    slots = torch.where(valid, slots, slots[:, :1])
    return AttentionPlan((AttentionGroup(batch, 1, keys, None, None, slots.flatten(), valid[:, None, None, :]),))


def plan_extend(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    extend_start_loc: torch.Tensor,
    tree_mask: torch.Tensor | None,
    *,
    heads_per_kv_head: int,
) -> AttentionPlan:
    """Plan `extend_seq_lens[i]` new queries of request i, whose own keys are the last of its `seq_lens[i]` slots.

    Requests are grouped by the power of two at or above their number of queries. Padding then at most doubles the work,
    however unequal a prefill batch is. A single new query of each request sees all of its keys, as in decoding, and the
    mask says nothing else: this is a verify round without proposals.

    Args:
        req_to_token: [pool, pool_len] the slot of each position of each request.
        req_pool_indices: [B] the pool row of each request.
        seq_lens: [B] keys of each request, its new tokens included.
        extend_seq_lens: [B] new tokens of each request, e.
        extend_start_loc: [B] the first query row of each request.
        tree_mask: flat bool; per request e x e, the new tokens among themselves. All requests of a verify round have
            as many new tokens. Without a mask, a query sees the keys up to its own.
        heads_per_kv_head: G, the query heads that share a KV head.
    """
    lengths = extend_seq_lens.tolist()
    if set(lengths) == {1}:
        return plan_decode(req_to_token, req_pool_indices, seq_lens)
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        if length > 0:
            buckets.setdefault(0 if len(set(lengths)) == 1 else (length - 1).bit_length(), []).append(index)
    mask = None if tree_mask is None else tree_mask.view(len(lengths), lengths[0], lengths[0]).bool()
    groups = []
    for members in buckets.values():
        chosen = torch.tensor(members)
        groups.append(
            _extend_group(
                req_to_token[req_pool_indices[chosen]],
                seq_lens[chosen].long(),
                extend_seq_lens[chosen].long(),
                extend_start_loc[chosen].long(),
                mask,
                heads_per_kv_head=heads_per_kv_head,
                whole_batch=len(members) == len(lengths),
            )
        )
    return AttentionPlan(tuple(groups))


def _extend_group(
    table: torch.Tensor,
    seq_lens: torch.Tensor,
    new: torch.Tensor,
    starts: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    heads_per_kv_head: int,
    whole_batch: bool,
) -> AttentionGroup:
    """Plan the requests of one group.

    Args:
        table: [B, pool_len] slots.
        seq_lens: [B] keys of each request.
        new: [B] new queries of each request.
        starts: [B] first query row of each request.
        mask: [B, E, E] bool, True where a new token sees another.
        whole_batch: whether the group holds every request of the batch.
    """
    batch, queries, keys = seq_lens.shape[0], int(new.max()), _padded_keys(seq_lens, table)
    uniform = int(new.min()) == queries
    key = torch.arange(keys)
    query = torch.arange(queries)
    valid = key < seq_lens[:, None]
    slots = torch.where(valid, table[:, :keys], table[:, :1])
    query_in_request = torch.minimum(query, new[:, None] - 1)
    prefix = seq_lens - new
    if mask is None:
        visible = key <= (prefix[:, None] + query_in_request)[:, :, None]
    else:
        column = (key - prefix[:, None]).clamp(0, queries - 1)
        own = mask.gather(2, column[:, None, :].expand(batch, queries, keys))
        visible = (own | (key < prefix[:, None])[:, None, :]) & valid[:, None, :]
    rows = None if uniform and whole_batch else (starts[:, None] + query_in_request).flatten()
    is_query = None if uniform else (query < new[:, None]).flatten()
    visible = _repeat_to_min_rows(visible.repeat(1, heads_per_kv_head, 1)[:, None])
    return AttentionGroup(batch, queries, keys, rows, is_query, slots.flatten(), visible)


def attend(
    query: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    output: torch.Tensor,
    plan: AttentionPlan,
    scaling: float,
    logit_cap: float,
) -> None:
    """Write softmax(cap(q k^T scaling)) v into `output`, accumulated in fp32.

    Args:
        query: [T, H, D].
        k_buffer: [slots, Hk, D], where H is a multiple of Hk.
        v_buffer: [slots, Hk, Dv].
        output: [T, H, Dv], written in place.
        plan: which slots each request reads, and which keys each query sees.
        logit_cap: when positive, a score s becomes cap * tanh(s / cap).
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
        folded = _repeat_to_min_rows(folded)
        if logit_cap > 0:
            mixed = _attend_capped(folded, key, value, group.visible, scaling, logit_cap)
        else:
            mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=group.visible, scale=scaling)
        unfolded = mixed[:, :, :count].view(group.batch, kv_heads, fold, group.queries, -1).permute(0, 3, 1, 2, 4)
        if group.rows is None:
            output.view(group.batch, group.queries, kv_heads, fold, -1).copy_(unfolded)
        else:
            flat = unfolded.reshape(group.batch * group.queries, heads, -1)
            target = group.rows
            if group.is_query is not None:
                flat, target = flat[group.is_query], target[group.is_query]
            output.index_copy_(0, target, flat)


def _repeat_to_min_rows(rows: torch.Tensor) -> torch.Tensor:
    """Repeat the R rows of [B, X, R, Y] until there are at least MIN_QUERY_ROWS."""
    if rows.shape[2] >= MIN_QUERY_ROWS:
        return rows
    return rows.repeat(1, 1, -(-MIN_QUERY_ROWS // rows.shape[2]), 1)[:, :, :MIN_QUERY_ROWS]


def _attend_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scaling: float,
    logit_cap: float,
) -> torch.Tensor:
    """Attention with capped scores: [B, Hk, R, D], [B, Hk, L, D], [B, Hk, L, Dv] -> [B, Hk, R, Dv]."""
    scores = logit_cap * torch.tanh(query.float() @ key.float().transpose(-1, -2) * (scaling / logit_cap))
    return (scores.masked_fill(~visible, -math.inf).softmax(-1) @ value.float()).to(query.dtype)


def store_keys_and_values(
    k_buffer: torch.Tensor, v_buffer: torch.Tensor, loc: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Write the keys and values of T new tokens into their slots.

    Args:
        k_buffer, v_buffer: [slots, Hk, D] and [slots, Hk, Dv], written in place.
        loc: [T] the slot of each token.
        key, value: T tokens of Hk heads, in any shape that holds them in this order.
    """
    k_buffer.index_copy_(0, loc, key.view(-1, k_buffer.shape[1], k_buffer.shape[2]))
    v_buffer.index_copy_(0, loc, value.view(-1, v_buffer.shape[1], v_buffer.shape[2]))


def register_operations() -> None:
    """Register the names that SGLang's backend looks up when it is built (`torch.ops.sgl_kernel`).

    SGLang calls them only for a layer that is not plain (`wrappers`).
    """
    for name in ("decode_attention_cpu", "extend_attention_cpu"):
        setattr(torch.ops.sgl_kernel, name, _refuse)


def _refuse(*_: object) -> NoReturn:
    raise NotImplementedError(
        "the CPU engine computes no latent attention, cross attention, sliding windows or attention sinks"
    )
