"""Bookkeeping of KV slots for speculative decoding: which slot holds which position, and where accepted entries move.

The functions have the names and arguments of SGLang's unpublished CPU kernels. SGLang calls them with positional
arguments in sglang/kernels/ops/speculative/cache_locs.py and eagle.py, sglang/kernels/ops/kvcache/cache_move.py and
sglang/srt/mem_cache/allocation.py. All but `build_draft_decode_metadata_cpu` write their results in place.

Every request has a row in the table `req_to_token` [pool, pool_len]: the KV slot of each of its positions.

Invariant: no function loops over requests or tokens.
"""

from __future__ import annotations

import ctypes

import torch


def _range_cells(
    req_pool_indices: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The table's rows and columns that hold the positions [start[i], end[i]) of each request i, in order.

    In most rounds all ranges have one length, which takes half as many operations.

    Args:
        req_pool_indices, start, end: [B].

    Returns:
        rows [B, 1] and columns [B, length], or [sum of lengths] each where the lengths differ.
    """
    lengths = end - start
    on_host = lengths.tolist()
    if on_host and on_host.count(on_host[0]) == len(on_host):
        return req_pool_indices[:, None], start[:, None] + torch.arange(on_host[0])
    requests = torch.repeat_interleave(lengths.long())
    before = lengths.cumsum(0) - lengths
    return req_pool_indices[requests], torch.arange(requests.shape[0]) + (start - before)[requests]


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Assign the slots in `out_cache_loc`, in order, to the positions [start[i], end[i]) of each request i.

    Args:
        req_pool_indices, start_offset, end_offset: [B].
        req_to_token: [pool, pool_len], written in place.
        out_cache_loc: [sum of lengths].
    """
    rows, columns = _range_cells(req_pool_indices, start_offset, end_offset)
    slots = out_cache_loc[: columns.numel()].view(columns.shape)
    req_to_token[rows, columns] = slots.to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write the slots of the positions [start[i], end[i]) of every request i into `out_cache_loc`, concatenated.

    Args:
        req_pool_indices, start_offset, end_offset: [B].
        req_to_token: [pool, pool_len].
        out_cache_loc: [at least the sum of lengths], written in place.
    """
    rows, columns = _range_cells(req_pool_indices, start_offset, end_offset)
    slots = req_to_token[rows, columns].flatten()
    out_cache_loc[: slots.shape[0]] = slots.to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    num_cols: int,
) -> None:
    """Write into `out_cache_loc` the `topk * num_cols` slots of every request that begin at position `seq_lens[i]`.

    Args:
        req_pool_indices, seq_lens: [B].
        req_to_token: [pool, pool_len].
        out_cache_loc: [B * topk * num_cols] entries or more, written in place.
    """
    columns = seq_lens[:, None] + torch.arange(topk * num_cols)
    slots = req_to_token[req_pool_indices[:, None], columns].flatten()
    out_cache_loc.view(-1)[: slots.shape[0]] = slots.to(out_cache_loc.dtype)


def build_draft_decode_metadata_cpu(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    topk: int,
    num_steps: int,
    pool_len: int,
) -> torch.Tensor:
    """The slot table of a draft pass (sglang/srt/layers/attention/intel_amx_backend.py, IntelAMXMultiStepDraftBackend).

    A draft of one branch keeps its tokens behind the prefix in the request's own row. `draft_trees` refuses others.

    Args:
        req_to_token: [pool, pool_len].
        req_pool_indices: [B].
    """
    return req_to_token[req_pool_indices]


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """Write the last accepted token of every request, its bonus token, into `bonus_tokens`.

    Args:
        accept_tokens: [B, accept_stride] or flat.
        accept_lens: [B] accepted tokens, the bonus token included.
        bonus_tokens: [B], written in place.
    """
    index = torch.arange(accept_lens.shape[0]) * accept_stride + accept_lens - 1
    bonus_tokens.copy_(accept_tokens.flatten()[index])


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """Write the slots of the accepted nodes, in order, to the front of `accept_out_cache_loc`.

    Args:
        accept_index: flat numbers of the accepted nodes, in any shape; -1 where there is none.
        out_cache_loc: [B*n] the slot of each node.
        accept_out_cache_loc: [at least the number of accepted nodes], written in place.
    """
    flat = accept_index.flatten()
    chosen = out_cache_loc[flat[flat > -1].long()]
    accept_out_cache_loc[: chosen.shape[0]] = chosen.to(accept_out_cache_loc.dtype)


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Copy slot `src_loc[j]` to slot `tgt_loc[j]` in every K and V buffer. Sources and targets may overlap.

    Args:
        data_ptrs: [buffers] addresses; the caller owns the memory during the call.
        strides: [buffers] bytes per slot.
        tgt_loc, src_loc: [moves] slots.
    """
    if tgt_loc.numel() == 0:
        return
    source, target = src_loc.long(), tgt_loc.long()
    slots = 1 + int(torch.maximum(source.max(), target.max()))
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_uint8 * (slots * stride)).from_address(address)
        buffer = torch.frombuffer(memory, dtype=torch.uint8).view(slots, stride)
        buffer[target] = buffer[source]
