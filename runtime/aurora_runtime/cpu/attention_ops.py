"""Registers our attention with torch under the operation names that SGLang calls (`torch.ops.sgl_kernel`).

SGLang's CPU attention backend looks both operations up when it is built, and calls them wherever the wrappers fall back
to the original method (sglang/srt/layers/attention/intel_amx_backend.py:58). The argument lists are those of SGLang's
unpublished CPU kernels, so some arguments are unused here. `attention_backend` computes the results.
"""

from __future__ import annotations

from typing import Any

import torch

from aurora_runtime.cpu.attention_backend import (
    VECTOR_LANES,
    attend,
    plan_decode,
    plan_extend,
    reject_unsupported_attention,
    store_keys_and_values,
)

_LIBRARY = "sgl_kernel"
_DECODE_SCHEMA = (
    "decode_attention_cpu(Tensor query, Tensor k_buffer, Tensor v_buffer, float k_scale, float v_scale,"
    " Tensor(a!) output, Tensor? key, Tensor? value, Tensor loc, Tensor attn_logits, Tensor req_to_token,"
    " Tensor req_pool_indices, Tensor seq_lens, float sm_scale, float logit_cap, bool is_cross_attn,"
    " int sliding_window_size, Tensor? encoder_lens, Tensor? sinks) -> ()"
)
_EXTEND_SCHEMA = (
    "extend_attention_cpu(Tensor query, Tensor? key, Tensor? value, Tensor(a!) output, Tensor k_buffer,"
    " Tensor v_buffer, float k_scale, float v_scale, Tensor req_to_token, Tensor req_pool_indices, Tensor seq_lens,"
    " Tensor extend_seq_lens, Tensor extend_start_loc, int max_len_extend, float sm_scale, float logit_cap,"
    " bool is_cross_attn, int sliding_window_size, Tensor? encoder_lens, Tensor? sinks, Tensor? tree_mask,"
    " bool is_causal) -> ()"
)


def _decode_attention(
    query: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    k_scale: float,
    v_scale: float,
    output: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    loc: torch.Tensor,
    attn_logits: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    sm_scale: float,
    logit_cap: float,
    is_cross_attn: bool,
    sliding_window_size: int,
    encoder_lens: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> None:
    """Store the new keys and values [B, Hk, D], then attend: one query [B, H, D] per request."""
    reject_unsupported_attention(cross=is_cross_attn, sliding_window=sliding_window_size, sinks=sinks)
    if key is not None and value is not None:
        store_keys_and_values(k_buffer, v_buffer, loc, key, value)
    plan = plan_decode(req_to_token, req_pool_indices, seq_lens)
    attend(query, k_buffer, v_buffer, output, plan, sm_scale, logit_cap)


def _extend_attention(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    output: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    k_scale: float,
    v_scale: float,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    extend_start_loc: torch.Tensor,
    max_len_extend: int,
    sm_scale: float,
    logit_cap: float,
    is_cross_attn: bool,
    sliding_window_size: int,
    encoder_lens: torch.Tensor | None,
    sinks: torch.Tensor | None,
    tree_mask: torch.Tensor | None,
    is_causal: bool,
) -> None:
    """Attend over [T, H, D] queries of prefill or verification. SGLang has stored the keys and values already.

    Latent attention (MLA) prefills with the full keys and values of every head, and the cache holds only the latent.
    The shapes then differ, and this function attends to ``key`` and ``value`` directly. Raises
    :class:`NotImplementedError` when a request has cached tokens too, which SGLang computes from latents.
    """
    reject_unsupported_attention(cross=is_cross_attn, sliding_window=sliding_window_size, sinks=sinks)
    if key is not None and value is not None and key.shape[1:] != k_buffer.shape[1:]:
        if not torch.equal(seq_lens.long(), extend_seq_lens.long()):
            raise NotImplementedError("the CPU engine cannot prefill latent attention behind a cached prefix")
        k_buffer, v_buffer = key, value
        width = -(-int(extend_seq_lens.max()) // VECTOR_LANES) * VECTOR_LANES
        req_to_token = extend_start_loc.long()[:, None] + torch.arange(width)
        req_pool_indices = torch.arange(extend_start_loc.shape[0])
    plan = plan_extend(
        req_to_token,
        req_pool_indices,
        seq_lens,
        extend_seq_lens,
        extend_start_loc,
        tree_mask,
        heads_per_kv_head=query.shape[1] // k_buffer.shape[1],
        causal=is_causal,
    )
    attend(query, k_buffer, v_buffer, output, plan, sm_scale, logit_cap)


def register() -> Any:
    """Register both operations. They last as long as the returned library object, so the caller must hold on to it."""
    create: Any = torch.library.Library
    library = create(_LIBRARY, "FRAGMENT")
    library.define(_DECODE_SCHEMA)
    library.define(_EXTEND_SCHEMA)
    library.impl("decode_attention_cpu", _decode_attention, "CPU")
    library.impl("extend_attention_cpu", _extend_attention, "CPU")
    return library
