"""Bookkeeping of KV slots for speculative decoding: which slot belongs to which position, and moving accepted ones.

Stands in for the functions of the same names in SGLang's unpublished CPU kernels (call sites:
sglang/kernels/ops/speculative/cache_locs.py, eagle.py, sglang/kernels/ops/kvcache/cache_move.py,
sglang/srt/mem_cache/allocation.py). All are called positionally and write their results in place. Invariant: no
loop over requests or tokens.
"""

from __future__ import annotations

import ctypes

import torch


def _ranges(start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the ranges [start[i], end[i]) of row i, one after another: two [sum of lengths]."""
    lengths = (end - start).long()
    rows = torch.repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths
    columns = torch.arange(rows.shape[0]) + (start - before)[rows]
    return rows, columns


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Give positions [start[i], end[i]) of request i the next `end[i] - start[i]` entries of `out_cache_loc`."""
    rows, columns = _ranges(start_offset, end_offset)
    req_to_token[req_pool_indices[rows], columns] = out_cache_loc[: rows.shape[0]].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write the slots of positions [start[i], end[i]) of every request i into `out_cache_loc`, one after another."""
    rows, columns = _ranges(start_offset, end_offset)
    out_cache_loc[: rows.shape[0]] = req_to_token[req_pool_indices[rows], columns].to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    num_cols: int,
) -> None:
    """Write, for every request, the `topk * num_cols` slots from position `seq_lens[i]` on into `out_cache_loc`."""
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
    """A table of slots per draft branch: the request's prefix, then the slots of the branch.

    Branch t of request i keeps its `num_steps` draft tokens at positions `seq_lens[i] + t * num_steps` and on of the
    request's row (sglang/srt/layers/attention/intel_amx_backend.py, IntelAMXMultiStepDraftBackend).

    Returns:
        [B * topk, pool_len], the dtype of `req_to_token`.
    """
    branches = req_to_token[req_pool_indices].repeat_interleave(topk, dim=0)
    if topk == 1:
        return branches
    lengths = seq_lens.long().repeat_interleave(topk)
    branch = torch.arange(topk).repeat(seq_lens.shape[0])
    step = torch.arange(num_steps)
    target = (lengths[:, None] + step).clamp(max=pool_len - 1)
    source = (lengths[:, None] + branch[:, None] * num_steps + step).clamp(max=pool_len - 1)
    return branches.scatter(1, target, branches.gather(1, source))


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """`bonus_tokens[i]` = the last accepted token of request i; `accept_lens` counts the bonus token itself."""
    index = torch.arange(accept_lens.shape[0]) * accept_stride + accept_lens - 1
    bonus_tokens.copy_(accept_tokens.flatten()[index])


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """Gather the slots of the accepted nodes (entries of `accept_index` above -1), in order, to the front."""
    flat = accept_index.flatten()
    chosen = out_cache_loc[flat[flat > -1].long()]
    accept_out_cache_loc[: chosen.shape[0]] = chosen.to(accept_out_cache_loc.dtype)


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Copy slot `src_loc[j]` to slot `tgt_loc[j]` in every K and V buffer; sources and targets may overlap.

    Args:
        data_ptrs: [buffers] addresses; the caller owns the memory for the length of the call.
        strides: [buffers] bytes per slot.
    """
    if tgt_loc.numel() == 0:
        return
    source, target = src_loc.long(), tgt_loc.long()
    slots = 1 + int(torch.maximum(source.max(), target.max()))
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_uint8 * (slots * stride)).from_address(address)
        buffer = torch.frombuffer(memory, dtype=torch.uint8).view(slots, stride)
        buffer[target] = buffer[source]
